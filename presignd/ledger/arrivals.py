"""Files that came in by invitations, in SQL: each is recorded once, from the broker's list to its place in a folder.

A file is ``waiting`` while it is downloaded, ``placing`` once its place is chosen, ``placed`` once it is there, and
``done`` once the broker knows that. ``placing`` is committed before the rename, with the file's inode and mtime: so a
crash in between neither loses nor doubles the file, and a watch on the same folder recognizes it at once.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from presignd.ledger.rows import to_sql
from presignd.ledger.writer import Database
from presignd.model import Fingerprint
from presignd.system.clock import from_micros, to_micros

_COLUMNS = "ref, bucket, key, path, size, checksum, part_size, received_at, state, place, ino, mtime_ns, error_code"


class NewArrival(NamedTuple):
    """A file that came in, as the broker lists it: ``ref`` names it, ``path`` is the guest's, sizes are bytes.

    ``checksum`` is "" where none is known; that of a file in parts (``md5:…-N``) is of parts of ``part_size``.
    """

    ref: str
    bucket: str
    key: str
    path: str
    size: int
    checksum: str
    part_size: int
    received_at: datetime


class Arrival(NamedTuple):
    """A recorded file. ``place`` is its path below the inbox's folder; ``ino`` and ``mtime_ns`` identify it there."""

    new: NewArrival
    state: str
    place: bytes
    ino: int
    mtime_ns: int
    error_code: str

    @property
    def is_placed(self) -> bool:
        """Whether the file is in the folder."""
        return self.state in ("placed", "done")


@dataclass(frozen=True, slots=True)
class InboxSummary:
    """One inbox's numbers: files not in the folder yet, stopped ones among these, files in it, when the last came."""

    inbox: str
    waiting: int
    stopped: int
    received: int
    last_at: datetime | None


class ArrivalRecords:
    """The ledger's records of files that came in."""

    def __init__(self, database: Database) -> None:
        self._do, self._ask = database.do, database.ask
        self._any: bool | None = None

    async def record(self, inbox: str, new: Sequence[NewArrival]) -> list[Arrival]:
        """Record files that came in by an inbox, each once; return what is recorded of each, in order."""
        self._any = True
        return await self._do(record_arrivals, new, inbox, rows=len(new))

    async def placing(self, ref: str, place: bytes, ino: int, mtime_ns: int) -> None:
        """Record where a file is about to be, with its inode and mtime, before it is renamed."""
        await self._do(record_placing, ref, place, ino, mtime_ns)

    async def placed(self, ref: str, now: datetime) -> None:
        """Record that a file is in its place, durably."""
        await self._do(record_placed, ref, now)

    async def acked(self, refs: Sequence[str]) -> None:
        """Record that the broker knows of files that are placed."""
        await self._do(record_acked, refs, rows=len(refs))

    async def stopped(self, ref: str, error_code: str, error: str) -> None:
        """Record why a file can't be brought in; ``placing`` forgets it."""
        await self._do(record_stopped, ref, error_code, error)

    async def brought_in(self, fingerprints: Sequence[Fingerprint]) -> set[Fingerprint]:
        """Return those files that an inbox has placed, unchanged since; cheap if nothing ever came in."""
        if not await self._are_any():
            return set()
        return await self._ask(brought_in, fingerprints)

    async def inboxes(self) -> list[InboxSummary]:
        """Return the numbers of each inbox that something came in by."""
        return await self._ask(inboxes) if await self._are_any() else []

    async def forget(self, before: datetime) -> None:
        """Forget files that were placed before ``before``, and that the broker lists no more."""
        if await self._are_any():
            await self._do(forget_arrivals, before)

    async def _are_any(self) -> bool:
        """Return whether anything ever came in. It is queried once: if so, every new file of a watch is looked up."""
        if self._any is None:
            found = bool(await self._ask(any_arrival))
            self._any = bool(self._any) or found  # a first one may have come in since
        return self._any


