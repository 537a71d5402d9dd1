"""Look at candidates: open each below its folder, ask the kernel for writers, and take its fingerprint. Blocking."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from presignd.errors import Fault, FileFault
from presignd.model import Fingerprint
from presignd.pipeline.files.folder import Folder, Gone, NotRegular
from presignd.pipeline.files.hash import Prepared, Read, checksum_like, fingerprint_of, prepare_to_keep, read_at
from presignd.pipeline.files.ignore import Unfinished, beside, makes_wait
from presignd.pipeline.files.lease import WriterCheck, has_writer
from presignd.pipeline.settle.decide import Look
from presignd.pipeline.unit.folders import WatchMarkers, folder_of, marker_of
from presignd.runtime.heartbeat import beat
from presignd.system.filesystem import close_quietly

if TYPE_CHECKING:
    import threading

    from presignd.model import FileVersion

Wanted = Callable[[bytes, Look], Collection[str]]
"""Returns the algorithms by which to hash the file at a path, none if it must not be read."""


def not_wanted(_: bytes, __: Look) -> Collection[str]:
    """Return no algorithms: the file is not read."""
    return ()


class Looker:
    """Looks at the files of one watch.

    ``ready_marker`` is the watch's template, or ""; ``unfinished`` holds its unfinished downloads. ``markers`` are
    those by which the watch's folders were linked as a whole; None if each file is linked on its own.
    """

    def __init__(
        self,
        folder: Folder,
        check: WriterCheck,
        ready_marker: str,
        *,
        unfinished: Unfinished,
        monotonic: Callable[[], float],
        time_ns: Callable[[], int],
        markers: WatchMarkers | None = None,
    ) -> None:
        self._folder = folder
        self._leases = check.mode == "lease"
        self._marker = ready_marker
        self._markers = markers
        self._unfinished = unfinished
        self._monotonic = monotonic
        self._time_ns = time_ns

    @property
    def inline_limit(self) -> int:
        """How many paths can be looked at in the time a thread takes to start (``Folder.inline_limit``)."""
        return self._folder.inline_limit

    def look(self, paths: Sequence[bytes], wanted: Wanted = not_wanted, read: Read = read_at) -> list[Look]:
        """Look at each path once; read and hash the file if ``wanted`` returns algorithms for it."""
        return [self._look(path, wanted, read) for path in paths]

    def _look(self, path: bytes, wanted: Wanted, read: Read) -> Look:
        beat()
        begun = self._time_ns(), self._monotonic()
        try:
            fd = self._folder.open(path)
        except Fault as fault:
            return self._unread(path, begun, fault)
        except (Gone, NotRegular):
            return Look(None, *begun)
        try:
            # The writer first: a write after that shows in the fingerprint, as a ctime past read_ns.
            writer = has_writer(fd) if self._leases else None
            fingerprint = fingerprint_of(fd)
            look = self._found(path, fingerprint, begun, writer)
            algorithms = wanted(path, look)
            return look._replace(content=_content(fd, fingerprint, algorithms, read)) if algorithms else look
        except Fault as passing:
            return Look(None, *begun, fault=passing)
        finally:
            close_quietly(fd)

    def _unread(self, path: bytes, begun: tuple[int, float], fault: Fault) -> Look:
        """Return the look at a file that can't be opened."""
        try:
            return self._found(path, Fingerprint.of(self._folder.stat(path)), begun, None, fault)
        except (Gone, NotRegular, FileFault):
            return Look(None, *begun)
        except Fault as passing:
            return Look(None, *begun, fault=passing)

    def _found(
        self,
        path: bytes,
        fingerprint: Fingerprint,
        begun: tuple[int, float],
        writer: bool | None,
        fault: Fault | None = None,
    ) -> Look:
        download = self._download(path, fingerprint.size, begun[0])
        return Look(fingerprint, *begun, writer, self._missing(path), fault, download)

    def _missing(self, path: bytes) -> str:
        """Return the name of the ready marker that is missing; "" if it is there, or none is configured."""
        if not self._marker:
            return ""
        marked = folder_of(path) if self._markers else path
        marker = beside(self._marker, marked)
        name = marker.rpartition(b"/")[2].decode("utf-8", "backslashreplace")
        with suppress(Gone, NotRegular, Fault):
            found = self._folder.stat(marker)
            is_old = self._markers is not None and not self._markers.is_new(marked, marker_of(found))
            return f"{name} to be written anew" if is_old else ""
        return name

    def _download(self, path: bytes, size: int, now_ns: int) -> str:
        """Return the name of the unfinished download that the file at ``path`` waits for; "" for none."""
        for download in self._unfinished.of(path):
            try:
                age = (now_ns - self._folder.stat(download).st_mtime_ns) / 1e9
            except (Gone, NotRegular, FileFault):
                self._unfinished.forget(download)
                continue
            if makes_wait(download, size=size, age=age):
                return download.rpartition(b"/")[2].decode("utf-8", "backslashreplace")
        return ""

    def same_content(
        self, path: bytes, fingerprint: Fingerprint, known: FileVersion, stop: threading.Event
    ) -> bool | None:
        """Return whether the file's content has ``known.checksum``.

        None: it changed while it was read, is gone, can't be read now, or ``stop`` was set.
        """
        try:
            fd = self._folder.open(path)
        except (Gone, NotRegular, Fault):
            return None
        try:
            checksum = checksum_like(fd, known.checksum, known.size, known.part_size, stop=stop)
            unchanged = not stop.is_set() and fingerprint_of(fd) == fingerprint
        except Fault:
            return None
        finally:
            close_quietly(fd)
        return checksum == known.checksum if unchanged else None


def _content(fd: int, found: Fingerprint, algorithms: Collection[str], read: Read) -> Prepared | None:
    """Return the content of the file that was looked at; None if it changed or its sender must read it."""
    try:
        content = prepare_to_keep(fd, found.size, algorithms, read)
    except (Fault, BlockingIOError):
        return None
    return content if content.fingerprint == found else None
