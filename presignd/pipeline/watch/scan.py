"""Walk through a folder, by directory descriptor, and list what is there, whatever events were seen.

The walk blocks, so each batch is found in a thread; the next one is found only once it is wanted.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from typing import TYPE_CHECKING

from presignd.errors import Fault, lacks_descriptors
from presignd.pipeline.files.folder import Folder, Gone, NotRegular
from presignd.pipeline.files.unfinished import Unfinished
from presignd.runtime.heartbeat import beat

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator, Mapping

    from presignd.config import WatchConfig
    from presignd.errors import PresigndError
    from presignd.model import Listed
    from presignd.pipeline.files.ignore import Ignore

BATCH, MAX_BATCH = 1000, 4000
"""Files in a batch, which is one query to the ledger: fastest for whole directories. One directory may fill a batch up
to ``MAX_BATCH``."""

MIN_RESCAN = 60.0
SCAN_SHARE = 0.001
"""``rescan = "auto"``: every minute, or so far apart that scans take this share of a core (guarantee 9)."""


class Scan:
    """One walk from ``start`` (below the root; b"" for all) over the regular files that are not ignored.

    Symlinks are not followed, and files that vanish during the walk are left out. ``problems`` names what can't be
    read, once each; ``cut_short`` means that too many files were open. Downloads are noted in ``unfinished``;
    ``own_names`` are the paths with names of presignd's own. ``files``, ``directories`` and ``seconds`` (spent walking,
    not waiting) count up as it goes. Setting ``stop`` ends it.
    """

    def __init__(
        self,
        folder: Folder,
        ignore: Ignore,
        start: bytes = b"",
        *,
        recursive: bool = True,
        stop: threading.Event | None = None,
        unfinished: Unfinished | None = None,
        batch: int = BATCH,
        max_batch: int = MAX_BATCH,
    ) -> None:
        self._folder = folder
        self._batch, self._max_batch = batch, max_batch
        self._unfinished = unfinished or Unfinished()
        self._ignore = ignore
        self._recursive = recursive
        self.stop = stop or threading.Event()
        self._waiting = [] if ignore.ignores_directory(start) else [start]
        self.files = 0
        self.directories = 0
        self.seconds = 0.0
        self.problems: list[str] = []
        self.cut_short = False
        self.own_names: list[bytes] = []

    def batches(self) -> Iterator[list[Listed]]:
        """Yield files in batches. A batch ends with the directory that fills it, or after ``max_batch`` of one."""
        began = time.perf_counter()
        batch: list[Listed] = []
        for some in self._walk():
            batch += some
            if len(batch) >= self._batch:
                self._count(batch, began)
                yield batch
                batch, began = [], time.perf_counter()
        self._count(batch, began)
        if batch:
            yield batch

    async def in_thread(self) -> AsyncGenerator[list[Listed], None]:
        """Yield the batches, each found in a thread; the walk ends when this generator is closed."""
        batches = self.batches()
        try:
            while (batch := await asyncio.to_thread(next, batches, None)) is not None:
                yield batch
        finally:
            self.stop.set()

    def _count(self, batch: list[Listed], began: float) -> None:
        self.files += len(batch)
        self.seconds += time.perf_counter() - began

    def _walk(self) -> Iterator[list[Listed]]:
        while self._waiting and not self.stop.is_set():
            directory = self._waiting.pop()
            some: list[Listed] = []
            try:
                for one in self._list(directory):
                    some.append(one)
                    if len(some) == self._max_batch:
                        yield some
                        some = []
            except (Gone, NotRegular, Fault, OSError) as error:
                self._note_problem(directory, error)
            if some:  # with what was listed before an error
                yield some

    def _list(self, directory: bytes) -> Iterator[Listed]:
        """Yield one directory's files. Each costs hardly more than a ``stat``: no object, and usually no pattern."""
        fd = self._folder.open_directory(directory)
        self.directories += 1
        inside, below = directory + b"/" if directory else b"", list[bytes]()
        ordinary = self._ignore.ordinary_in(directory)
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    if self.stop.is_set():
                        return
                    beat()
                    path = inside + os.fsencode(entry.name)
                    try:
                        if entry.is_file(follow_symlinks=False):
                            if ordinary(entry.name) or self._sort_out(path):
                                st = entry.stat(follow_symlinks=False)
                                yield path, st.st_ino, st.st_size, st.st_mtime_ns, st.st_ctime_ns
                        elif self._recursive and entry.is_dir(follow_symlinks=False):
                            below.append(path)
                    except OSError as error:
                        self._note_problem(path, error)
        finally:
            os.close(fd)
            # By name, so that batches of neighbours are neighbours in the ledger's index too.
            self._waiting += sorted((path for path in below if not self._skip_directory(path)), reverse=True)

    def _sort_out(self, path: bytes) -> bool:
        """Return whether to yield the file at ``path``; note presignd's own names and unfinished downloads."""
        if self._ignore.is_own_name(path.rpartition(b"/")[2]):
            self.own_names.append(path)
            return False
        if self._ignore.ignores_file(path):
            self._unfinished.note(path)
            return False
        return True

    def _skip_directory(self, directory: bytes) -> bool:
        """Return whether a directory is ignored; note it, as it may be an unfinished download."""
        if self._ignore.ignores_directory(directory):
            self._unfinished.note(directory)
            return True
        return False

    def _note_problem(self, path: bytes, error: PresigndError | OSError) -> None:
        """Note a path that can't be read; one that vanished is no problem."""
        if not isinstance(error, (Gone, NotRegular, FileNotFoundError)):
            self.cut_short |= lacks_descriptors(error)
            self.problems.append(f"{path.decode('utf-8', 'backslashreplace') or '.'}: {error}")


def rescan_interval(watch: WatchConfig, cost: float, *, events: bool) -> float:
    """Return the seconds from the end of a scan that took ``cost`` seconds to the next one."""
    rescan = max(MIN_RESCAN, cost / SCAN_SHARE) if watch.rescan is None else watch.rescan
    return rescan if events else min(rescan, max(watch.poll_interval, cost))


def topmost(directories: Mapping[bytes, bool]) -> dict[bytes, bool]:
    """Return the directories without those that the scan of another one (True: with all below) covers."""
    chosen: dict[bytes, bool] = {}
    for directory in sorted(directories):
        above = (directory[:at] for at, byte in enumerate(directory) if byte == ord("/"))
        if not any(chosen.get(parent) for parent in above) and not (directory and chosen.get(b"")):
            chosen[directory] = directories[directory]
    return chosen
