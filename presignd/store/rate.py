"""``upload.max_rate``: a token bucket over every byte that is sent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from weakref import WeakValueDictionary

BURST = 0.1
"""Seconds for whose bytes the limit allows a burst; this is also the size of chunks under a limit."""


class RateLimit:
    """Limits sending to ``rate`` bytes a second; None means no limit (``limited`` is False).

    Files take turns by the chunk, so each gets the same share, however many of its parts are in flight.
    """

    def __init__(
        self,
        rate: int | None,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.rate, self.limited = rate, rate is not None
        self._monotonic, self._sleep = monotonic, sleep
        self._free_at = 0.0
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def chunk(self, most: int) -> int:
        """Return the chunk size for bodies in bytes: ``most``, or less under a low limit."""
        return most if self.rate is None else max(1024, min(most, int(self.rate * BURST)))

    async def take(self, size: int, file: str = "") -> None:
        """Wait until ``size`` more bytes of ``file`` may be sent."""
        if self.rate is None:
            return
        # At most one part of a file waits in the common queue, so that files take turns there.
        turn = self._turns.setdefault(file, asyncio.Lock())
        async with turn:
            await self._wait(size, self.rate)

    async def _wait(self, size: int, rate: int) -> None:
        now = self._monotonic()
        # Unused time is saved for one burst only, so after a pause the rate holds at once.
        begin = max(self._free_at, now - BURST)
        self._free_at = begin + size / rate
        if self._free_at > now:
            await self._sleep(self._free_at - now)
