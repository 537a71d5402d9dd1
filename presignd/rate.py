"""``upload.max_rate``: a token bucket over every byte of a body that is sent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

BURST = 0.1
"""Seconds' worth of bytes that may go at once; also how finely bodies are cut under a limit."""


class RateLimit:
    """Lets ``rate`` bytes a second through, shared in the order they are asked for; None is no limit.

    Each taker waits behind those before it, a chunk at a time, so files that send together share alike.
    """

    def __init__(
        self,
        rate: int | None,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._rate = rate
        self._monotonic, self._sleep = monotonic, sleep
        self._free_at = 0.0

    @property
    def limited(self) -> bool:
        """Whether there is a limit."""
        return self._rate is not None

    def chunk(self, most: int) -> int:
        """Return the size in bytes that bodies should be cut into: ``most``, less under a low limit."""
        return most if self._rate is None else max(1024, min(most, int(self._rate * BURST)))

    async def take(self, size: int) -> None:
        """Return when ``size`` more bytes may be sent."""
        if self._rate is None:
            return
        now = self._monotonic()
        # What was not used is not saved up, but for one burst: after a pause the rate holds at once.
        begin = max(self._free_at, now - BURST)
        self._free_at = begin + size / self._rate
        if self._free_at > now:
            await self._sleep(self._free_at - now)
