"""Which watch a path belongs to, and what lies there now. Blocking: call it in a thread."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from presignd.model import Fingerprint

if TYPE_CHECKING:
    from collections.abc import Iterable

    from presignd.config import WatchConfig


@dataclass(frozen=True, slots=True)
class Place:
    """An absolute path, the watch it is in ("" for none) and its path below that watch's root."""

    absolute: bytes
    watch: str
    path: bytes


def locate(absolute: bytes, watches: Iterable[WatchConfig]) -> Place:
    """Find the watch whose folder holds ``absolute``, by its configured name or by where that leads."""
    for watch in watches:
        configured = os.fsencode(watch.path)
        for root in {configured, os.path.realpath(configured)}:
            if absolute.startswith(root.rstrip(b"/") + b"/"):
                return Place(absolute, watch.name, absolute[len(root.rstrip(b"/")) + 1 :])
    return Place(absolute, "", absolute)


def fingerprint_at(absolute: bytes) -> Fingerprint | None:
    """Return the fingerprint of the regular file at ``absolute``, None where there is none.

    Nothing is followed: a path through a symlink holds nothing of a watch. Raises OSError where the
    folder can't be looked into.
    """
    folder = os.path.dirname(absolute)  # noqa: PTH120 - paths are bytes
    if os.path.realpath(folder) != folder:
        return None
    try:
        found = os.lstat(absolute)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return Fingerprint.of(found) if stat.S_ISREG(found.st_mode) else None
