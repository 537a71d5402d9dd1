"""Limits on callers: connections, grants per second, concurrent requests, time on the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from math import ceil
from typing import TypeVar

from presignd.broker.access import Rejected

TURN = 0.002
"""Seconds of work after which a call yields to others. The limit is on time, not on the number of keys: a key that can
be read in a thousand ways takes a hundred times as long to check as a plain one."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Limits:
    """The broker's limits on connections and calls; times in seconds.

    ``connections``: the most at a time, as memory is limited; a new one then replaces the one idle longest, a
    stranger's first. One may be idle for ``idle``, and a request's head may take as long. A body may take ``body`` to
    arrive, and a response to be sent; slower connections are cut off. ``calls`` for grants are answered at a time,
    ``calls_of_one`` token; others wait for their turn, ``wait`` at most. With ``wire.MAX_BODY`` these limit the memory
    that bodies take. ``waiting`` calls, ``waiting_of_one`` token, may wait at inboxes for something to come in.
    """

    connections: int = 1024
    idle: float = 30.0
    body: float = 10.0
    calls: int = 64
    calls_of_one: int = 16
    wait: float = 5.0
    waiting: int = 256
    waiting_of_one: int = 16


LIMITS = Limits()


class GrantRates:
    """Token buckets for the option ``rate``, by token name. Each broker counts for itself.

    A bucket holds at most one second's worth. A batch of any size passes while one grant is left, and the bucket
    then goes below zero: large batches get through, and the rate holds over time.
    """

    def __init__(self) -> None:
        self._left: dict[str, tuple[float, float]] = {}

    def take(self, name: str, rate: float | None, count: int, now: float) -> int:
        """Take ``count`` grants at ``now`` (monotonic seconds); return 0, or the seconds to wait first."""
        if rate is None:
            return 0
        most = max(rate, 1.0)
        left, at = self._left.get(name, (most, now))
        left = min(most, left + (now - at) * rate)
        if left < 1.0:
            self._left[name] = left, now
            return max(1, ceil((1.0 - left) / rate))
        self._left[name] = left - count, now
        return 0


class ConcurrencyLimit:
    """Semaphores for requests: ``total`` at a time, ``per_token`` for one token. A request waits ``wait`` seconds."""

    def __init__(self, total: int, per_token: int, wait: float) -> None:
        self._all = asyncio.Semaphore(total)
        self._per_token = per_token
        self._wait = wait
        self._of: dict[str, tuple[asyncio.Semaphore, int]] = {}

    @asynccontextmanager
    async def hold(self, name: str) -> AsyncIterator[None]:
        """Hold a slot for the token ``name``; raise ``Rejected`` (503) if none becomes free in time."""
        own, users = self._of.get(name) or (asyncio.Semaphore(self._per_token), 0)
        self._of[name] = own, users + 1
        try:
            async with self._slot(own), self._slot(self._all):
                yield
        finally:
            own, users = self._of[name]
            if users == 1:
                del self._of[name]
            else:
                self._of[name] = own, users - 1

    @asynccontextmanager
    async def _slot(self, semaphore: asyncio.Semaphore) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._wait):
                await semaphore.acquire()
        except TimeoutError:
            raise Rejected(503, "busy", "too many requests at a time", retry_after=1) from None
        try:
            yield
        finally:
            semaphore.release()


async def yielding(items: Iterable[T]) -> AsyncIterator[T]:
    """Yield ``items``, and let other tasks run each time ``TURN`` has passed."""
    ends = time.monotonic() + TURN
    for item in items:
        yield item
        if time.monotonic() > ends:
            await asyncio.sleep(0)
            ends = time.monotonic() + TURN
