"""The options that the tables' commands share."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import SERVERS


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for: servers by name, rounds, how many files of how many bytes, where data goes."""

    servers: list[str]
    rounds: int
    files: int
    size: int
    folder: Path | None


def options(about: str | None, *, files: int, size: int, rounds: int = 3) -> Options:
    """Read the command line; the defaults are the table's."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", choices=sorted(SERVERS), action="append", help="default: each of them")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--files", type=int, default=files)
    parser.add_argument("--size", type=int, default=size, help="bytes a file")
    parser.add_argument(
        "--folder", type=Path, help="where data and servers go; default: the folder for temporary files"
    )
    asked = parser.parse_args()
    return Options(asked.server or list(SERVERS), asked.rounds, asked.files, asked.size, asked.folder)
