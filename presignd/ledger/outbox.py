"""The outbox of a daemon: messages for webhooks, in the ledger.

Triggers write each message in the transaction of the change that it reports, whatever part of presignd makes that
change. So a crash loses no message and adds none. The triggers are temporary, on the writing connection alone, and
exist only while a webhook wants their events. So without webhooks a change costs nothing more.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from presignd.ledger.writer import Database
from presignd.system.clock import from_micros, to_micros
from presignd.webhooks.outbox import Hook, Message, Outbox, Waiting

FARTHEST = timedelta(days=2)
"""A try that is due later than this was recorded by a wrong clock."""

STORE = "store"
"""The subject of events about the store."""

# julianday is a float, exact to 40 microseconds in this century; SQLite before 3.42 has no better clock.
_NOW = "CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER)"

# Paths are bytes, which JSON can't hold. An etag from before the upload was verified is a checksum in its place.
_FIELDS = (
    *("file_id", "watch", "bucket", "key", "size", "content_type", "checksum", "version_id", "attempt", "error_code"),
    *("error", "queued_at", "done_at", "expires_at", "adopted", "state"),
)
_COLUMNS = ", ".join(f"'{name}', NEW.{name}" for name in _FIELDS)
_DATA = f"json_object({_COLUMNS}, 'path', hex(NEW.path), 'etag', CASE WHEN NEW.checksum = '' THEN '' ELSE NEW.etag END)"
_WRITE = f"""
BEGIN
  INSERT INTO message (webhook, event, subject, at, due_at, data)
  SELECT webhook, event, NEW.watch || '/' || hex(NEW.path), {_NOW}, {_NOW}, {_DATA} FROM wanted
  WHERE event = CASE NEW.state WHEN 'quarantined' THEN 'file.quarantined' ELSE 'file.done' END;
