"""Large files, 4 x 1 GiB: presignd compared with s5cmd, ``rclone copy`` and parallel ``curl -T``.

``python -m benchmarks.large [--server NAME] [--rounds N] [--files N] [--size BYTES]``
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

GIB = 1 << 30
GOALS = {"sink": (0.35, 2.0, 0.35), "sink-https": (0.45, 1.2, 0.45)}
"""Wall time to s5cmd's and to unchecked curl's, and CPU time to s5cmd's, by server."""


def wall(usage: Usage) -> float:
    """Return seconds of wall time."""
    return usage.wall


def cpu(usage: Usage) -> float:
    """Return CPU seconds of the whole process tree."""
    return usage.cpu


def main() -> None:
    """Measure, and print the tables."""
    asked = options(__doc__, files=4, size=GIB)
    for server, folder in each_server(asked, f"{asked.files} x {asked.size / GIB:.3g} GiB"):
        _measure(server, folder, asked.files, asked.size, asked.rounds)


def _measure(server: str, folder: Path, count: int, size: int, rounds: int) -> None:
    files = make_files(folder / "data", count, size)
    warm(files)
    md5 = peers.md5sum(files)
    contenders = {
        "presignd": lambda to: dropped(folder, to, files),
        "s5cmd": lambda to: peers.s5cmd(to, files[0].parent),
        "rclone copy": lambda to: peers.rclone(to, files[0].parent),
        "curl -T, unchecked": lambda to: peers.curl(to, files),
    }
    found = run_rounds(server, contenders, rounds, folder)
    found["curl -T and an MD5"] = [
        Usage(u.wall + md5.wall, u.cpu + md5.cpu, max(u.rss, md5.rss)) for u in found["curl -T, unchecked"]
    ]
    gib = count * size / GIB
    print_usages(
        found,
        {"wall s": wall, "CPU s/GiB": lambda u: u.cpu / gib, "peak RSS MiB": lambda u: u.rss / (1 << 20)},
    )
    to_s5cmd, to_curl, cpu_to_s5cmd = GOALS.get(server, (None, None, None))
    goals = [
        Goal("wall, s5cmd", "s5cmd", wall, to_s5cmd),
        Goal("wall, rclone copy", "rclone copy", wall),
        Goal("wall, curl and an MD5", "curl -T and an MD5", wall),
        Goal("wall, curl unchecked", "curl -T, unchecked", wall, to_curl),
        Goal("CPU, s5cmd", "s5cmd", cpu, cpu_to_s5cmd),
        Goal("CPU, rclone copy", "rclone copy", cpu),
    ]
    print_goals(found, goals)


if __name__ == "__main__":
    main()
