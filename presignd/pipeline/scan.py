"""A walk over a folder, by directory descriptor: what is really there, whatever the events said.

It blocks, so it runs in a thread; each batch is one turn there, and the walk goes no faster than its
batches are taken.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from presignd.errors import NO_DESCRIPTORS, Fault
from presignd.heartbeat import beat
from presignd.model import Fingerprint
from presignd.pipeline.folder import Folder, Gone, NotRegular

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    from presignd.pipeline.ignore import Ignore

BATCH = 500
"""Files in a batch: one ledger query answers for them."""

Found = tuple[bytes, Fingerprint]


class Scan:
    """One walk from ``start`` (below the root; b"" for all) over the regular files that are not ignored.

    Symlinks are not followed, what vanishes under way is left out, and what can't be read is named in
    ``problems``, once each, and ``cut_short`` tells that too many files were open for
    it; ``own`` are the paths with names of our own. Setting ``stop`` ends it early.
    ``files``, ``directories`` and ``seconds`` (spent walking, not waiting) count up as it goes.
    """

    def __init__(
        self,
        folder: Folder,
        ignore: Ignore,
        start: bytes = b"",
        *,
        recursive: bool = True,
        stop: threading.Event | None = None,
    ) -> None:
        self._folder = folder
        self._ignore = ignore
        self._recursive = recursive
        self.stop = stop or threading.Event()
        self._waiting = [start]
        self.files = 0
        self.directories = 0
        self.seconds = 0.0
        self.problems: list[str] = []
        self.cut_short = False
        self.own: list[bytes] = []

    def batches(self) -> Iterator[list[Found]]:
        """Yield what is found, at most ``BATCH`` at a time."""
        began = time.perf_counter()
        batch: list[Found] = []
        for found in self._walk():
            batch.append(found)
            if len(batch) == BATCH:
                self._count(batch, began)
                yield batch
                batch, began = [], time.perf_counter()
        self._count(batch, began)
        if batch:
            yield batch

    async def in_thread(self) -> AsyncIterator[list[Found]]:
        """Yield the batches, each found in a thread; the walk ends when nobody takes them any more."""
        batches = self.batches()
        try:
            while (batch := await asyncio.to_thread(next, batches, None)) is not None:
                yield batch
        finally:
            self.stop.set()

    def _count(self, batch: list[Found], began: float) -> None:
        self.files += len(batch)
        self.seconds += time.perf_counter() - began

    def _walk(self) -> Iterator[Found]:
        while self._waiting and not self.stop.is_set():
            directory = self._waiting.pop()
            with self._surviving(directory):
                yield from self._list(directory)

    def _list(self, directory: bytes) -> Iterator[Found]:
        fd = self._folder.open_directory(directory)
        self.directories += 1
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    if self.stop.is_set():
                        return
                    yield from self._entry(directory, entry)
        finally:
            os.close(fd)

    def _entry(self, directory: bytes, entry: os.DirEntry[str]) -> Iterator[Found]:
        beat()
        name = os.fsencode(entry.name)
        path = directory + b"/" + name if directory else name
        with self._surviving(path):
            if entry.is_dir(follow_symlinks=False):
                if self._recursive and not self._ignore.directory(path):
                    self._waiting.append(path)
            elif entry.is_file(follow_symlinks=False):
                if self._ignore.own(name):
                    self.own.append(path)
                elif not self._ignore.file(path):
                    yield path, Fingerprint.of(entry.stat(follow_symlinks=False))

    @contextmanager
    def _surviving(self, path: bytes) -> Iterator[None]:
        """Go on with the next one where this one vanished or can't be read."""
        try:
            yield
        except (Gone, NotRegular, FileNotFoundError):
            return
        except (Fault, OSError) as error:
            self.cut_short |= _is_for_descriptors(error)
            self.problems.append(f"{path.decode('utf-8', 'backslashreplace') or '.'}: {error}")


def _is_for_descriptors(error: Fault | OSError) -> bool:
    return error.code == "too_many_files" if isinstance(error, Fault) else error.errno in NO_DESCRIPTORS


def topmost(directories: Mapping[bytes, bool]) -> dict[bytes, bool]:
    """Leave out directories that the scan of another one (True: with all below) covers."""
    chosen: dict[bytes, bool] = {}
    for directory in sorted(directories):
        above = (directory[:at] for at, byte in enumerate(directory) if byte == ord("/"))
        if not any(chosen.get(parent) for parent in above) and not (directory and chosen.get(b"")):
            chosen[directory] = directories[directory]
    return chosen
