"""The slots that every body in flight holds: ``upload.concurrency`` of them, for parts and small files alike."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from presignd.runtime.heartbeat import holding


class Slots:
    """Hands out slots in the order they are asked for; large bodies hold at most half of them together.

    So a small file always finds a slot that no part is in, and parts fill the other half whatever comes.
    """

    def __init__(self, concurrency: int) -> None:
        self._all, self._large = _Semaphore(concurrency), _Semaphore(max(1, concurrency // 2))

    def resize(self, concurrency: int) -> None:
        """Have so many from now on; what is held beyond them ends first. On the event loop."""
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
    """One whose size changes: what it has too much of is taken, as anybody takes it, and given back when it grows."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._size = size
        self._taken: list[asyncio.Task[bool]] = []

    def resize(self, size: int) -> None:
        self._taken += [asyncio.ensure_future(self.acquire()) for _ in range(size, self._size)]
        for _ in range(self._size, size):
            self.release()
        self._size = size