def record_arrivals(connection: sqlite3.Connection, new: Sequence[NewArrival], inbox: str) -> list[Arrival]:
    """Record files that are not recorded yet; return what is recorded of each, in order.

    A file that another inbox had begun belongs to this one from now on: it begins anew in this folder.
    """
    connection.executemany(
        "INSERT INTO arrival (ref, bucket, key, path, size, checksum, part_size, received_at, inbox)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (ref) DO UPDATE SET inbox = excluded.inbox, state = 'waiting'"
        " WHERE inbox != excluded.inbox AND state IN ('waiting', 'placing')",
        [(*map(to_sql, each), inbox) for each in new],
    )
    found = {
        row[0]: _arrival(row)
        for row in connection.execute(
            f"SELECT {_COLUMNS} FROM arrival WHERE ref IN (SELECT value FROM json_each(?))",  # noqa: S608
            (json.dumps([each.ref for each in new]),),
        )
    }
    return [found[each.ref] for each in new]


def record_placing(connection: sqlite3.Connection, ref: str, place: bytes, ino: int, mtime_ns: int) -> None:
    """Record where a file is about to be, with its inode and mtime."""
    connection.execute(
        "UPDATE arrival SET state = 'placing', place = ?, ino = ?, mtime_ns = ?, error_code = '', error = ''"
        " WHERE ref = ?",
        (place, to_sql(ino), to_sql(mtime_ns), ref),
    )


def record_placed(connection: sqlite3.Connection, ref: str, now: datetime) -> None:
    """Record that a file is in its place."""
    connection.execute("UPDATE arrival SET state = 'placed', placed_at = ? WHERE ref = ?", (to_micros(now), ref))


def record_acked(connection: sqlite3.Connection, refs: Collection[str]) -> None:
    """Record that the broker knows of files that are placed."""
    connection.executemany(
        "UPDATE arrival SET state = 'done' WHERE ref = ? AND state = 'placed'", [(ref,) for ref in refs]
    )


def record_stopped(connection: sqlite3.Connection, ref: str, error_code: str, error: str) -> None:
    """Record why a file can't be brought in."""
    connection.execute("UPDATE arrival SET error_code = ?, error = ? WHERE ref = ?", (error_code, to_sql(error), ref))


def forget_arrivals(connection: sqlite3.Connection, before: datetime) -> None:
    """Forget files that were placed before ``before``, and that the broker lists no more."""
    connection.execute("DELETE FROM arrival WHERE state = 'done' AND placed_at < ?", (to_micros(before),))


def any_arrival(connection: sqlite3.Connection) -> bool:
    """Return whether anything ever came in."""
    return bool(connection.execute("SELECT EXISTS (SELECT 1 FROM arrival)").fetchone()[0])


def brought_in(connection: sqlite3.Connection, fingerprints: Sequence[Fingerprint]) -> set[Fingerprint]:
    """Return those files that are as an inbox has placed them, under any name."""
    return {
        each
        for each in fingerprints
        if connection.execute(
            "SELECT 1 FROM arrival WHERE ino = ? AND mtime_ns = ? AND size = ?",
            (to_sql(each.ino), to_sql(each.mtime_ns), each.size),
        ).fetchone()
    }


def inboxes(connection: sqlite3.Connection) -> list[InboxSummary]:
    """Return the numbers of each inbox that something came in by."""
    return [
        InboxSummary(inbox, waiting, stopped, received, from_micros(last_at))
        for inbox, waiting, stopped, received, last_at in connection.execute(
            "SELECT inbox, sum(state IN ('waiting', 'placing')), sum(error_code != ''),"
            " sum(state IN ('placed', 'done')), max(placed_at) FROM arrival GROUP BY inbox"
        )
    ]


def _arrival(row: Any) -> Arrival:
    *columns, received_at, state, place, ino, mtime_ns, error_code = row
    new = NewArrival._make((*columns, from_micros(received_at)))
    return Arrival(new, state, place, int(ino or 0), int(mtime_ns or 0), error_code)
