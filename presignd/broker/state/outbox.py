"""The outbox of brokers: messages for webhooks, in the state, each sent by one broker at a time.

A message is written in the transaction of the change that it reports. The change writes a random mark into its row, and
the message is written only if the row has that mark.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple

from presignd.broker.state.database import Database, Row, StateAway, Statement
from presignd.system.clock import from_micros, to_micros
from presignd.webhooks.outbox import Hook, Message, Outbox, Waiting

LEASE = timedelta(minutes=1)
"""Lease of a due message: after that time another broker may send it. It is longer than a try takes."""
DEAD = timedelta(days=7)
"""Age at which a message is deleted: no broker has had its webhook for days."""


class Changed(NamedTuple):
    """A row that a transaction changes: its table and id, and the mark that the change writes into it."""

    table: Literal["links", "tickets"]
    id: bytes
    mark: bytes


_ADD = (
    "INSERT INTO messages (webhook, event, subject, at, due_at, tries, data, mark) "
    "SELECT ?3, ?4, ?5, ?6, ?6, 0, ?7, ?2 FROM {table} WHERE id = ?1 AND mark = ?2 "
    "AND NOT EXISTS (SELECT 1 FROM webhooks_off WHERE name = ?3)"
)
_TAKE_BACK = "DELETE FROM messages WHERE subject = ?1 AND at = ?2"
_FIRST = "NOT EXISTS (SELECT 1 FROM messages e WHERE e.webhook = m.webhook AND e.subject = m.subject AND e.n < m.n)"
_DUE = (
    "SELECT n, event, subject, at, tries, data, due_at FROM messages m "  # noqa: S608 - constants
    f"WHERE webhook = ?1 AND due_at <= ?2 AND {_FIRST} ORDER BY due_at, n LIMIT ?3"
)
_TAKE = "UPDATE messages SET due_at = ?3 WHERE n = ?1 AND due_at = ?2 RETURNING n"
_NEXT = f"SELECT due_at FROM messages m WHERE webhook = ?1 AND due_at > ?2 AND {_FIRST} ORDER BY due_at LIMIT 1"  # noqa: S608
_OFF = (
    "INSERT INTO webhooks_off (name, address, at) VALUES (?1, ?2, ?3) "
    "ON CONFLICT (name) DO UPDATE SET address = ?2, at = ?3"
)


class StateOutbox(Outbox):
    """The messages in ``database``. Every call may raise ``StateAway``, which is an ``Away``."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._hooks: Sequence[Hook] = ()

    def want(self, hooks: Sequence[Hook]) -> None:
        """Record the events that ``hooks`` want from now on; ``configure`` does this, too."""
        self._hooks = hooks

    def wants(self, event: str) -> bool:
        """Return whether any webhook wants an event."""
        return any(event in hook.events for hook in self._hooks)

    def adding(
        self, event: str, changed: Changed, subject: str, at: datetime, data: Mapping[str, Any]
    ) -> list[Statement]:
        """Return the statements that record the messages about a change, for its transaction."""
        sql, micros, text = _ADD.replace("{table}", changed.table), to_micros(at), json.dumps(data)
        names = [hook.name for hook in self._hooks if event in hook.events]
        return [(sql, (changed.id, changed.mark, name, event, subject, micros, text)) for name in names]

    async def take_back(self, subject: str, at: datetime) -> None:
        """Delete the messages about a change that was undone, if they were not sent yet."""
        await self._database.fetch(_TAKE_BACK, subject, to_micros(at))

    # --- the port -------------------------------------------------------------------------------------
    async def configure(self, hooks: Sequence[Hook], now: datetime) -> dict[str, datetime]:
        """See ``Outbox``. Other brokers may have other webhooks, so messages for these are kept."""
        self.want(hooks)  # first: this must hold even if the state is away
        try:
            await self._database.fetch("DELETE FROM messages WHERE at < ?1", to_micros(now - DEAD))
            moved = [(hook.name, hook.address) for hook in hooks]
            await self._database.fetch_each("DELETE FROM webhooks_off WHERE name = ?1 AND address <> ?2", moved)
            rows = await self._database.fetch("SELECT name, at FROM webhooks_off")
        except StateAway:
            return {}
        return {name: from_micros(at) for name, at in rows}

    async def due(self, webhook: str, now: datetime, most: int, besides: Collection[int] = ()) -> list[Message]:
        """See ``Outbox``; what is returned is leased: no broker gets it again for ``LEASE``."""
        rows = await self._database.fetch(_DUE, webhook, to_micros(now), most)
        rows = [row for row in rows if row[0] not in besides]  # few: those being sent are leased
        until = to_micros(now + LEASE)
        taken = await self._database.fetch_each(_TAKE, [(row[0], row[-1], until) for row in rows])
        return [_message(row) for row, mine in zip(rows, taken, strict=True) if mine]

    async def next_try(self, webhook: str, now: datetime) -> datetime | None:
        """See ``Outbox``."""
        rows = await self._database.fetch(_NEXT, webhook, to_micros(now))
        return from_micros(rows[0][0]) if rows else None

    async def settle(self, done: Sequence[int], later: Mapping[int, datetime]) -> None:
        """See ``Outbox``."""
        statements: list[Statement] = [("DELETE FROM messages WHERE n = ?1", (number,)) for number in done]
        again = "UPDATE messages SET tries = tries + 1, due_at = ?2 WHERE n = ?1"
        await self._database.transact([*statements, *((again, (n, to_micros(at))) for n, at in later.items())])

    async def drop(self, webhook: str, before: datetime) -> int:
        """See ``Outbox``."""
        gone = "DELETE FROM messages WHERE webhook = ?1 AND due_at < ?2 RETURNING n"
        return len(await self._database.fetch(gone, webhook, to_micros(before)))

    async def has_failed(self, webhook: str) -> bool:
        """See ``Outbox``."""
        return bool(
            await self._database.fetch("SELECT 1 FROM messages WHERE webhook = ?1 AND tries > 0 LIMIT 1", webhook)
        )

    async def switch_off(self, hook: Hook, now: datetime) -> int:
        """See ``Outbox``."""
        gone = "DELETE FROM messages WHERE webhook = ?1 RETURNING n"
        _, dropped = await self._database.transact(
            [(_OFF, (hook.name, hook.address, to_micros(now))), (gone, (hook.name,))]
        )
        return len(dropped)

    async def switch_on(self, hook: Hook) -> None:
        """See ``Outbox``."""
        await self._database.fetch("DELETE FROM webhooks_off WHERE name = ?1", hook.name)

    async def off_since(self, webhook: str) -> datetime | None:
        """See ``Outbox``."""
        rows = await self._database.fetch("SELECT at FROM webhooks_off WHERE name = ?1", webhook)
        return from_micros(rows[0][0]) if rows else None

    async def waiting(self) -> dict[str, Waiting]:
        """See ``Outbox``."""
        rows = await self._database.fetch(
            "SELECT webhook, count(*), min(at), min(due_at) FROM messages GROUP BY webhook"
        )
        return {name: Waiting(count, from_micros(at), from_micros(due_at)) for name, count, at, due_at in rows}


def new_mark() -> bytes:
    """Return the mark of one change."""
    return secrets.token_bytes(16)


def _message(row: Row) -> Message:
    number, event, subject, at, tries, data, _ = row
    return Message(number, event, subject, from_micros(at), tries, json.loads(data))
