"""The port of webhooks' messages: each is recorded with the change that it reports, and deleted once delivered."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from hashlib import sha256
from typing import Any, NamedTuple


class Away(Exception):
    """The outbox can't be reached now; a later try may work."""


class Message(NamedTuple):
    """One event for one webhook. ``number`` names it in its outbox; ``tries`` are those that failed.

    Messages with the same ``subject`` (such as one file) are sent one after the other, in their order.
    """

    number: int
    event: str
    subject: str
    at: datetime
    tries: int
    data: Mapping[str, Any]

    @property
    def id(self) -> str:
        """The ``webhook-id``: the same at each try, and for each webhook that gets the event."""
        told = repr((self.event, self.subject, self.at.timestamp(), sorted(self.data.items())))
        return f"msg_{sha256(told.encode()).hexdigest()[:32]}"


class Hook(NamedTuple):
    """A webhook as an outbox needs it: its name, the events that it wants, and the SHA-256 of its address."""

    name: str
    events: Sequence[str]
    address: bytes


class Waiting(NamedTuple):
    """The messages that wait for a webhook: how many, since when, and when the next one is tried (UTC)."""

    messages: int = 0
    oldest: datetime | None = None
    next_try: datetime | None = None

    def held_until(self, time: datetime | None) -> Waiting:
        """Return this with a next try at ``time`` at the earliest (None: no limit)."""
        if time is None or self.next_try is None:
            return self
        return self._replace(next_try=max(time, self.next_try))


class Outbox(ABC):
    """Messages by the name of their webhook. Each call may raise ``Away``; a change returns after its commit."""

    @abstractmethod
    async def configure(self, hooks: Sequence[Hook], now: datetime) -> dict[str, datetime]:
        """Record the events that ``hooks`` want from now on; return the webhooks that are off, and since when.

        A webhook that is off stays off until ``switch_on``, or until its address changes. Messages for a webhook that
        is no longer configured are deleted.
        """

    @abstractmethod
    async def due(self, webhook: str, now: datetime, most: int, besides: Collection[int] = ()) -> list[Message]:
        """Return up to ``most`` messages that may be sent now, the first of each subject, those due first.

        ``besides`` are the numbers of those that the caller is sending: they are not returned again.
        """

    @abstractmethod
    async def next_try(self, webhook: str, now: datetime) -> datetime | None:
        """Return when the next message is due after ``now``; None without any."""

    @abstractmethod
    async def settle(self, done: Sequence[int], later: Mapping[int, datetime]) -> None:
        """Delete the messages in ``done``; note a failed try of those in ``later``, and when the next one is due."""

    @abstractmethod
    async def drop(self, webhook: str, before: datetime) -> int:
        """Delete the messages that were due before that time; return how many."""

    @abstractmethod
    async def has_failed(self, webhook: str) -> bool:
        """Return whether any waiting message was tried before."""

    @abstractmethod
    async def switch_off(self, hook: Hook, now: datetime) -> int:
        """Record nothing more for a webhook, and delete its messages; return how many."""

    @abstractmethod
    async def switch_on(self, hook: Hook) -> None:
        """Record the events that a webhook wants again."""

    @abstractmethod
    async def off_since(self, webhook: str) -> datetime | None:
        """Return since when a webhook is off; None if it is on."""

    @abstractmethod
    async def waiting(self) -> dict[str, Waiting]:
        """Return the waiting messages' numbers for each webhook that has any."""
