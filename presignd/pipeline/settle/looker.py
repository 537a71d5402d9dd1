"""Look at candidates: open each below its folder, ask the kernel for writers, and take its fingerprint. Blocking.

The look that finds a file complete also reads it, if it is tiny.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, TypeAlias

from presignd.errors import Fault, FileFault
from presignd.model import Fingerprint
from presignd.pipeline.files.folder import Folder, Gone, NotRegular
from presignd.pipeline.files.hash import Prepared, Read, checksum_like, fingerprint_of, read_at
from presignd.pipeline.files.ignore import Unfinished, beside, makes_wait
from presignd.pipeline.files.lease import WriterCheck, has_writer
from presignd.pipeline.settle.decide import LOCAL_PRECISION, NETWORK_PRECISION, Look, Rules, decide
from presignd.pipeline.stage import Ahead
from presignd.pipeline.unit.folders import WatchMarkers, folder_of, marker_of
from presignd.runtime.heartbeat import current_heart
from presignd.s3.checksums import checksum_of
from presignd.system.filesystem import close_quietly, has_fine_times, is_network

if TYPE_CHECKING:
    import threading

    from presignd.config import WatchConfig
    from presignd.model import FileVersion

ReadAhead: TypeAlias = Callable[[str], Ahead | None]
"""Returns which complete files of a watch are read by the look; None if all are read later. Called in threads."""


class Looker:
    """Looks at the files of one watch, and decides by the watch's rules whether they are complete.

    ``unfinished`` holds the watch's unfinished downloads. ``markers`` are those by which the watch's folders were
    linked as a whole; None if each file is linked on its own.
    """

    def __init__(
        self,
        watch: WatchConfig,
        folder: Folder,
        check: WriterCheck,
        *,
        unfinished: Unfinished,
        ahead: ReadAhead,
        markers: WatchMarkers | None = None,
    ) -> None:
        self._watch, self._marker = watch.name, watch.ready_marker
        self._rules = Rules.of(watch.settle, _timestamp_precision(folder.fd))
        self._folder = folder
        self._leases = check.mode == "lease"
        self._unfinished, self._ahead, self._markers = unfinished, ahead, markers

    @property
    def inline_limit(self) -> int:
        """How many paths can be looked at in the time a thread takes to start (``Folder.inline_limit``)."""
        return self._folder.inline_limit

    def look(self, paths: Iterable[tuple[bytes, Look | None]], read: Read = read_at) -> list[Look]:
        """Look at each path once and decide, by the look before; read a complete file that is tiny."""
        ahead, heart, looks = self._ahead(self._watch), current_heart(), list[Look]()
        for path, before in paths:
            heart.beat()
            looks.append(self._look(path, before, read, ahead))
        return looks

    def _look(self, path: bytes, before: Look | None, read: Read, ahead: Ahead | None) -> Look:
        now = time.monotonic()
        look = Look(time.time_ns(), now, now)
        try:
            fd, st = self._folder.open_with_stat(path)
            try:
                look.writer = has_writer(fd) if self._leases else None
                found = Fingerprint.of(st)
                self._decide(look, path, found, before)
                if look.wait is None:
                    look.content = _content(fd, found, ahead, read)
                    # Once more, after the writer check and the read: a write since then shows, as a ctime past read_ns.
                    if (after := fingerprint_of(fd)) != found:
                        look.content = None
                        self._decide(look, path, after, before)
            finally:
                close_quietly(fd)
        except (Gone, NotRegular):
            pass
        except Fault as fault:
            look = self._unread(path, Look(look.read_ns, now, now, fault=fault), before)
        return look

    def _unread(self, path: bytes, look: Look, before: Look | None) -> Look:
        """Return the look at a file that can't be opened, or not be read now."""
        try:
            self._decide(look, path, Fingerprint.of(self._folder.stat(path)), before)
        except (Gone, NotRegular, FileFault):
            return Look(look.read_ns, look.seen_at, look.since)
        except Fault as passing:
            look.fingerprint, look.fault = None, passing
            look.wait = decide(look, self._rules)
        return look

    def _decide(self, look: Look, path: bytes, fingerprint: Fingerprint, before: Look | None) -> None:
        look.fingerprint = fingerprint
        if before:
            look.follow(before)
        if self._marker:
            look.missing = self._missing(path)
        if path in self._unfinished.by_file:
            look.download = self._download(path, fingerprint.size, look.read_ns)
        look.wait = decide(look, self._rules)

    def _missing(self, path: bytes) -> str:
        """Return the name of the ready marker that is missing; "" if it is there."""
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
        for download in self._unfinished.by_file.get(path, ()):
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


def _content(fd: int, found: Fingerprint, ahead: Ahead | None, read: Read) -> Prepared | None:
    """Return what a tiny file holds; None for another, and if its size changed or its sender must read it."""
    if ahead is None or found.size > ahead.size:
        return None
    try:
        data = bytes(read(fd, found.size + 1, 0))  # one byte more: this shows growth
    except (Fault, BlockingIOError):
        return None
    if len(data) != found.size:
        return None
    return Prepared(None, found, {algorithm: checksum_of(data, algorithm) for algorithm in ahead.algorithms}, data)


def _timestamp_precision(folder: int) -> float:
    """Return for how many seconds after its last change a file may change again and look the same."""
    if is_network(folder):
        return NETWORK_PRECISION
    return 0.0 if has_fine_times(folder) else LOCAL_PRECISION
