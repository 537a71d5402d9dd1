"""What ``Whole`` and ``InParts`` share: their base class, the slots, and the commit of the checksum before sending."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from presignd.errors import fault
from presignd.ledger import Ledger
from presignd.model import FileVersion, Fingerprint
from presignd.pipeline.upload.bucket import StoredObject
from presignd.pipeline.upload.collision import Decision
from presignd.runtime.heartbeat import holding


class Content(ABC):
    """What to upload: ``whole.Whole``, ``multipart.InParts`` or ``streamed.Streamed``.

    ``fingerprint`` was taken before the first byte was read. ``checksum`` is that for the receipt, "" while it isn't
    known; ``part_size`` are the bytes in a part, for a checksum of parts, 0 for a file sent as one PUT.
    """

    fingerprint: Fingerprint
    checksum: str
    part_size: int

    @property
    def size(self) -> int:
        """The content's size in bytes."""
        return self.fingerprint.size

    @abstractmethod
    async def checksum_like(self, like: str, part_size: int, size: int | None = None) -> str:
        """Return the content's checksum, or that of its first ``size`` bytes, in the form of ``like``."""

    @abstractmethod
    def use_checksum(self, checksum: str, part_size: int) -> None:
        """Use the checksum of a stored object with the same bytes for the receipt, unless one is known."""

    @abstractmethod
    async def send(self, version: FileVersion, decision: Decision) -> tuple[FileVersion, StoredObject | None]:
        """Store the content under the version's key; return None if another object was written there (412)."""

    @abstractmethod
    def is_unchanged(self) -> bool:
        """Read the file again and return whether it is what was sent. Blocking."""


async def record_intent(ledger: Ledger, version: FileVersion, content: Content, checksum: str) -> FileVersion:
    """Commit the checksum that identifies the object: if it is an MD5, the object's ETag will equal it.

    Crash window: the object is stored and its receipt isn't. If the file has other content by then, its newer version
    finds by this intent that the object belongs to its path, and replaces it. So an intent is only replaced by one of
    the same content, in another algorithm: if a file of the same size and mtime but other content was renamed over the
    file while it waited, that is another version, too.
    """
    if (before := version.intent) == checksum:
        return version
    if not before.endswith(":") and before and await content.checksum_like(before, version.part_size) != before:
        raise fault("changed_while_uploading", "it was sent with other content before")
    return await ledger.update(version, etag=checksum.removeprefix("md5:"))


class Slots:
    """``upload.concurrency`` slots, one for each body in flight, given out in the order of the requests.

    Parts of large files hold at most half of them, so small files always get through. ``small`` is a context manager
    that holds a slot for a file sent as one PUT.
    """

    def __init__(self, concurrency: int) -> None:
        self._all, self._large = _Semaphore(concurrency), _Semaphore(max(1, concurrency // 2))
        self.small = holding(self._all)

    def resize(self, concurrency: int) -> None:
        """Change the number of slots; bodies that hold more than that finish first. On the event loop."""
        self._all.resize(concurrency)
        self._large.resize(max(1, concurrency // 2))

    @asynccontextmanager
    async def large(self) -> AsyncIterator[None]:
        """Hold a slot for a part."""
        async with holding(self._large), holding(self._all):
            yield


class _Semaphore(asyncio.Semaphore):
    """A semaphore whose size can change. To shrink, it acquires slots itself; to grow, it releases them."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._size = size
        self._taken: list[asyncio.Task[bool]] = []

    def resize(self, size: int) -> None:
        self._taken += [asyncio.ensure_future(self.acquire()) for _ in range(size, self._size)]
        for _ in range(self._size, size):
            self.release()
        self._size = size
