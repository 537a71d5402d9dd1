"""What an object is compared with: its file, wherever it is now, or the receipt of a file that is gone."""

from __future__ import annotations

import asyncio
import os
import posixpath
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import takewhile
from typing import Any, ParamSpec, TypeVar

from presignd.config import WatchConfig
from presignd.errors import PresigndError, Refused, fault
from presignd.model import FileVersion
from presignd.pipeline.files.folder import Folder, numbered_names
from presignd.pipeline.files.hash import Digest, checksum_like, fingerprint_of, read_at
from presignd.pipeline.finish.target import target_of
from presignd.s3.checksums import algorithm_of
from presignd.system.filesystem import close_quietly
from presignd.system.threads import in_background
from presignd.verify.proofs import Against

P = ParamSpec("P")
T = TypeVar("T")

SAME_MTIME_NS = 2_000_000_000
"""How far the mtime of a file that was moved to another filesystem may differ: FAT stores steps of two seconds."""


class DiffersError(Exception):
    """The object has another byte at ``offset`` than the file."""

    def __init__(self, offset: int) -> None:
        self.offset = offset


class OpenFile:
    """A file, open for reading. Threads read it; ``close`` stops them, and the last one closes the descriptor."""

    def __init__(self, fd: int, against: Against) -> None:
        self._fd, self.against = fd, against
        self._stop = threading.Event()
        self._reading: asyncio.Future[Any] | None = None
        self._before = fingerprint_of(fd)
        self._offset = 0

    @property
    def size(self) -> int:
        """The file's size in bytes."""
        return self._before.size

    async def checksum_like(self, like: str, part_size: int) -> str:
        """Return the content's checksum in the form of ``like``."""
        return await self._read(checksum_like, self._fd, like, self.size, part_size, stop=self._stop)

    def restart(self) -> None:
        """Begin a comparison with an object's bytes."""
        self._offset = 0

    async def take(self, piece: bytes) -> None:
        """Compare the next bytes of the object; raise ``DiffersError``."""
        offset, self._offset = self._offset, self._offset + len(piece)
        ours = await self._read(read_at, self._fd, len(piece), offset)
        if ours != piece:
            raise DiffersError(offset + _common(ours, piece))

    def is_equal(self) -> bool:
        """Return whether the bytes that ``take`` compared are the whole file."""
        return self._offset == self.size

    def require_unchanged(self) -> None:
        """Raise ``changed_while_uploading`` if the file changed since it was opened."""
        if fingerprint_of(self._fd) != self._before:
            raise fault("changed_while_uploading")

    async def _read(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        reading = asyncio.ensure_future(in_background(call, *args, **kwargs))
        self._reading = reading
        return await asyncio.shield(reading)

    def close(self) -> None:
        """Close the file, once no thread reads from it."""
        self._stop.set()
        if self._reading is None or self._reading.done():
            close_quietly(self._fd)
        else:
            self._reading.add_done_callback(self._close_after)

    def _close_after(self, read: asyncio.Future[Any]) -> None:
        _ = read.cancelled() or read.exception()  # no caller waits for it any more
        close_quietly(self._fd)


class Receipt:
    """The recorded checksum of a file that is gone, or that only another user can read."""

    against = Against.RECEIPT

    def __init__(self, version: FileVersion) -> None:
        self._version, self.size = version, version.size
        self.restart()

    async def checksum_like(self, like: str, _part_size: int) -> str:
        """Return the recorded checksum if it has the form of ``like``, else ""."""
        ours = self._version.checksum
        return ours if _form(ours) == _form(like) else ""

    def restart(self) -> None:
        """Begin to hash an object's bytes."""
        self._digest = Digest(self._version.checksum or "md5:", self._version.part_size)

    async def take(self, piece: bytes) -> None:
        """Hash the next bytes of the object; raise ``Refused`` where there is no checksum to compare with."""
        if not self._version.checksum:
            raise Refused("the file is gone, and its receipt has no checksum to compare with")
        await in_background(self._digest.update, piece)

    def is_equal(self) -> bool:
        """Return whether the bytes that ``take`` hashed have the recorded checksum."""
        return self._digest.checksum == self._version.checksum

    def require_unchanged(self) -> None:
        """Do nothing: a receipt does not change."""

    def close(self) -> None:
        """Do nothing: nothing is open."""


Local = OpenFile | Receipt


def _form(checksum: str) -> tuple[str, str]:
    return algorithm_of(checksum), checksum.partition("-")[2]


def _common(ours: bytes, theirs: bytes) -> int:
    """Return how many bytes both begin with."""
    return len(posixpath.commonprefix([ours, theirs]))


def owned(fd: int, against: Against) -> OpenFile:
    """Return an open file, which closes the descriptor; it is closed at once if that fails."""
    try:
        return OpenFile(fd, against)
    except PresigndError:
        close_quietly(fd)
        raise


def open_moved(folder: Folder, watch: WatchConfig, version: FileVersion) -> int | None:
    """Open the file that was moved to ``move_to``; None where it is not there. Blocking.

    It may have a number there, as another file had its name. It is recognized by its inode or, on another filesystem,
    by its size and mtime.
    """
    if watch.after != "move":
        return None
    parent, name = posixpath.split(version.path)
    with suppress(OSError), target_of(folder, watch, parent, make=False) as target:
        there = [(each, os.stat(each, dir_fd=target, follow_symlinks=False)) for each in _taken(target, name)]
        regular = [(each, st) for each, st in there if stat.S_ISREG(st.st_mode)]
        same = [each for each, st in regular if st.st_ino == version.fingerprint.ino]
        alike = [each for each, st in regular if _is_alike(st, version)]
        for each in (same + alike)[:1]:
            return os.open(each, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=target)
    return None


def _taken(directory: int, name: bytes) -> Iterator[bytes]:
    def is_taken(each: bytes) -> bool:
        with suppress(FileNotFoundError):
            os.stat(each, dir_fd=directory, follow_symlinks=False)
            return True
        return False

    return takewhile(is_taken, numbered_names(name))


def _is_alike(st: os.stat_result, version: FileVersion) -> bool:
    recorded = version.fingerprint
    return st.st_size == recorded.size and abs(st.st_mtime_ns - recorded.mtime_ns) <= SAME_MTIME_NS
