"""Flat memory: a sparse file that pretends to be 5 TiB, in its parts of 525 MiB, to the sink, for a while.

``python -m benchmarks.memory [--size BYTES] [--seconds N] [--folder F]``. Ends with 1 where the peak RSS is more
than 60 MiB and ``[upload] memory``.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from benchmarks.dropped import Daemon
from benchmarks.harness import BLOCK, bench_folder, print_head
from benchmarks.resume import GIB, MOST_RSS, stored
from benchmarks.servers import Sink
from presignd.s3.limits import LARGEST_OBJECT
from presignd.s3.multipart import part_size_for


def main() -> int:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", type=int, default=LARGEST_OBJECT)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    with bench_folder(asked.folder) as folder:
        print_head(f"RSS in {asked.seconds} s of a file of {asked.size / GIB:,.0f} GiB on the sink", 1)
        return _measure(folder, asked.size, asked.seconds)


def _measure(folder: Path, size: int, seconds: int) -> int:
    path = folder / "pretended.bin"
    with path.open("wb") as file:
        file.truncate(size)
    more = '[upload]\ndrain_timeout = "0s"\n'
    with Sink(folder) as sink, Daemon(folder, sink, more=more) as daemon:
        daemon.move_in([path])
        time.sleep(seconds)
        sent = stored(daemon)
        _, rss = daemon.stop()
    part = part_size_for(size, 16 << 20)
    print("| | figure | at most |\n| --- | --- | --- |")
    print(f"| size of a part, MiB | {part / BLOCK:.0f} | |\n| sent, GiB | {sent / GIB:.1f} | |")
    print(f"| peak RSS, MiB | {rss / BLOCK:.1f} | {MOST_RSS / BLOCK:.0f} |\n")
    return 0 if sent and rss <= MOST_RSS else 1


if __name__ == "__main__":
    sys.exit(main())
