"""Decide what follows from a try: for its message, and for the webhook as a whole. Pure.

The message is delivered, tried again later or given up, or its webhook is switched off. While a receiver accepts
nothing, the webhook's circuit breaker is open: one message at a time probes it, and the others wait.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import Enum

from presignd.errors import Fault, fault

PAUSES = (5.0, 300.0, 1800.0, 7200.0, 18000.0, 36000.0, 50400.0, 72000.0, 86400.0)
"""Seconds after each failed try: Standard Webhooks' schedule, of ten tries over three days."""
JITTER = 0.1
"""The largest share by which a pause is longer, so that the messages of one outage are not all retried at once."""
LONGEST = 86400.0
"""Longest Retry-After that is obeyed, in seconds."""

AT_ONCE = 8
"""Most messages that are sent to one webhook at a time, and failed tries in a row that open its breaker."""
PROBES = (5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0)
"""Seconds from each failed probe to the next one; the last value also for all that follow."""
KEPT = timedelta(days=3)
"""How long a message waits for a receiver that accepts nothing: as long as one that is retried."""

GONE = 410


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of one try: the HTTP ``status`` or, without an answer (0), the reason ``why``, in words.

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
    """What happens to a message after a try."""

    DELIVERED = "delivered"
    RETRY = "retry"
    GIVE_UP = "give up"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Breaker:
    """The circuit breaker of one webhook: how many tries failed in a row, and when messages may be sent.

    It is open since ``since``, closed if that is None; nothing is sent before ``until``, then one message at a time.
    """

    in_a_row: int = 0
    probes: int = 0
    since: datetime | None = None
    until: datetime | None = None

    def room(self, now: datetime) -> int:
        """Return how many messages may be sent at a time: fewer with each failure, so that an outage affects few."""
        if self.until is None:
            return max(1, AT_ONCE - self.in_a_row)
        return 1 if now >= self.until else 0

    def abandons_before(self, now: datetime) -> datetime | None:
        """Return the time before which a message must have been due to be given up; None if none is."""
        return now - KEPT if self.since is not None and now - self.since >= KEPT else None


@dataclass(frozen=True)
class Schedule:
    """When failed messages are tried again: after ``pauses`` in turn, and ``probes`` likewise.

    Each is longer by up to ``jitter``.
    """

    pauses: Sequence[float] = PAUSES
    probes: Sequence[float] = PROBES
    jitter: float = JITTER
    rng: random.Random = field(default_factory=random.Random)

    def judge(self, answer: Answer, tries: int) -> tuple[Outcome, float]:
        """Return the outcome of the latest of so many ``tries``, and the seconds until the next one."""
        if answer.is_delivered:
            return Outcome.DELIVERED, 0.0
        if answer.status == GONE:
            return Outcome.OFF, 0.0
        if tries > len(self.pauses):
            return Outcome.GIVE_UP, 0.0
        return Outcome.RETRY, max(self._longer(self.pauses[tries - 1]), _wanted(answer))

    def breaker(self, before: Breaker, answers: Sequence[Answer], now: datetime) -> Breaker:
        """Return the breaker after tries that ended: open after ``AT_ONCE`` failures in a row, or by a Retry-After.

        A delivered message closes it, but does not end a Retry-After.
        """
        failed = [answer for answer in answers if not answer.is_delivered]
        pausing = before.until is not None and now < before.until
        breaker = replace(before, in_a_row=before.in_a_row + len(failed))
        if len(failed) < len(answers):
            breaker = replace(before, in_a_row=0, probes=0, since=None) if pausing else Breaker()
        pause = max(map(_wanted, failed), default=0.0)
        if breaker.in_a_row >= AT_ONCE and not pausing:  # a try that began before the breaker opened is no probe
            pause = max(pause, self._longer(self.probes[min(breaker.probes, len(self.probes) - 1)]))
            breaker = replace(breaker, probes=breaker.probes + 1)
        if not pause:
            return breaker
        until = now + timedelta(seconds=pause)
        return replace(breaker, since=breaker.since or now, until=max(until, breaker.until or until))

    def _longer(self, seconds: float) -> float:
        return seconds * (1 + self.rng.uniform(0, self.jitter))


def _wanted(answer: Answer) -> float:
    """Return the seconds of an answer's Retry-After that are obeyed."""
    return min(answer.retry_after or 0.0, LONGEST)
