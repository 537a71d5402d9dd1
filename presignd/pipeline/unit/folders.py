"""The folders of a watch: find those whose ready marker is new, hash their files, remove empty ones. Blocking.

A marker is new if it was written since the folder's last unit. A unit holds what was there when its marker was written,
so a file that changes later waits until the marker is written again.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from presignd.errors import Fault
from presignd.ledger.units import Marker
from presignd.pipeline.files.folder import Folder, Gone, NotRegular
from presignd.pipeline.files.hash import checksum_like, fingerprint_of
from presignd.pipeline.files.ignore import beside
from presignd.pipeline.files.lease import has_writer
from presignd.runtime.heartbeat import beat
from presignd.system.filesystem import reading

if TYPE_CHECKING:
    import threading
    from collections.abc import Mapping

    from presignd.config import WatchConfig
    from presignd.model import FileVersion
    from presignd.pipeline.files.ignore import Ignore


def folder_of(path: bytes) -> bytes:
    """Return the folder (below the watch's root) whose unit the file at ``path`` belongs to."""
    return path.partition(b"/")[0]


# --- markers ------------------------------------------------------------------------------------------
class WatchMarkers:
    """The markers of the newest units of one watch, by folder. May be called in any thread."""

    def __init__(self) -> None:
        self._used: dict[bytes, Marker] | None = None

    def load(self, used: Mapping[bytes, Marker]) -> None:
        """Load the markers that the ledger has; until then no marker is new."""
        self._used = dict(used)

    def note(self, folder: bytes, marker: Marker) -> None:
        """Note that a unit of the folder was made by this marker."""
        assert self._used is not None, "units are made once the ledger was read"
        self._used[folder] = marker

    def is_new(self, folder: bytes, found: Marker) -> bool:
        """Return whether the marker of a folder was written since the folder's newest unit."""
        return self._used is not None and self._used.get(folder) != found


class Markers:
    """The markers of all watches; they outlive a reload."""

    def __init__(self) -> None:
        self._watches: dict[str, WatchMarkers] = {}

    def of(self, watch: str) -> WatchMarkers:
        """Return the markers of one watch."""
        return self._watches.setdefault(watch, WatchMarkers())


def marker_of(st: os.stat_result) -> Marker:
    """Return the marker in a stat result."""
    return Marker(st.st_size, st.st_mtime_ns)


# --- on disk ------------------------------------------------------------------------------------------
def marked_folders(folder: Folder, watch: WatchConfig, ignore: Ignore) -> list[tuple[bytes, Marker]]:
    """Return the folders at the top of a watch that have their ready marker, by name; [] while the root is away."""
    found = list[tuple[bytes, Marker]]()
    for name in sorted(_folders_in(folder, b"")):
        beat()
        if not ignore.ignores_directory(name):
            with suppress(Gone, NotRegular, Fault):
                found.append((name, marker_of(folder.stat(beside(watch.ready_marker, name)))))
    return found


class UnitLook(NamedTuple):
    """Whether a path is a folder, and whether its ready marker was written since its newest unit."""

    there: bool
    anew: bool


def look_at_unit(folder: Folder, watch: WatchConfig, markers: WatchMarkers, name: bytes) -> UnitLook:
    """Look at a folder at the top of a watch."""
    there = anew = False
    with suppress(Gone, NotRegular, Fault):
        there = stat.S_ISDIR(folder.stat(name).st_mode)
        anew = there and markers.is_new(name, marker_of(folder.stat(beside(watch.ready_marker, name))))
    return UnitLook(there, anew)


def sha256_of(folder: Folder, version: FileVersion, stop: threading.Event) -> str:
    """Return the SHA-256 (hex) of a version's file; "" if it changed, has a writer, is unreadable, or at ``stop``."""
    algorithm, _, value = version.checksum.partition(":")
    if algorithm == "sha256" and "-" not in value:
        return value
    with suppress(Gone, NotRegular, Fault), reading(folder.open(version.path)) as fd:
        if not has_writer(fd) and fingerprint_of(fd) == version.fingerprint:
            checksum = checksum_like(fd, "sha256:", version.size, stop=stop)
            if not stop.is_set() and fingerprint_of(fd) == version.fingerprint:
                return checksum.partition(":")[2]
    return ""


def remove_empty(folder: Folder, path: bytes) -> None:
    """Remove a folder and those below it if they are empty: files that are no members stay, with their folders."""
    found, waiting = list[bytes](), [path]
    while waiting:
        beat()
        found.append(waiting.pop())
        waiting += [found[-1] + b"/" + name for name in _folders_in(folder, found[-1])]
    for each in reversed(found):
        with suppress(Gone, NotRegular, Fault, OSError), folder.dir_fd(each) as parent:
            os.rmdir(each.rpartition(b"/")[2], dir_fd=parent)


def _folders_in(folder: Folder, path: bytes) -> list[bytes]:
    """Return the names of the folders in the one at ``path``, [] if it can't be listed."""
    unlistable = suppress(Gone, NotRegular, Fault, OSError)
    with unlistable, reading(folder.open_directory(path)) as fd, os.scandir(fd) as entries:
        return [os.fsencode(one.name) for one in entries if one.is_dir(follow_symlinks=False)]
    return []
