"""The options that the tables' commands share."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import SERVERS, bench_folder, place_server, print_head


@dataclass(frozen=True, slots=True)
class Options:
    """The options: servers by name, rounds, number and size of files, the folder for data."""

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


def each_server(asked: Options, what: str) -> Iterator[tuple[str, Path]]:
    """Yield each server and the folder for all of them, with the head of its table printed."""
    with bench_folder(asked.folder) as folder:
        for server in asked.servers:
            place_server(server)
            print_head(f"{what} on {server}", asked.rounds)
            yield server, folder
