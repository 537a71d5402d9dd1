"""Rename a file to the first free name of a series: ``name.ext``, ``name~2.ext``, ``name~3.ext``. Blocking.

Names are bytes, one component each; ``OSError`` comes as the system raises it.
"""

from __future__ import annotations

import os
import posixpath
from contextlib import suppress
from itertools import chain, count
from typing import TYPE_CHECKING

from presignd.system.durable import rename_noreplace

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME_MAX = 255
"""Bytes in one name, on every filesystem in common use (limits.h)."""

_CONTINUATION = range(0x80, 0xC0)
"""UTF-8 bytes that continue a character: a name isn't cut before one."""


def rename_to_free(from_dir: int, name: bytes, to_dir: int, wanted: bytes) -> bytes:
    """Rename to the first free name of ``numbered_names(wanted)``; return that name.

    A name that is this same file already (a crash between link and unlink) counts as free.
    """
    candidates = numbered_names(wanted)
    while True:
        candidate = next(candidates)
        try:
            rename_noreplace(from_dir, name, to_dir, candidate)
        except FileExistsError:
            if not _is_same(from_dir, name, to_dir, candidate):
                continue
            os.unlink(name, dir_fd=from_dir)
        return candidate


def _is_same(from_dir: int, name: bytes, to_dir: int, other: bytes) -> bool:
    with suppress(FileNotFoundError):
        one = os.stat(name, dir_fd=from_dir, follow_symlinks=False)
        return os.path.samestat(one, os.stat(other, dir_fd=to_dir, follow_symlinks=False))
    return False


def numbered_names(name: bytes) -> Iterator[bytes]:
    """Yield ``name.ext``, ``name~2.ext``, ``name~3.ext`` …, each within 255 bytes."""
    stem, suffix = posixpath.splitext(name)
    return chain([name], (_with_number(stem, suffix, number) for number in count(2)))


def _with_number(stem: bytes, suffix: bytes, number: int) -> bytes:
    mark = b"~%d" % number
    suffix = suffix[: NAME_MAX - len(mark) - 1]
    room = NAME_MAX - len(mark) - len(suffix)
    if len(stem) > room:
        while room > 1 and stem[room] in _CONTINUATION:
            room -= 1
        stem = stem[:room]
    return stem + mark + suffix
