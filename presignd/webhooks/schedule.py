"""What follows from one try: the message is delivered, tried again later, given up, or its webhook is off. Pure."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from presignd.errors import Fault, fault

PAUSES = (5.0, 300.0, 1800.0, 7200.0, 18000.0, 36000.0, 50400.0, 72000.0, 86400.0)
"""Seconds after each failed try: Standard Webhooks' schedule, of ten tries over three days."""
JITTER = 0.1
"""The largest share by which a pause is longer, so that the messages of one outage do not return as one."""
LONGEST = 86400.0
"""Seconds that a receiver's Retry-After may ask for, at most."""

GONE = 410


@dataclass(frozen=True, slots=True)
class Answer:
    """How one try ended: the HTTP ``status`` (0 without an answer), else ``why`` there is none, in words.

    ``retry_after`` and ``took`` are seconds.
    """

    status: int
    why: str = ""
    retry_after: float | None = None
    took: float = 0.0

    @property
    def is_delivered(self) -> bool:
        """Whether the receiver has the message."""
        return 200 <= self.status < 300  # noqa: PLR2004 - 2xx; a redirect is a failure, as nothing is sent elsewhere

    @property
    def problem(self) -> Fault:
        """The fault of a try that failed."""
        if self.status == GONE:
            return fault("webhook_gone")
        return fault("webhook_failed", self.why or f"it answered {self.status}")


class Outcome(Enum):
    """What follows from one try."""

    DELIVERED = "delivered"
    RETRY = "retry"
    GIVE_UP = "give up"
    OFF = "off"


@dataclass(frozen=True)
class Schedule:
    """When failed messages are tried again: after ``pauses`` in turn, each longer by up to ``jitter``."""

    pauses: Sequence[float] = PAUSES
    jitter: float = JITTER
    rng: random.Random = field(default_factory=random.Random)

    def judge(self, answer: Answer, tries: int) -> tuple[Outcome, float]:
        """Return what follows from the latest of so many ``tries``, and the seconds until the next one."""
        if answer.is_delivered:
            return Outcome.DELIVERED, 0.0
        if answer.status == GONE:
            return Outcome.OFF, 0.0
        if tries > len(self.pauses):
            return Outcome.GIVE_UP, 0.0
        own = self.pauses[tries - 1] * (1 + self.rng.uniform(0, self.jitter))
        return Outcome.RETRY, max(own, min(answer.retry_after or 0.0, LONGEST))
