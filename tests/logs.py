"""Collects events in place of their lines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from presignd.telemetry import log


class Captured(list[dict[str, Any]]):
    """A sink of the log that keeps every event, with its level as ``log_level``."""

    def __call__(self, level: str, event: dict[str, Any]) -> bool:
        """Keep the event."""
        self.append({**event, "log_level": level})
        return True


@contextmanager
def capture_logs() -> Iterator[Captured]:
    """Collect what is logged meanwhile."""
    captured = Captured()
    before = log.send_to(captured)
    try:
        yield captured
    finally:
        log.send_to(before)
