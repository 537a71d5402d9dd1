"""What stable links cost a daemon in a burst: against presigned ones, each with a broker that signs.

``python -m benchmarks.stable [--server NAME] [--rounds N] [--files 10000] [--size 4096]``
The broker and its state (SQLite) are on the server's core; what counts is the CPU time of the daemon's process. Ends
with 1 where the median of the differences is above ``GOAL``.
"""

from __future__ import annotations

import shutil
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from benchmarks.dropped import dropped
from benchmarks.harness import Usage, make_files, print_usages, run_rounds, spread, warm
from benchmarks.options import each_server, options
from benchmarks.servers import BUCKET, Server
from tests.stable import Sharing

GOAL = 0.1
"""Milliseconds of CPU that a stable link may cost more."""


def main() -> int:
    """Measure, and print the table."""
    asked = options(__doc__, files=10_000, size=4096)
    differences = [
        _measure(server, folder, asked.files, asked.size, asked.rounds)
        for server, folder in each_server(asked, f"{asked.files} x {asked.size >> 10} KiB by a broker")
    ]
    return int(any(each > GOAL for each in differences))


def _measure(server: str, folder: Path, count: int, size: int, rounds: int) -> float:
    """Print the figures of a server; return the median of the differences, in milliseconds a file."""
    files = make_files(folder / "data", count, size)
    warm(files)
    kinds = ("stable", "presigned")
    contenders = {kind: partial(_burst, folder, files, kind) for kind in kinds}
    found = run_rounds(server, contenders, rounds, folder)

    def cpu(usage: Usage) -> float:
        return 1000 * usage.more["cpu_at_work"] / count

    print_usages(found, {"files/s": lambda usage: count / usage.wall, "CPU ms a file": cpu})
    more = [cpu(stable) - cpu(presigned) for stable, presigned in zip(*(found[kind] for kind in kinds), strict=True)]
    print(f"a stable link takes {spread(more, '{:.3f}')} ms of the daemon's CPU more (goal: {GOAL} at most)\n")
    return statistics.median(more)


def _burst(folder: Path, files: Sequence[Path], kind: str, server: Server) -> Usage:
    with _broker(folder / "broker", server) as presign:
        return dropped(folder, server, files, watch=f'links = "{kind}"', presign=presign)


@contextmanager
def _broker(folder: Path, server: Server) -> Iterator[str]:
    """Run a broker with a new state; yield the daemon's [presign]."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    broker = Sharing(folder, server, BUCKET)  # type: ignore[arg-type] # all that is used of a store
    text = broker.file.read_text().replace("[store]", '[store]\nregion = "us-east-1"').replace("debug", "info")
    broker.configure(text)
    (folder / "token").write_text(broker.secret)
    (folder / "token").chmod(0o600)
    try:
        broker.start()
        yield f"""[presign]
kind = "broker"
url = "{broker.url}"
token_file = "{folder / "token"}"
endpoint = "{server.endpoint}"
region = "us-east-1"
"""
    finally:
        broker.end()


if __name__ == "__main__":
    sys.exit(main())
