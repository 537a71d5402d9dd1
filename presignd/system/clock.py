"""The clocks: ``utcnow`` for records and requests, ``since_boot`` for ages that must survive a suspend.

Waits and timeouts of one running program use ``time.monotonic`` as it is.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime


def utcnow() -> datetime:
    """Return the time in UTC."""
    return datetime.now(UTC)


def since_boot() -> float:
    """Return seconds since boot, sleep included (``time.monotonic`` leaves it out). Setting the clock has no effect."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
