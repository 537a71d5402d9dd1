"""A start on a folder that is uploaded already: presignd's first scan beside what peers take to decide the same.

``python -m benchmarks.start [--server sink] [--files 100000] [--rounds 3]``; ``--files 1000000`` is the largest.
The ledger, and the sink's listing for the peers, are filled by a first run with empty files of one byte each.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from benchmarks import peers
from benchmarks.dropped import Daemon
from benchmarks.harness import (
    BUCKET,
    SERVERS,
    Goal,
    Rounds,
    Server,
    Usage,
    bench_folder,
    measure,
    print_goals,
    print_head,
    print_usages,
    until,
)
from benchmarks.options import options

IN_A_FOLDER = 1000


def main() -> None:
    """Measure, and print the table."""
    asked = options(__doc__, files=100_000, size=1, rounds=3)
    with bench_folder(asked.folder) as folder:
        print_head(f"A start on {asked.files} files that are uploaded", asked.rounds)
        with SERVERS["sink"](folder) as server, Daemon(folder, server) as daemon:
            fill(daemon.folder / "aside", daemon.drop, asked.files, asked.size)
            began = time.perf_counter()
            daemon.until_linked(asked.files, 3600)
            print(f"(the first upload took {time.perf_counter() - began:.0f} s)\n", flush=True)
            daemon.stop()
            _report(_rounds(daemon, server, asked.rounds))


def fill(aside: Path, drop: Path, count: int, size: int) -> None:
    """Make ``count`` files in folders of a thousand, ``aside``, and move each folder in under a name of its own."""
    for start in range(0, count, IN_A_FOLDER):
        below = aside / f"{start // IN_A_FOLDER:05}"
        below.mkdir(parents=True)
        for number in range(start, min(count, start + IN_A_FOLDER)):
            (below / f"file-{number:07}.bin").write_bytes(b"x" * size)
        below.rename(drop / f"{aside.name}-{below.name}")


def _rounds(daemon: Daemon, server: Server, rounds: int) -> Rounds:
    found: Rounds = {"presignd": [], "rclone copy": [], "s5cmd sync": []}
    for _ in range(rounds):
        found["presignd"].append(scanned(daemon))
        found["rclone copy"].append(peers.rclone(server, daemon.drop))
        argv = [peers.program("s5cmd"), "--endpoint-url", server.endpoint, "--log", "error", "sync", "--size-only"]
        found["s5cmd sync"].append(measure([*argv, f"{daemon.drop}/", f"s3://{BUCKET}/"], peers.environ(server)))
    return found


def scanned(daemon: Daemon) -> Usage:
    """Start the daemon; return what it took from its start to the end of its first scan."""
    log = daemon.folder / "log"
    log.write_bytes(b"")
    began = time.perf_counter()
    daemon.start()
    until(lambda: b'"scan.finished"' in log.read_bytes(), "scan.finished", 600)
    wall = time.perf_counter() - began
    scan = next(json.loads(line) for line in log.read_text().splitlines() if '"scan.finished"' in line)
    assert scan["candidates"] == 0, "all was uploaded"
    cpu, rss = daemon.stop()
    return Usage(wall, cpu, rss, {"scan": scan["duration_ms"] / 1000})


def _report(found: Rounds) -> None:
    columns = {"wall s": lambda u: u.wall, "CPU s": lambda u: u.cpu, "peak RSS MiB": lambda u: u.rss / (1 << 20)}
    print_usages(found, columns)
    goals = [
        Goal("wall, rclone copy", "rclone copy", lambda u: u.wall, 0.2),
        Goal("wall, s5cmd sync", "s5cmd sync", lambda u: u.wall, 0.2),
    ]
    print_goals(found, goals)


if __name__ == "__main__":
    main()