END"""  # noqa: S608 - our own column names
_TRIGGERS = {
    "tell_of_move": "AFTER UPDATE OF state ON version WHEN NEW.state != OLD.state"
    " AND NEW.state IN ('finished', 'vanished', 'superseded', 'quarantined')",
    "tell_of_new": "AFTER INSERT ON version WHEN NEW.state = 'quarantined'",
}

_FIRST = "NOT EXISTS (SELECT 1 FROM message AS e WHERE e.webhook = m.webhook AND e.subject = m.subject AND e.id < m.id)"
_DUE = (
    "SELECT id, event, subject, at, tries, data FROM message AS m"  # noqa: S608 - our own condition
    f" WHERE webhook = ? AND due_at <= ? AND {_FIRST} ORDER BY due_at, id LIMIT ?"
)
_NEXT = f"SELECT due_at FROM message AS m WHERE webhook = ? AND due_at > ? AND {_FIRST} ORDER BY due_at LIMIT 1"  # noqa: S608


class LedgerOutbox(Outbox):
    """The messages in a ledger."""

    def __init__(self, database: Database) -> None:
        self._change, self._ask = database.do, database.ask

    async def add(self, event: str, subject: str, data: Mapping[str, Any]) -> None:
        """Record an event that no change of a version causes."""
        await self._change(add_message, event, subject, json.dumps(data))

    async def configure(self, hooks: Sequence[Hook], now: datetime) -> dict[str, datetime]:
        """See ``Outbox``."""
        return await self._change(configure_webhooks, hooks, now)

    async def due(self, webhook: str, now: datetime, most: int, besides: Collection[int] = ()) -> list[Message]:
        """See ``Outbox``."""
        # Fetch more, by the number being sent: these are due until they are settled.
        rows = await self._ask(_fetch, _DUE, webhook, to_micros(now), most + len(besides))
        return [message for message in map(_message, rows) if message.number not in besides][:most]

    async def next_try(self, webhook: str, now: datetime) -> datetime | None:
        """See ``Outbox``."""
        rows = await self._ask(_fetch, _NEXT, webhook, to_micros(now))
        return from_micros(rows[0][0]) if rows else None

    async def settle(self, done: Sequence[int], later: Mapping[int, datetime]) -> None:
        """See ``Outbox``."""
        await self._change(settle_messages, done, later, rows=len(done) + len(later))

    async def drop(self, webhook: str, before: datetime) -> int:
        """See ``Outbox``."""
        return await self._change(drop_messages, webhook, before)

    async def has_failed(self, webhook: str) -> bool:
        """See ``Outbox``."""
        return bool(await self._ask(_fetch, "SELECT 1 FROM message WHERE webhook = ? AND tries > 0 LIMIT 1", webhook))

    async def switch_off(self, hook: Hook, now: datetime) -> int:
        """See ``Outbox``."""
        return await self._change(switch_off, hook, now)

    async def switch_on(self, hook: Hook) -> None:
        """See ``Outbox``."""
        await self._change(switch_on, hook)

    async def off_since(self, webhook: str) -> datetime | None:
        """See ``Outbox``."""
        rows = await self._ask(_fetch, "SELECT at FROM webhook_off WHERE name = ?", webhook)
        return from_micros(rows[0][0]) if rows else None

    async def waiting(self) -> dict[str, Waiting]:
        """See ``Outbox``."""
        rows = await self._ask(_fetch, "SELECT webhook, count(*), min(at), min(due_at) FROM message GROUP BY webhook")
        return {name: Waiting(count, from_micros(at), from_micros(due_at)) for name, count, at, due_at in rows}


def addresses_off(connection: sqlite3.Connection) -> dict[str, bytes]:
    """Return the webhooks that are off, each with the SHA-256 of the address that answered 410."""
    return dict(_fetch(connection, "SELECT name, address FROM webhook_off"))


def _fetch(connection: sqlite3.Connection, sql: str, *values: object) -> list[tuple[Any, ...]]:
    return connection.execute(sql, values).fetchall()


def _message(row: tuple[Any, ...]) -> Message:
    number, event, subject, micros, tries, data = row
    return Message(number, event, subject, from_micros(micros), tries, json.loads(data))


# --- changes ----------------------------------------------------------------------------------------


def configure_webhooks(connection: sqlite3.Connection, hooks: Sequence[Hook], now: datetime) -> dict[str, datetime]:
    """Write the messages that ``hooks`` want from now on; return the webhooks that are off, and since when."""
    _forget_others(connection, hooks)
    latest = to_micros(now + FARTHEST)
    connection.execute("UPDATE message SET due_at = ? WHERE due_at > ?", (to_micros(now), latest))
    off = {name: from_micros(at) for name, at in connection.execute("SELECT name, at FROM webhook_off")}
    _want(connection, [hook for hook in hooks if hook.name not in off])
    return off


def _forget_others(connection: sqlite3.Connection, hooks: Sequence[Hook]) -> None:
    """Delete the records of webhooks no longer configured, and switch on those with another address than before."""
    names = json.dumps([hook.name for hook in hooks])
    for sql in (
        "DELETE FROM message WHERE webhook NOT IN (SELECT value FROM json_each(?))",
        "DELETE FROM webhook_off WHERE name NOT IN (SELECT value FROM json_each(?))",
    ):
        connection.execute(sql, (names,))
    moved = [(hook.name, hook.address) for hook in hooks]
    connection.executemany("DELETE FROM webhook_off WHERE name = ? AND address != ?", moved)


def _want(connection: sqlite3.Connection, hooks: Sequence[Hook]) -> None:
    """Make the triggers for the events that webhooks want, or none."""
    for name in _TRIGGERS:
        connection.execute(f"DROP TRIGGER IF EXISTS {name}")
    connection.execute("CREATE TEMP TABLE IF NOT EXISTS wanted (webhook TEXT, event TEXT)")
    connection.execute("DELETE FROM wanted")
    rows = [(hook.name, event) for hook in hooks for event in hook.events]
    connection.executemany("INSERT INTO wanted VALUES (?, ?)", rows)
    if any(event.startswith("file.") for _, event in rows):
        for name, when in _TRIGGERS.items():
            connection.execute(f"CREATE TEMP TRIGGER {name} {when} {_WRITE}")


def add_message(connection: sqlite3.Connection, event: str, subject: str, data: str) -> None:
    """Write an event for each webhook that wants it."""
    connection.execute(
        "INSERT INTO message (webhook, event, subject, at, due_at, data)"  # noqa: S608 - our own clock
        f" SELECT webhook, event, ?, {_NOW}, {_NOW}, ? FROM wanted WHERE event = ?",
        (subject, data, event),
    )


def settle_messages(connection: sqlite3.Connection, done: Sequence[int], later: Mapping[int, datetime]) -> None:
    """Delete messages that are sent or given up; note a failed try of others."""
    connection.execute("DELETE FROM message WHERE id IN (SELECT value FROM json_each(?))", (json.dumps([*done]),))
    rows = [(to_micros(due_at), number) for number, due_at in later.items()]
    connection.executemany("UPDATE message SET tries = tries + 1, due_at = ? WHERE id = ?", rows)


def drop_messages(connection: sqlite3.Connection, webhook: str, before: datetime) -> int:
    """Delete a webhook's messages that were due before that time; return how many."""
    gone = "DELETE FROM message WHERE webhook = ? AND due_at < ?"
    return connection.execute(gone, (webhook, to_micros(before))).rowcount


def switch_off(connection: sqlite3.Connection, hook: Hook, now: datetime) -> int:
    """Write no more messages for a webhook, and delete those that wait; return how many."""
    connection.execute("DELETE FROM wanted WHERE webhook = ?", (hook.name,))
    connection.execute(
        "INSERT OR REPLACE INTO webhook_off (name, address, at) VALUES (?, ?, ?)",
        (hook.name, hook.address, to_micros(now)),
    )
    return connection.execute("DELETE FROM message WHERE webhook = ?", (hook.name,)).rowcount


def switch_on(connection: sqlite3.Connection, hook: Hook) -> None:
    """Write messages for a webhook again."""
    connection.execute("DELETE FROM webhook_off WHERE name = ?", (hook.name,))
    kept = connection.execute("SELECT webhook, event FROM wanted WHERE webhook != ?", (hook.name,)).fetchall()
    by_name: dict[str, list[str]] = {hook.name: [*hook.events]}
    for name, event in kept:
        by_name.setdefault(name, []).append(event)
    _want(connection, [Hook(name, events, b"") for name, events in by_name.items()])
