"""``upload.max_rate``: a token bucket over every byte that is sent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from weakref import WeakValueDictionary

BURST = 0.1
"""Seconds' worth of bytes that may go at once; also how finely bodies are cut under a limit."""


class RateLimit:
    """Lets ``rate`` bytes a second through; None is no limit.

    Files take turns, a chunk at a time, so those that send together share alike, however many parts of one
    are under way.
    """

    def __init__(
        self,
        rate: int | None,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.rate = rate
        self._monotonic, self._sleep = monotonic, sleep
        self._free_at = 0.0
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @property
    def limited(self) -> bool:
        """Whether there is a limit."""
        return self.rate is not None

    def chunk(self, most: int) -> int:
        """Return the size in bytes that bodies should be cut into: ``most``, less under a low limit."""
        return most if self.rate is None else max(1024, min(most, int(self.rate * BURST)))

    async def take(self, size: int, file: str = "") -> None:
        """Return when ``size`` more bytes of ``file`` may be sent."""
        if self.rate is None:
            return
        # One of a file's parts at most stands in the queue of all: the files are what takes turns there.
        turn = self._turns.setdefault(file, asyncio.Lock())
        async with turn:
            await self._wait(size, self.rate)

    async def _wait(self, size: int, rate: int) -> None:
        now = self._monotonic()
        # What was not used is not saved up, but for one burst: after a pause the rate holds at once.
        begin = max(self._free_at, now - BURST)
        self._free_at = begin + size / rate
        if self._free_at > now:
            await self._sleep(self._free_at - now)
