"""Sharing the loop: a call of a thousand grants, or of keys that take long to judge, holds nobody up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from typing import TypeVar

TURN = 0.002
"""Seconds that one call works before others have their turn. By time and not by number: a key in a thousand
ways to read it takes a hundred times as long to judge as a plain one."""

T = TypeVar("T")


async def in_turn(items: Iterable[T]) -> AsyncIterator[T]:
    """Yield ``items``, letting others work in between whenever ``TURN`` is over."""
    ends = time.monotonic() + TURN
    for item in items:
        yield item
        if time.monotonic() > ends:
            await asyncio.sleep(0)
            ends = time.monotonic() + TURN
