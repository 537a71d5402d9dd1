"""The slots that every body in flight holds: ``upload.concurrency`` of them, for parts and small files alike."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from presignd.heartbeat import holding


class Slots:
    """Hands out slots in the order they are asked for; large bodies hold at most half of them together.

    So a small file always finds a slot that no part is in, and parts fill the other half whatever comes.
    """

    def __init__(self, concurrency: int) -> None:
        self._all = asyncio.Semaphore(concurrency)
        self._large = asyncio.Semaphore(max(1, concurrency // 2))

    def small(self) -> holding:
        """Hold a slot for a file that goes as one PUT."""
        return holding(self._all)

    @asynccontextmanager
    async def large(self) -> AsyncIterator[None]:
        """Hold a slot for a part."""
        async with holding(self._large), holding(self._all):
            yield
