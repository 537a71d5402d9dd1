"""A burst: thousands of files moved into a watched folder at once, compared with s5cmd and ``rclone copy``.

``python -m benchmarks.burst [--server NAME] [--rounds N] [--files 10000] [--size 4096]``
With ``--files 2000 --size 1048576`` it is the table of middle-sized files.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks import peers
from benchmarks.dropped import dropped
from benchmarks.harness import (
    Goal,
    Usage,
    make_files,
    print_goals,
    print_usages,
    run_rounds,
    warm,
)
from benchmarks.options import each_server, options

SMALL = 64 << 10
MANY = 64
"""The ``upload.concurrency`` of a second contender; the default is 16, and s5cmd's 256."""
GOALS = {("sink", True): (1.5, 0.7), ("seaweedfs", True): (1.05, 0.8), ("sink", False): (1.3, 0.7)}
"""Files a second and CPU to s5cmd's, by server and whether the files are small; for other servers there is no goal."""


def main() -> None:
    """Measure, and print the tables."""
    asked = options(__doc__, files=10_000, size=4096)
    for server, folder in each_server(asked, f"{asked.files} x {asked.size >> 10} KiB"):
        _measure(server, folder, asked.files, asked.size, asked.rounds)


def _measure(server: str, folder: Path, count: int, size: int, rounds: int) -> None:
    files = make_files(folder / "data", count, size)
    warm(files)
    more = f"[upload]\nconcurrency = {MANY}"
    contenders = {
        "presignd": lambda to: dropped(folder, to, files),
        f"presignd, {MANY} at a time": lambda to: dropped(folder, to, files, more=more),
        "s5cmd": lambda to: peers.s5cmd(to, files[0].parent),
        "rclone copy": lambda to: peers.rclone(to, files[0].parent, "--transfers", "16", "--checkers", "16"),
    }
    found = run_rounds(server, contenders, rounds, folder)

    def rate(usage: Usage) -> float:
        return count / usage.wall

    def cpu(usage: Usage) -> float:
        """Milliseconds per file, without presignd's start, which a running daemon has done before."""
        return 1000 * usage.more.get("cpu_at_work", usage.cpu) / count

    print_usages(found, {"files/s": rate, "CPU ms a file": cpu, "peak RSS MiB": lambda u: u.rss / (1 << 20)})
    faster, cheaper = GOALS.get((server, size <= SMALL), (None, None))
    goals = [
        Goal("files a second, s5cmd", "s5cmd", rate, faster, inverse=True),
        Goal("CPU a file, s5cmd", "s5cmd", cpu, cheaper),
        Goal("files a second, rclone copy", "rclone copy", rate),
        Goal("CPU a file, rclone copy", "rclone copy", cpu),
    ]
    print_goals(found, goals)


if __name__ == "__main__":
    main()
