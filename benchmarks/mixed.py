"""Fairness: 8 x 1 GiB and 2,000 x 16 KiB dropped together, compared with the small ones alone and the large ones alone.

``python -m benchmarks.mixed [--server NAME] [--rounds N] [--files N] [--size BYTES]``
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.dropped import Daemon
from benchmarks.harness import SERVERS, bench_folder, make_files, place_server, print_head, spread, warm
from benchmarks.options import options

GIB = 1 << 30
SMALL_COUNT, SMALL_SIZE = 2000, 16 << 10
GOALS = {"small": 2.0, "large": 1.3}


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds from the drop: the small files' median until its link, and the large ones' last link."""

    small: float = 0.0
    large: float = 0.0


def main() -> None:
    """Measure, and print the tables."""
    asked = options(__doc__, files=8, size=GIB, rounds=2)
    with bench_folder(asked.folder) as folder:
        small = make_files(folder / "small", SMALL_COUNT, SMALL_SIZE, "small")
        large = make_files(folder / "large", asked.files, asked.size, "large")
        for server in asked.servers:
            place_server(server)
            told = (
                f"{asked.files} x {asked.size / GIB:.3g} GiB and {SMALL_COUNT:,} x {SMALL_SIZE >> 10} KiB on {server}"
            )
            print_head(told, asked.rounds)
            _print([_round(server, folder, small, large) for _ in range(asked.rounds)])


def _round(server: str, folder: Path, small: list[Path], large: list[Path]) -> tuple[Times, Times, Times]:
    warm([*small, *large])
    alone = (_drop(server, folder, small, []), _drop(server, folder, [], large))
    found = (*alone, _drop(server, folder, small, large))
    print(f"  {found}", file=sys.stderr, flush=True)
    return found


def _drop(server: str, folder: Path, small: Sequence[Path], large: Sequence[Path]) -> Times:
    """Drop the files together, the large ones first, so that they are in progress when the small ones arrive."""
    files = [*large, *small]
    with SERVERS[server](folder) as fresh, Daemon(folder, fresh) as daemon:
        began = time.time()
        daemon.move_in(files)
        try:
            daemon.until_linked(len(files))
        finally:
            daemon.give_back(files)
        daemon.stop()
        linked = {Path(path).name: at - began for path, at in daemon.linked_at().items()}
    of_small = [linked[path.name] for path in small]
    of_large = [linked[path.name] for path in large]
    return Times(statistics.median(of_small) if small else 0.0, max(of_large, default=0.0))


def _print(rounds: Sequence[tuple[Times, Times, Times]]) -> None:
    print("| | alone, s | together, s | ratio | goal | |\n| --- | --- | --- | --- | --- | --- |")
    for row, words in (("small", "small files' median to the link"), ("large", "large files' last link")):
        alone = [getattr(small if row == "small" else large, row) for small, large, _ in rounds]
        together = [getattr(both, row) for _, _, both in rounds]
        ratios = [ours / before for ours, before in zip(together, alone, strict=True)]
        met = "met" if statistics.median(ratios) <= GOALS[row] else "**not met**"
        print(f"| {words} | {spread(alone)} | {spread(together)} | {spread(ratios)} | ≤ {GOALS[row]} | {met} |")
    print()


if __name__ == "__main__":
    main()
