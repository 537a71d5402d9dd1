"""Events as they are logged, before they are rendered: their fields, and their level as ``log_level``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from presignd.telemetry import logger

Told = list[dict[str, Any]]


class KeepingLogger(logger.Logger):
    """A logger that keeps all events in ``told``; the log gets none of them."""

    def __init__(self, told: Told, bound: Mapping[str, Any] | None = None) -> None:
        super().__init__(bound)
        self._told = told

    def bind(self, **fields: Any) -> KeepingLogger:
        """Return a logger with these fields, too."""
        return KeepingLogger(self._told, {**self._bound, **fields})

    def log(self, level: str, event: str, /, **fields: Any) -> int:
        """Keep an event."""
        self._told.append({**self._bound, **fields, "event": event, "log_level": level})
        return 1


@contextmanager
def captured() -> Iterator[Told]:
    """Yield the list of all events that are logged in the body; the log gets none of them."""
    before, told = logger.destination(), Told()

    def write(level: str, event: logger.Event) -> int:
        told.append({**event, "log_level": level})
        return 1

    logger.send_to(logger.Destination(0, write))
    try:
        yield told
    finally:
        logger.send_to(before)
