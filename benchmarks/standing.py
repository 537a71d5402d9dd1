"""What presignd costs when idle, and while the store is unreachable.

``python -m benchmarks.standing [--files 100000]``: idle with that many files watched (CPU, RSS), then as many more
queued while the store is away (RSS and files recorded a second, over time), then the drain once it is back, and a
burst to compare it with. The files that are watched are recorded as ``benchmarks.start`` has them.
"""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks.dropped import Daemon
from benchmarks.harness import BLOCK, bench_folder, print_head
from benchmarks.options import options
from benchmarks.servers import Sink, until
from benchmarks.start import fill, uploaded

BEFORE_SECONDS, IDLE_SECONDS = 15, 90
STEPS = 10
ONE_LINKS_FILE = '[links]\nrotate_size = "1GiB"'
"""The links are counted by their lines: of more than 100,000 none may be rotated away."""


def main() -> None:
    """Measure, and print."""
    asked = options(__doc__, files=100_000, size=1, rounds=1)
    with bench_folder(asked.folder) as folder:
        print_head(f"Standing by with {asked.files} files", asked.rounds)
        _idle(folder, asked.files)
        _away(folder, asked.files)


def _idle(folder: Path, count: int) -> None:
    server = Sink(folder)
    daemon = uploaded(folder, server, count, 1)
    with server:
        daemon.start()
        time.sleep(BEFORE_SECONDS)
        before = daemon.cpu()
        time.sleep(IDLE_SECONDS)
        percent = 100 * (daemon.cpu() - before) / IDLE_SECONDS
        rss = daemon.memory() / BLOCK
        print(f"idle, {count} files watched: {percent:.2f} % of a core (goal ≤ 0.1), RSS {rss:.1f} MiB (goal ≤ 80)")
        daemon.stop()


def _away(folder: Path, count: int) -> None:
    """Queue with the store's port closed, then start the sink there; finally run a burst for comparison."""
    sink = Sink(folder)
    with Daemon(folder, sink, more=ONE_LINKS_FILE) as daemon:
        print("\n| queued while the store is away | files/s | RSS MiB |\n| --- | --- | --- |")
        for step in range(1, STEPS + 1):
            began = fill(daemon.folder / f"step-{step}", daemon.drop, count // STEPS, 1)
            queued = count // STEPS * step
            until(lambda: daemon.said(b'"file.queued"') >= queued, f"{queued} queued", 600)  # noqa: B023 - in this turn
            rate = count / STEPS / (time.perf_counter() - began)
            print(f"| {queued} | {rate:.0f} | {daemon.memory() / BLOCK:.1f} |", flush=True)
        with sink:
            began = time.perf_counter()
            first = daemon.until_linked(1, 60)
            daemon.until_linked(count // STEPS * STEPS, 1800)
            took = time.perf_counter() - first
            waited, rate = first - began, count / took
            print(f"\ndrained at {rate:.0f} files/s, the first link after {waited:.1f} s", end="; ")
            print(f"RSS {daemon.memory() / BLOCK:.1f} MiB")
            began = fill(daemon.folder / "burst", daemon.drop, count // STEPS, 1)
            burst = count / STEPS / (daemon.until_linked(count // STEPS * (STEPS + 1), 600) - began)
            print(f"a burst of {count // STEPS} after it: {burst:.0f} files/s; the drain is {rate / burst:.2f} of that")


if __name__ == "__main__":
    main()
