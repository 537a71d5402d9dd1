"""Wakes the calls that wait for files to come in at this broker; they find those at other brokers by polling."""

from __future__ import annotations

import asyncio
from contextlib import suppress


class Bell:
    """Wakes every task that waits for the next ring."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def next(self) -> asyncio.Event:
        """Return the event that the next ring sets. Call this before looking, so that no ring is missed."""
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
