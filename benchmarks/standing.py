"""What presignd costs while nothing happens, and while the store is away.

``python -m benchmarks.standing [--files 100000]``: idle with that many files watched (CPU, RSS), then as many more
queued while the store is away (RSS and files recorded a second, by quarters), then the drain once it is back.
"""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks.dropped import Daemon
from benchmarks.harness import Sink, bench_folder, print_head, until
from benchmarks.options import options
from benchmarks.start import fill

IDLE_SECONDS = 60


def main() -> None:
    """Measure, and print."""
    asked = options(__doc__, files=100_000, size=1, rounds=1)
    with bench_folder(asked.folder) as folder:
        print_head(f"Standing by with {asked.files} files", asked.rounds)
        _idle(folder, asked.files)
        _away(folder, asked.files)


def _idle(folder: Path, count: int) -> None:
    with Sink(folder) as server, Daemon(folder, server) as daemon:
        fill(daemon.folder / "aside", daemon.drop, count, 1)
        daemon.until_linked(count, 3600)
        daemon.stop()
        daemon.start()
        time.sleep(10)
        before = daemon.cpu()
        time.sleep(IDLE_SECONDS)
        percent = 100 * (daemon.cpu() - before) / IDLE_SECONDS
        print(
            f"idle, {count} files watched: {percent:.2f} % of a core (goal ≤ 0.2), RSS {_rss(daemon)} MiB (goal ≤ 80)"
        )


def _away(folder: Path, count: int) -> None:
    """Queue with the store's port closed; then start the sink there."""
    sink = Sink(folder)
    with Daemon(folder, sink) as daemon:
        print("\n| queued while the store is away | files/s | RSS MiB |\n| --- | --- | --- |")
        for quarter in range(1, 5):
            began = time.perf_counter()
            fill(daemon.folder / f"quarter-{quarter}", daemon.drop, count // 4, 1)
            queued = count // 4 * quarter
            until(lambda: _queued(daemon) >= queued, f"{queued} queued", 600)  # noqa: B023 - used in this turn
            rate = count / 4 / (time.perf_counter() - began)
            print(f"| {queued} | {rate:.0f} | {_rss(daemon)} |", flush=True)
        with sink:
            began = time.perf_counter()
            first = daemon.until_linked(1, 60)
            daemon.until_linked(count // 4 * 4, 1800)
            took = time.perf_counter() - first
        waited, rate = first - began, count / took
        print(f"\ndrained at {rate:.0f} files/s, the first link after {waited:.1f} s; RSS {_rss(daemon)} MiB\n")


def _queued(daemon: Daemon) -> int:
    return (daemon.folder / "log").read_bytes().count(b'"file.queued"')


def _rss(daemon: Daemon) -> int:
    status = Path(f"/proc/{daemon.process.pid}/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) >> 10


if __name__ == "__main__":
    main()
