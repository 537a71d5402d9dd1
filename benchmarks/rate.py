"""``max_rate`` on the wire: what the sink gets in ten seconds, of large files and small ones at once.

``python -m benchmarks.rate [--seconds N] [--folder F]``. Ends with 1 where it is more than 5 % off.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from benchmarks.dropped import Daemon
from benchmarks.harness import bench_folder, make_files, print_head
from benchmarks.servers import Sink, until

RATES = (1_000_000, 20_000_000, 100_000_000)
LARGE, SMALL = 1 << 30, 16 << 10
OFF = 0.05


def main() -> int:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    with bench_folder(asked.folder) as folder:
        files = [*make_files(folder / "data", 2, LARGE, "large"), *make_files(folder / "data", 200, SMALL, "small")]
        print_head(f"max_rate over {asked.seconds} s on the sink", 1)
        print("| max_rate, bytes/s | on the wire, bytes/s | off |\n| --- | --- | --- |")
        off = [_measure(folder, files, rate, asked.seconds) for rate in RATES]
    return 0 if max(map(abs, off)) <= OFF else 1


def _measure(folder: Path, files: list[Path], rate: int, seconds: int) -> float:
    more = f'[upload]\nmax_rate = {rate}\ndrain_timeout = "0s"\n'
    with Sink(folder) as sink, Daemon(folder, sink, more=more) as daemon:
        daemon.move_in(files)
        until(lambda: got(sink) > rate, "the first second's bytes", 60)
        began, before = time.perf_counter(), got(sink)
        time.sleep(seconds)
        found = (got(sink) - before) / (time.perf_counter() - began)
        daemon.stop()
        daemon.give_back(files)
    print(f"| {rate:,} | {found:,.0f} | {found / rate - 1:+.1%} |", flush=True)
    return found / rate - 1


def got(sink: Sink) -> int:
    """Return the bytes that the sink has read, heads included."""
    return int(sink.stats()["requests"]["bytes"])


if __name__ == "__main__":
    sys.exit(main())
