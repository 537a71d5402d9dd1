"""Which watch a path belongs to, and what lies there now. Blocking: call it in a thread."""

from __future__ import annotations

import errno
import os
import stat
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING

from presignd.model import Fingerprint
from presignd.system.trust import FOLDER, parent_of

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


def forms(absolute: bytes) -> list[bytes]:
    """Return ``absolute`` and the paths that look the same: folder and name each composed (NFC) or decomposed (NFD).

    macOS, and what is copied from it, writes names decomposed; what a keyboard types is composed.
    """
    try:
        folder, slash, name = absolute.decode().rpartition("/")
    except UnicodeDecodeError:
        return [absolute]
    looks_so = [(above + slash + below).encode() for above in _forms(folder) for below in _forms(name)]
    return list(dict.fromkeys(looks_so))


def _forms(text: str) -> list[str]:
    return [text, unicodedata.normalize("NFC", text), unicodedata.normalize("NFD", text)]


def fingerprint_at(absolute: bytes) -> Fingerprint | None:
    """Return the fingerprint of the regular file at ``absolute``, None where there is none.

    Nothing is followed, at no component and whatever is swapped meanwhile: a path through a symlink holds nothing of
    a watch. Raises OSError where the folder can't be looked into.
    """
    *folders, name = absolute.split(b"/")
    if {b".", b".."} & {*folders, name}:
        return None
    root = os.open("/", FOLDER)
    try:
        with parent_of(root, [*filter(None, folders), name]) as (at, _):
            found = os.stat(name, dir_fd=at, follow_symlinks=False)
    except OSError as error:
        if error.errno in _NOTHING:
            return None
        raise
    finally:
        os.close(root)
    return Fingerprint.of(found) if stat.S_ISREG(found.st_mode) else None


_NOTHING = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})
