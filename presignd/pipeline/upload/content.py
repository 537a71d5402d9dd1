"""What the two ways of sending a file, whole or in parts, share: their port, their slots, the ETag committed first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

from presignd.errors import fault
from presignd.ledger import Ledger
from presignd.model import FileVersion, Fingerprint
from presignd.pipeline.upload.bucket import StoredObject
from presignd.pipeline.upload.collision import Decision
from presignd.runtime.heartbeat import holding
from presignd.store.probe import Support


class Content(Protocol):
    """An open file to upload: ``whole.Whole`` or ``multipart.InParts``.

    ``fingerprint`` was taken before the first byte was read.
    """

    fingerprint: Fingerprint
    sha256: str

    @property
    def checksum(self) -> str:
        """The receipt's checksum; "" while it isn't known yet."""
        ...

    @property
    def part_size(self) -> int:
        """Bytes in a part, which a checksum of parts is made of; 0 for a whole file."""
        ...

    @property
    def size(self) -> int:
        """Bytes."""
        ...

    async def checksum_like(self, like: str, part_size: int, size: int | None = None) -> str:
        """Return the checksum of it, or of its first ``size`` bytes, in the form of ``like``."""
        ...

    def use_checksum(self, checksum: str, part_size: int) -> None:
        """Take the checksum of an object that holds these bytes for the receipt, unless there is one already."""
        ...

    async def send(
        self, version: FileVersion, decision: Decision, support: Support
    ) -> tuple[FileVersion, StoredObject | None]:
        """Store the content under the version's key; None when another object came there meanwhile (412)."""
        ...

    def is_unchanged(self) -> bool:
        """Read the content once more and return whether it is what was sent. Blocking."""
        ...


async def record_etag(ledger: Ledger, version: FileVersion, etag: str) -> FileVersion:
    """Commit the ETag that the object will have.

    Crash window: the object is there and its receipt isn't. If the file has other content by then, its
    newer version recognizes the object as its own path's by this ETag, and replaces it. So a recorded ETag is
    never replaced: other content of the same size and mtime, renamed over the file while it waited, is another
    version too.
    """
    if version.etag == etag:
        return version
    if version.etag:
        raise fault("changed_while_uploading", "it was sent with other content before")
    return await ledger.update(version, etag=etag)


class Slots:
    """The slots that all bodies in flight hold: ``upload.concurrency`` of them, in the order they are asked for.

    Parts of large files hold at most half of them, so small files always get through.
    """

    def __init__(self, concurrency: int) -> None:
        self._all, self._large = _Semaphore(concurrency), _Semaphore(max(1, concurrency // 2))

    def resize(self, concurrency: int) -> None:
        """Change the number of slots; what is held beyond it ends first. On the event loop."""
        self._all.resize(concurrency)
        self._large.resize(max(1, concurrency // 2))

    def small(self) -> holding:
        """Hold a slot for a file that goes as one PUT."""
        return holding(self._all)

    @asynccontextmanager
    async def large(self) -> AsyncIterator[None]:
        """Hold a slot for a part."""
        async with holding(self._large), holding(self._all):
            yield


class _Semaphore(asyncio.Semaphore):
    """A semaphore whose size can change: it acquires what it has too much of, and releases that when it grows."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._size = size
        self._taken: list[asyncio.Task[bool]] = []

    def resize(self, size: int) -> None:
        self._taken += [asyncio.ensure_future(self.acquire()) for _ in range(size, self._size)]
        for _ in range(self._size, size):
            self.release()
        self._size = size
