"""A start on a folder that is uploaded already: presignd's first scan beside what peers take to decide the same.

``python -m benchmarks.start [--files 100000] [--rounds 3]``; ``--files 1000000`` is the largest. The first thousand
files are uploaded in truth; the ledger and the sink get the others as an upload would leave them
(``benchmarks.filled``). Cold runs (as root) begin with ``echo 3 > /proc/sys/vm/drop_caches``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import peers
from benchmarks.dropped import Daemon
from benchmarks.harness import (
    BUCKET,
    Goal,
    Rounds,
    Sink,
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
CACHES = Path("/proc/sys/vm/drop_caches")


def main() -> None:
    """Measure, and print the table."""
    asked = options(__doc__, files=100_000, size=1, rounds=3)
    with bench_folder(asked.folder) as folder:
        print_head(f"A start on {asked.files} files that are uploaded", asked.rounds)
        server = Sink(folder)
        with server, Daemon(folder, server) as daemon:
            fill(daemon.folder / "first", daemon.drop, IN_A_FOLDER, 1)
            daemon.until_linked(IN_A_FOLDER)
            daemon.stop()
        fill(daemon.folder / "aside", daemon.drop, asked.files - IN_A_FOLDER, 1)
        server.objects = folder / "objects"
        config = daemon.folder / "config.toml"
        subprocess.run([sys.executable, "-m", "benchmarks.filled", config, server.objects], check=True)
        with server:
            _report(_rounds(daemon, server, asked.rounds))


def fill(aside: Path, drop: Path, count: int, size: int) -> None:
    """Make ``count`` files in folders of a thousand, ``aside``, and move each folder in under a name of its own."""
    for start in range(0, count, IN_A_FOLDER):
        below = aside / f"{start // IN_A_FOLDER:05}"
        below.mkdir(parents=True)
        for number in range(start, min(count, start + IN_A_FOLDER)):
            (below / f"file-{number:07}.bin").write_bytes(b"x" * size)
        below.rename(drop / f"{aside.name}-{below.name}")


def _rounds(daemon: Daemon, server: Sink, rounds: int) -> Rounds:
    found: Rounds = {"presignd": [], "presignd, cold": [], "rclone copy": [], "rclone copy --size-only": []}
    found["s5cmd sync"] = []
    s5cmd = [peers.program("s5cmd"), "--endpoint-url", server.endpoint, "--log", "error", "sync"]
    for _ in range(rounds):
        if os.geteuid() == 0:
            os.sync()
            CACHES.write_text("3")
            found["presignd, cold"].append(scanned(daemon))
        found["presignd"].append(scanned(daemon))
        found["s5cmd sync"].append(measure([*s5cmd, f"{daemon.drop}/", f"s3://{BUCKET}/"], peers.environ(server)))
        found["rclone copy --size-only"].append(peers.rclone(server, daemon.drop, "--size-only"))
        found["rclone copy"].append(peers.rclone(server, daemon.drop))
        for name, usages in found.items():
            told = f"{name}: {usages[-1].wall:.2f} s" if usages else ""
            print(told, f"load {os.getloadavg()[0]:.2f}", file=sys.stderr, flush=True)
    assert server.stats()["requests"].get("PUT", 0) == 0, "all decided that all is there"
    return {name: usages for name, usages in found.items() if usages}


def scanned(daemon: Daemon) -> Usage:
    """Start the daemon; return what it took from its start to the end of its first scan."""
    log = daemon.folder / "log"
    log.write_bytes(b"")
    began = time.perf_counter()
    daemon.start()
    until(lambda: b'"scan.finished"' in log.read_bytes(), "scan.finished", 600)
    wall, cpu = time.perf_counter() - began, daemon.cpu()
    scan = next(json.loads(line) for line in log.read_text().splitlines() if '"scan.finished"' in line)
    assert scan["candidates"] == 0, "all was uploaded"
    rss = daemon.memory("VmHWM")
    daemon.stop()
    return Usage(wall, cpu, rss, {"scan": scan["duration_ms"] / 1000})


def _report(found: Rounds) -> None:
    columns = {"wall s": lambda u: u.wall, "CPU s": lambda u: u.cpu, "peak RSS MiB": lambda u: u.rss / (1 << 20)}
    columns["scan s"] = lambda u: u.more.get("scan", 0.0)
    print_usages(found, columns)
    goals = [
        Goal("wall, rclone copy", "rclone copy", lambda u: u.wall, 0.2),
        Goal("wall, rclone copy --size-only", "rclone copy --size-only", lambda u: u.wall, 0.2),
        Goal("wall, s5cmd sync", "s5cmd sync", lambda u: u.wall, 0.2),
    ]
    print_goals(found, goals)


if __name__ == "__main__":
    main()
