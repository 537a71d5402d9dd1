"""Heartbeats: they show the watchdog that each loop and each worker makes progress.

A loop or worker is ``alive`` and calls ``beat`` each turn. The functions that it calls may do so, too, also in its
tasks and threads: a context variable carries the heart there. Before a wait that has a deadline,
``beat(within=seconds)`` sets when the next beat is due; a wait for something that has a heart of its own is
``resting``. Waits for a store that is slow or away have deadlines, so they never make a heart overdue; a loop that
hangs does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar, Token

USUAL = 30.0
"""Longest usual time between two turns of a loop, in seconds, unless a watchdog sets another."""

SLACK = 10.0
"""Seconds that a wait may last beyond its deadline: a busy machine is not a hung one."""


class Heart:
    """One loop or worker. Safe to beat from any thread. In the body of a ``with`` it rests."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.rests = 0
        self._beat_at = time.monotonic()
        self._until = 0.0

    def beat(self, within: float = 0.0) -> None:
        """Note a turn; the next is due in the usual time, or ``within`` seconds."""
        self._beat_at = time.monotonic()
        self._until = self._beat_at + within + SLACK if within else 0.0

    def resting(self) -> Heart:
        """Wait for something that may never come; the heart is not overdue during the body."""
        return self

    def __enter__(self) -> None:
        self.rests += 1

    def __exit__(self, *_: object) -> None:
        self.rests -= 1
        self.beat()

    def is_overdue(self, now: float, usual: float) -> bool:
        """Return whether its next turn was due by ``now`` (monotonic); ``usual`` is the longest time between two."""
        return not self.rests and now > max(self._until, self._beat_at + usual)


_hearts: set[Heart] = set()
_unwatched = Heart("")
_current: ContextVar[Heart] = ContextVar("heart", default=_unwatched)


class alive:  # noqa: N801 - used as the function it stands for
    """Give a heart to this task, and to the tasks and threads that it starts, while the body runs.

    A class, as ``holding`` is: generators took measurable time.
    """

    _token: Token[Heart]

    def __init__(self, name: str) -> None:
        self._heart = Heart(name)

    def __enter__(self) -> Heart:
        self._token = _current.set(self._heart)
        _hearts.add(self._heart)
        return self._heart

    def __exit__(self, *_: object) -> None:
        _hearts.discard(self._heart)
        _current.reset(self._token)


def current_heart() -> Heart:
    """Return the heart of the current task; without one, a heart that nobody watches."""
    return _current.get()


def beat(within: float = 0.0) -> None:
    """Beat the heart of the current task, if it has one."""
    _current.get().beat(within)


async def living(name: str, loop: Callable[[], Awaitable[None]]) -> None:
    """Run ``loop`` with a heart of its own."""
    with alive(name):
        await loop()


def resting() -> Heart:
    """Rest the heart of the current task, if it has one, during the body of a ``with``."""
    return _current.get()


class holding:  # noqa: N801 - used as the function it stands for
    """Hold a lock or semaphore; a heart rests while it waits for it, as the holder's is watched."""

    def __init__(self, lock: asyncio.Lock | asyncio.Semaphore) -> None:
        self._lock = lock

    async def __aenter__(self) -> None:
        if not self._lock.locked():
            await self._lock.acquire()
            return
        with resting():
            await self._lock.acquire()

    async def __aexit__(self, *_: object) -> None:
        self._lock.release()


def overdue(usual: float) -> list[str]:
    """Return the names of the hearts that are overdue."""
    now = time.monotonic()
    return sorted(heart.name for heart in tuple(_hearts) if heart.is_overdue(now, usual))
