"""A daemon waits for its ledger as it waits for its store: told once each way, nothing lost meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from presignd.errors import Fault, Unavailable
from presignd.runtime.heartbeat import beat
from presignd.runtime.outage import Trouble

T = TypeVar("T")

PAUSE = 1.0
"""Seconds between two tries."""


class Patience:
    """Tries each call until it works, while a full disk or another program's lock is in the way.

    Says ``ledger.blocked`` once and ``ledger.unblocked`` once, however many calls wait. A damaged ledger
    (``UsageError``) and bugs are raised at once, as is everything after ``end``.
    """

    def __init__(self, *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        self._sleep = sleep
        self._ended = False
        self.trouble = Trouble("ledger")

    def end(self) -> None:
        """Wait no more: the daemon stops, and what is not written is carried on at the next start."""
        self._ended = True

    async def __call__(self, call: Callable[[], Awaitable[T]]) -> T:
        """Return what ``call`` returns once it works."""
        waited = False
        while True:
            beat()
            try:
                found = await call()
            except (Fault, Unavailable) as problem:
                if self._ended:
                    raise
                self.trouble.met(problem)
                waited = True
                await self._sleep(PAUSE)
            else:
                # A question that is answered meanwhile doesn't say that changes can be written again.
                if waited:
                    self.trouble.over()
                return found
