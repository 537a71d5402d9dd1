"""Wakes the calls that wait for something to come in at this broker; what comes in at another is seen by looking."""

from __future__ import annotations

import asyncio
from contextlib import suppress


class Bell:
    """Whoever waits hears the next ring."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def next(self) -> asyncio.Event:
        """Return what the next ring sets. Take it before looking, so that no ring falls between the two."""
        return self._next

    def ring(self) -> None:
        """Wake everyone who waits."""
        self._next.set()
        self._next = asyncio.Event()


async def heard(ring: asyncio.Event, seconds: float) -> None:
    """Wait for a ring, ``seconds`` at most."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await ring.wait()
