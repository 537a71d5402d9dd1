"""A start on a folder that is already uploaded: presignd's first scan, compared with other tools doing the same.

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
from collections.abc import Callable
from pathlib import Path

from benchmarks import peers
from benchmarks.dropped import Daemon
from benchmarks.harness import Goal, Rounds, Usage, bench_folder, measure, print_goals, print_head, print_usages
from benchmarks.options import options
from benchmarks.servers import BUCKET, Sink, until

IN_A_FOLDER = 1000
CACHES = Path("/proc/sys/vm/drop_caches")
MOST = 100_000


def main() -> None:
    """Measure, and print the table."""
    asked = options(__doc__, files=100_000, size=1, rounds=3)
    with bench_folder(asked.folder) as folder:
        print_head(f"A start on {asked.files} files that are uploaded", asked.rounds)
        server = Sink(folder)
        daemon = uploaded(folder, server, asked.files, asked.size)
        with server:
            _report(_rounds(daemon, server, asked.files, asked.rounds))


def uploaded(folder: Path, server: Sink, files: int, size: int) -> Daemon:
    """Return a daemon, stopped, that uploaded so many files: the first thousand in truth. The sink will have them."""
    with server, Daemon(folder, server) as daemon:
        fill(daemon.folder / "first", daemon.drop, IN_A_FOLDER, size)
        daemon.until_linked(IN_A_FOLDER)
        daemon.stop()
    fill(daemon.folder / "aside", daemon.drop, files - IN_A_FOLDER, size)
    server.objects = folder / "objects"
    config = daemon.folder / "config.toml"
    subprocess.run([sys.executable, "-m", "benchmarks.filled", config, server.objects], check=True)
    return daemon


def fill(aside: Path, drop: Path, count: int, size: int) -> float:
    """Make ``count`` files in folders of a thousand, ``aside``, then move each folder in under a name of its own.

    Return the time (``perf_counter``) just before the first move.
    """
    folders = [aside / f"{start // IN_A_FOLDER:05}" for start in range(0, count, IN_A_FOLDER)]
    for start, below in zip(range(0, count, IN_A_FOLDER), folders, strict=True):
        below.mkdir(parents=True)
        for number in range(start, min(count, start + IN_A_FOLDER)):
            (below / f"file-{number:07}.bin").write_bytes(b"x" * size)
    began = time.perf_counter()
    for below in folders:
        below.rename(drop / f"{aside.name}-{below.name}")
    return began


def _rounds(daemon: Daemon, server: Sink, files: int, rounds: int) -> Rounds:
    contenders: dict[str, Callable[[], Usage]] = {
        "presignd, cold": lambda: _cold(daemon),
        "presignd": lambda: scanned(daemon),
        "rclone copy --size-only": lambda: peers.rclone(server, daemon.drop, "--size-only"),
        "rclone copy": lambda: peers.rclone(server, daemon.drop),
        "s5cmd sync": lambda: _s5cmd(server, daemon.drop),
    }
    if os.geteuid():
        del contenders["presignd, cold"]
    if files > MOST:
        del contenders["rclone copy"], contenders["s5cmd sync"]
        print(
            f"Above {MOST} files not run: `rclone copy` with its defaults, a HEAD for each object, takes minutes, and"
        )
        print("`s5cmd sync` 21 KiB of memory a file.\n", flush=True)
    found: Rounds = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            found[name].append(contender())
            print(f"  {name}: {found[name][-1].wall:.2f} s, load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
    assert server.stats()["requests"].get("PUT", 0) == 0, "all decided that all is there"
    return found


def _s5cmd(server: Sink, folder: Path) -> Usage:
    argv = [peers.program("s5cmd"), "--endpoint-url", server.endpoint, "--log", "error", "sync"]
    return measure([*argv, f"{folder}/", f"s3://{BUCKET}/"], peers.environ(server))


def _cold(daemon: Daemon) -> Usage:
    os.sync()
    CACHES.write_text("3")
    return scanned(daemon)


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
        Goal("wall, rclone copy", "rclone copy", lambda u: u.wall, 0.3),
        Goal("wall, rclone copy --size-only", "rclone copy --size-only", lambda u: u.wall),
        Goal("wall, s5cmd sync", "s5cmd sync", lambda u: u.wall, 0.3),
    ]
    print_goals(found, goals)


if __name__ == "__main__":
    main()
