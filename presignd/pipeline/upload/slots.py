"""The slots of ``upload.concurrency``: how many bodies are in flight at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from presignd.runtime.heartbeat import holding


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
