"""A large sparse-and-random file to SeaweedFS, while the daemon is killed ten times.

``python -m benchmarks.resume [--size BYTES] [--kills N] [--folder F]``: 20 GiB, 10 kills. Told are the bytes that
went over the wire beside what they may come to (the file, and the parts in flight at each kill), the peak RSS,
and whether the object is byte for byte the file. Ends with 1 where one of them is not as promised.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sqlite3
import sys
import time
import urllib.request
from pathlib import Path

from benchmarks.counter import Counter
from benchmarks.dropped import Daemon
from benchmarks.harness import BLOCK, bench_folder, print_head
from benchmarks.servers import Seaweed, until

GIB, PART, AT_ONCE, MEMORY = 1 << 30, 16 << 20, 4, 128 << 20
"""``part_size``, ``part_concurrency`` and ``memory``, as they ship."""

HEADS = 1 << 10
"""Bytes a request for its head, of which there is one a part, and a few."""

MOST_RSS = (60 << 20) + MEMORY
RANDOM_SHARE = 8
"""One block in so many is random, the others are holes."""


def main() -> int:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", type=int, default=20 * GIB)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    with bench_folder(asked.folder) as folder:
        print_head(f"{asked.size / GIB:.3g} GiB to SeaweedFS, killed {asked.kills} times", 1)
        return _measure(folder, asked.size, asked.kills)


def make_sparse(path: Path, size: int) -> None:
    """Make a file of holes and random blocks."""
    rng = random.Random(4)
    with path.open("wb") as file:
        for start in range(0, size, BLOCK):
            if rng.randrange(RANDOM_SHARE) == 0:
                file.seek(start)
                file.write(os.urandom(min(BLOCK, size - start)))
        file.truncate(size)


def _measure(folder: Path, size: int, kills: int) -> int:
    path = folder / "large.bin"
    make_sparse(path, size)
    with Seaweed(folder) as weed, Counter(weed) as counted, Daemon(folder, counted) as daemon:
        began = time.monotonic()
        daemon.move_in([path])
        rss = _killed(daemon, size, kills)
        daemon.until_linked(1)
        wall, sent = time.monotonic() - began, counted.sent
        rss = max(rss, daemon.stop()[1])
        same = is_same(daemon.links()[0]["url"], daemon.drop / path.name)
    most = size + kills * AT_ONCE * PART
    heads = (most // PART + 100) * HEADS
    print("| | figure | at most |\n| --- | --- | --- |")
    print(f"| bytes sent | {sent:,} | {most:,} and {heads:,} of heads |")
    print(f"| peak RSS, MiB | {rss / BLOCK:.1f} | {MOST_RSS / BLOCK:.0f} |\n| byte-identical | {same} | |")
    print(f"| seconds, kills and all | {wall:.1f} | |\n")
    return 0 if same and sent <= most + heads and rss <= MOST_RSS else 1


def _killed(daemon: Daemon, size: int, kills: int) -> int:
    """Kill and start it again at even steps; return its peak RSS in bytes."""
    rss = 0
    for number in range(1, kills + 1):
        _until_stored(daemon, size * number // (kills + 1))
        daemon.process.kill()
        _, _, used = os.wait4(daemon.process.pid, 0)
        daemon.process.returncode = -signal.SIGKILL
        rss = max(rss, used.ru_maxrss << 10)
        print(f"  kill {number}: {stored(daemon):,} bytes stood", file=sys.stderr, flush=True)
        daemon.start()
    return rss


def _until_stored(daemon: Daemon, size: int) -> None:
    until(lambda: stored(daemon) >= size, f"{size:,} bytes", 600)


def stored(daemon: Daemon) -> int:
    """Return the bytes of the parts that the ledger has."""
    ledger = daemon.folder / "state" / "ledger.sqlite3"
    with sqlite3.connect(f"file:{ledger}?mode=ro", uri=True) as connection:
        return int(connection.execute("SELECT coalesce(sum(size), 0) FROM part").fetchone()[0])


def is_same(url: str, path: Path) -> bool:
    """Return whether a link's content equals a file, byte by byte."""
    with urllib.request.urlopen(url, timeout=600) as answer, path.open("rb") as file:
        while block := answer.read(BLOCK):
            if block != file.read(len(block)):
                return False
        return not file.read(1)


if __name__ == "__main__":
    sys.exit(main())
