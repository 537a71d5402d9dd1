"""A broker's memory of each token's calls since its start. Pure: callers give the times, in UTC."""

from __future__ import annotations

import re
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple

MINUTES = 60
MOST_TOKENS = 10_000
"""Tokens remembered (about 2 KB each); beyond that, the one that called longest ago is forgotten."""
LONGEST_AGENT, LONGEST_DATE = 200, 40
"""Characters of a header that are kept: the client chooses them."""

_DAEMON = re.compile(r"presignd/([0-9][0-9A-Za-z.+-]{0,31})(?: |$)")
_PRODUCT = re.compile(r"[!-~]{1,40}")


class Call(NamedTuple):
    """A call with a token: when, the client's address, and its User-Agent and Date ("" where it sent none)."""

    at: datetime
    client: str
    user_agent: str
    date: str

    @property
    def version(self) -> str:
        """The version of the daemon that called, "" for another program."""
        found = _DAEMON.match(self.user_agent)
        return found[1] if found else ""

    @property
    def program(self) -> str:
        """The program that called and its version, e.g. "curl/8.5.0"; "" if it doesn't say."""
        found = _PRODUCT.match(self.user_agent)
        return found[0] if found else ""

    @property
    def clock_difference(self) -> float | None:
        """The client's clock minus this machine's in seconds, to half a second; None without a usable Date."""
        try:
            date = parsedate_to_datetime(self.date)
        except (ValueError, OverflowError):
            return None
        # A Date has whole seconds, rounded down.
        return (date.replace(tzinfo=date.tzinfo or UTC) - self.at).total_seconds() + 0.5


class Refused(NamedTuple):
    """A refusal: its code, and when."""

    code: str
    at: datetime


class Minute(NamedTuple):
    """One minute: when it began (seconds since 1970), the grants in it and the refusals."""

    began: int
    granted: int
    refused: int


class Hour:
    """The grants and refusals in each minute of the last hour, in a ring; the last minute is still running."""

    __slots__ = ("_granted", "_last", "_refused")

    def __init__(self) -> None:
        self._last = 0
        self._granted, self._refused = _zeros(), _zeros()

    def add(self, now: datetime, granted: int, refused: int) -> None:
        """Count some at ``now``."""
        minute = _minute(now)
        if minute > self._last or minute <= self._last - MINUTES:  # the second: the clock was set back far
            self._begin(minute)
        self._granted[minute % MINUTES] += granted
        self._refused[minute % MINUTES] += refused

    def _begin(self, minute: int) -> None:
        """Forget what is more than an hour before ``minute``, and all if the clock was set back."""
        first = self._last + 1 if minute > self._last else 0
        for passed in range(max(first, minute - MINUTES + 1), minute + 1):
            self._granted[passed % MINUTES] = self._refused[passed % MINUTES] = 0
        self._last = minute

    def total(self, now: datetime) -> tuple[int, int]:
        """Return the grants and the refusals of the last hour."""
        places = [minute % MINUTES for minute in self._known(_minute(now))]
        return sum(self._granted[place] for place in places), sum(self._refused[place] for place in places)

    def minutes(self, now: datetime) -> list[Minute]:
        """Return each minute of the last hour, the oldest first."""
        last = _minute(now)
        known = self._known(last)
        return [self._of(minute) if minute in known else Minute(minute * 60, 0, 0) for minute in _hour_to(last)]

    def _of(self, minute: int) -> Minute:
        return Minute(minute * 60, self._granted[minute % MINUTES], self._refused[minute % MINUTES])

    def _known(self, last: int) -> range:
        """Return the minutes of the hour to ``last`` that the ring holds."""
        hour, held = _hour_to(last), _hour_to(self._last)
        return range(max(hour.start, held.start), min(hour.stop, held.stop))


def _zeros() -> array[int]:
    return array("Q", bytes(8 * MINUTES))


def _minute(now: datetime) -> int:
    return int(now.timestamp()) // 60


def _hour_to(last: int) -> range:
    return range(last - MINUTES + 1, last + 1)


@dataclass(slots=True)
class TokenActivity:
    """The calls seen of one token."""

    call: Call | None = None
    refused: Refused | None = None
    hour: Hour = field(default_factory=Hour)


class Activity:
    """The calls seen of each token since ``since``, and of all together in ``hour``."""

    def __init__(self, since: datetime, most: int = MOST_TOKENS) -> None:
        self.since = since
        self.hour = Hour()
        self._most = most
        self._tokens: OrderedDict[str, TokenActivity] = OrderedDict()

    def called(self, token: str, call: Call) -> None:
        """Record a call."""
        user_agent, date = call.user_agent[:LONGEST_AGENT], call.date[:LONGEST_DATE]
        self._of(token).call = call._replace(user_agent=user_agent, date=date)

    def answered(self, token: str, now: datetime, *, granted: int, refused: Sequence[str]) -> None:
        """Count the grants of an answer, and its refusals by their codes."""
        own = self._of(token)
        for hour in (own.hour, self.hour):
            hour.add(now, granted, len(refused))
        if refused:
            own.refused = Refused(refused[-1], now)

    def of(self, token: str) -> TokenActivity:
        """Return the activity of a token; an empty one if it did not call."""
        return self._tokens.get(token) or TokenActivity()

    def _of(self, token: str) -> TokenActivity:
        own = self._tokens.setdefault(token, TokenActivity())
        self._tokens.move_to_end(token)
        if len(self._tokens) > self._most:
            self._tokens.popitem(last=False)
        return own
