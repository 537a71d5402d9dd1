"""The newest links, read from the end of the files."""

from __future__ import annotations

import os
from itertools import islice
from typing import TYPE_CHECKING, Any

from presignd.links.format import decode
from presignd.links.reader import close_all, open_all

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

USUAL_LINE = 2048
"""Bytes that a line rarely exceeds; so many times ``count`` are read of each file, and no more."""


def last_links(file: Path, count: int) -> list[dict[str, Any]]:
    """Return the ``count`` newest links (fewer where lines are very long), newest first, with their URLs.

    Blocking; raises ``OSError`` where a file can't be read, returns nothing where there is none.
    """
    there = open_all(file)
    try:
        return list(islice(_newest_first(there, count), count))
    finally:
        close_all(there)


def _newest_first(there: list[int], count: int) -> Iterator[dict[str, Any]]:
    for fd in reversed(there):
        size = os.fstat(fd).st_size
        start = max(0, size - count * USUAL_LINE)
        *lines, _torn = os.pread(fd, size - start, start).split(b"\n")
        for line in reversed(lines if start == 0 else lines[1:]):
            if (document := decode(line)) is not None:
                yield document
