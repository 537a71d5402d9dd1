"""The clocks: ``utcnow`` for records and requests, ``since_boot`` for ages that must survive a suspend.

Waits and timeouts of one running program use ``time.monotonic`` as it is.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import overload

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_SINCE_BOOT = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def utcnow() -> datetime:
    """Return the time in UTC."""
    return datetime.now(UTC)


def to_micros(time: datetime) -> int:
    """Return microseconds since 1970 UTC, as databases store a time; a naive datetime raises ``TypeError``."""
    return (time - _EPOCH) // _MICROSECOND


@overload
def from_micros(micros: int) -> datetime: ...
@overload
def from_micros(micros: None) -> None: ...
@overload
def from_micros(micros: int | None) -> datetime | None: ...
def from_micros(micros: int | None) -> datetime | None:
    """Return the time in UTC, None for None."""
    return None if micros is None else _EPOCH + micros * _MICROSECOND


def since_boot() -> float:
    """Return seconds since boot, sleep included (``time.monotonic`` leaves it out). Setting the clock has no effect."""
    return time.clock_gettime(_SINCE_BOOT)
