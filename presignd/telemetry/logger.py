"""The logger of our events: what happened, with fields, at a level. ``presignd.telemetry.log`` says where they go.

Not structlog: of it this needed no more than what stands here, and importing it, which brings rich and pygments, took
40 ms of each start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
"""The levels by name, with the numbers of ``logging``."""

Event = dict[str, Any]
"""The fields of an event by name; what happened is ``event``."""


class Destination(NamedTuple):
    """Where events go: ``write`` gets the level and the fields of each that is at least ``least`` (a number).

    It may change the fields, and returns how many lines there was room for.
    """

    least: int
    write: Callable[[str, Event], int]


class Logger:
    """Logs events, each with the fields that the logger is bound to. Safe in any thread.

    Each method returns what ``Destination.write`` did, None for an event below the level.
    """

    __slots__ = ("_bound",)

    def __init__(self, bound: Mapping[str, Any] | None = None) -> None:
        self._bound = bound or {}

    def bind(self, /, **fields: Any) -> Logger:
        """Return a logger with these fields, too."""
        return Logger({**self._bound, **fields})

    def log(self, level: str, event: str, /, **fields: Any) -> int | None:
        """Log an event at a level of ``LEVELS``."""
        least, write = _destination
        return write(level, {**self._bound, **fields, "event": event}) if LEVELS[level] >= least else None

    def debug(self, event: str, /, **fields: Any) -> int | None:
        """Log what helps to find a fault."""
        return self.log("debug", event, **fields)

    def info(self, event: str, /, **fields: Any) -> int | None:
        """Log what happens."""
        return self.log("info", event, **fields)

    def warning(self, event: str, /, **fields: Any) -> int | None:
        """Log what may need a person."""
        return self.log("warning", event, **fields)

    def error(self, event: str, /, **fields: Any) -> int | None:
        """Log what failed."""
        return self.log("error", event, **fields)

    def critical(self, event: str, /, **fields: Any) -> int | None:
        """Log what ends the process."""
        return self.log("critical", event, **fields)

    def exception(self, event: str, /, **fields: Any) -> int | None:
        """Log the exception that is being handled."""
        return self.log("error", event, **{"exc_info": True, **fields})


def destination() -> Destination:
    """Return where events go now."""
    return _destination


def send_to(other: Destination) -> None:
    """Send the events of all loggers to ``other`` from now on."""
    global _destination  # noqa: PLW0603 - a log is the whole process's
    _destination = other


_destination = Destination(LEVELS["warning"], lambda _level, _event: 0)
