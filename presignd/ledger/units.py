"""Folders that are linked as a whole: which are complete, their files, and the SHA-256 of each file.

A folder has a row once it is complete, in the commit that records its two own files, ``MANIFEST.json`` and
``SHA256SUMS``, as versions. From then on the state of its manifest's version is the unit's own; there is no other.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import NamedTuple

from presignd.ledger import changes
from presignd.ledger.changes import Change
from presignd.ledger.queries import select
from presignd.ledger.rows import Enqueued, LostUpdate, to_sql
from presignd.ledger.writer import Database
from presignd.model import NO_FILE, FileVersion, NewVersion, State
from presignd.states import Event
from presignd.system.clock import from_micros, to_micros

MEMBER_STATES = frozenset({State.VERIFIED, State.LINKED, State.FINISHED})
"""States of a version that may be in a unit: its object is stored."""

_STATES = ", ".join(f"'{state}'" for state in sorted(MEMBER_STATES))
_MEMBERS = "SELECT version FROM member WHERE unit = ?"
_IN_OPEN_UNIT = (
    "SELECT member.version FROM member JOIN folder_unit ON folder_unit.id = member.unit"
    " WHERE folder_unit.watch = ? AND folder_unit.open = 1"
)


class Marker(NamedTuple):
    """When a ready marker was written: its size in bytes and mtime in nanoseconds."""

    size: int
    mtime_ns: int


class Unit(NamedTuple):
    """A complete folder (below the watch's root), when it was made (UTC), and the versions of its two own files."""

    id: int
    folder: bytes
    made: datetime
    manifest: FileVersion
    sums: FileVersion


class NewUnit(NamedTuple):
    """A folder that was seen to be complete: its marker, the file_ids of its members, and its two own files."""

    watch: str
    folder: bytes
    marker: Marker
    made: datetime
    members: Sequence[str]
    manifest: NewVersion
    sums: NewVersion


class Member(NamedTuple):
    """One file of a unit, as the manifest and the list of sums name it. ``path`` is below the watch's root."""

    path: bytes
    key: str
    size: int
    checksum: str
    sha256: str


class UnitRecords:
    """The ledger's record of units."""

    def __init__(self, database: Database) -> None:
        self._do, self._ask = database.do, database.ask

    async def markers(self, watch: str) -> dict[bytes, Marker]:
        """Return the marker of the newest unit of each folder of a watch."""
        return await self._ask(markers, watch)

    async def open(self, watch: str) -> list[Unit]:
        """Return the units of a watch that are not finished, oldest first."""
        return await self._ask(open_units, watch)

    async def of_made(self, version: FileVersion) -> Unit | None:
        """Return the unit that has this version as one of its two own files, None if there is none."""
        return await self._ask(of_made, version)

    async def without_sha256(self, file_ids: Sequence[str], limit: int) -> list[FileVersion]:
        """Return up to ``limit`` of these versions whose SHA-256 is not recorded."""
        return await self._ask(without_sha256, file_ids, limit)

    async def record_sha256(self, found: Sequence[tuple[str, str]]) -> None:
        """Record SHA-256 sums (hex) by file_id; they are kept for later units with the same version."""
        await self._do(record_sha256, found, rows=len(found))

    async def members(self, file_ids: Sequence[str]) -> list[Member]:
        """Return these versions as members, in byte order of their paths."""
        return await self._ask(members_of, file_ids)

    async def members_of(self, unit: int) -> list[Member]:
        """Return a unit's members, in byte order of their paths."""
        return await self._ask(members_of_unit, unit)

    async def complete(self, new: NewUnit, now: datetime) -> list[Enqueued]:
        """Record a complete folder and queue its two own files, in one commit.

        A verified file below it that is no member left it before it was complete: it ends as vanished, and is in the
        result, too. Raises ``LostUpdate``, with nothing recorded, if a member or an earlier unit of the folder changed
        its state or is at work.
        """
        return await self._do(complete_unit, new, now, rows=2)

    async def in_state(self, unit: Unit, state: State, limit: int) -> list[FileVersion]:
        """Return up to ``limit`` members of a unit in ``state``, and the list of sums if that is in it too."""
        return await self._ask(in_state, unit, state, limit)

    async def left(self, watch: str, limit: int) -> list[FileVersion]:
        """Return up to ``limit`` versions that wait for a unit to be complete and whose files are gone."""
        return await self._ask(left, watch, limit)

    async def close(self, unit: Unit) -> None:
        """Record that a unit is finished."""
        await self._do(close_unit, unit.id)


def markers(connection: sqlite3.Connection, watch: str) -> dict[bytes, Marker]:
    """Return what ``UnitRecords.markers`` does: SQLite takes the other columns from the row with the highest id."""
    rows = connection.execute(
        "SELECT folder, marker_size, marker_mtime, max(id) FROM folder_unit WHERE watch = ? GROUP BY folder", (watch,)
    )
    return {folder: Marker(size, int(mtime)) for folder, size, mtime, _ in rows}


def open_units(connection: sqlite3.Connection, watch: str) -> list[Unit]:
    """Return the rows with ``open = 1``, with their two versions."""
    return _units(connection, "open = 1 AND watch = ? ORDER BY id", watch)


def of_made(connection: sqlite3.Connection, version: FileVersion) -> Unit | None:
    """Return the newest unit of the folder that has this version."""
    where = "watch = ? AND folder = ? ORDER BY id DESC LIMIT 1"
    found = _units(connection, where, version.watch, version.path.rstrip(b"/"))
    return next((unit for unit in found if version.file_id in {unit.manifest.file_id, unit.sums.file_id}), None)


def _units(connection: sqlite3.Connection, where: str, *values: object) -> list[Unit]:
    rows = connection.execute(f"SELECT id, folder, made, manifest, sums FROM folder_unit WHERE {where}", values)  # noqa: S608 - our own words
    return [
        Unit(id_, folder, from_micros(made), *_two(connection, manifest, sums))
        for id_, folder, made, manifest, sums in rows
    ]


def _two(connection: sqlite3.Connection, *ids: int) -> Iterator[FileVersion]:
    return (select(connection, "id = ?", id_)[0] for id_ in ids)


def without_sha256(connection: sqlite3.Connection, file_ids: Sequence[str], limit: int) -> list[FileVersion]:
    """Return versions without a row in ``sha256``."""
    where = (
        "file_id IN (SELECT value FROM json_each(?)) AND NOT EXISTS"
        " (SELECT 1 FROM sha256 WHERE sha256.version = version.id) ORDER BY path LIMIT ?"
    )
    return select(connection, where, json.dumps([*file_ids]), limit)


def record_sha256(connection: sqlite3.Connection, found: Sequence[tuple[str, str]]) -> None:
    """Insert sums by file_id."""
    connection.execute(
        "INSERT OR REPLACE INTO sha256 (version, hex) SELECT version.id, json_extract(v.value, '$[1]')"
        " FROM json_each(?) AS v JOIN version ON version.file_id = json_extract(v.value, '$[0]')",
        (json.dumps(found),),
    )


_MEMBER = (
    "SELECT path, key, size, checksum, hex FROM version JOIN sha256 ON sha256.version = version.id"
    " WHERE version.{} ORDER BY path"
)


def members_of(connection: sqlite3.Connection, file_ids: Sequence[str]) -> list[Member]:
    """Return versions with their sums, in byte order of their paths."""
    sql = _MEMBER.format("file_id IN (SELECT value FROM json_each(?))")
    return [Member(*row) for row in connection.execute(sql, (json.dumps([*file_ids]),))]


def members_of_unit(connection: sqlite3.Connection, unit: int) -> list[Member]:
    """Return the members of a unit, as ``members_of`` returned them before it was recorded."""
    return [Member(*row) for row in connection.execute(_MEMBER.format(f"id IN ({_MEMBERS})"), (unit,))]


def complete_unit(connection: sqlite3.Connection, new: NewUnit, now: datetime) -> list[Enqueued]:
    """Insert a unit with its members, as ``UnitRecords.complete`` says."""
    done = changes.enqueue(connection, [new.sums, new.manifest])
    inserted = connection.execute(
        "INSERT INTO folder_unit (watch, folder, marker_size, marker_mtime, made, manifest, sums)"
        " SELECT ?, ?, ?, ?, ?, manifest.id, sums.id FROM version AS manifest, version AS sums"
        " WHERE manifest.file_id = ? AND sums.file_id = ?",
        (
            *(new.watch, new.folder, new.marker.size, to_sql(new.marker.mtime_ns), to_micros(new.made)),
            *(new.manifest.file_id, new.sums.file_id),
        ),
    )
    _insert_members(connection, inserted.lastrowid, new)
    # b"0" follows b"/": all paths below the folder, and no others.
    below = "watch = ? AND path > ? AND path < ? AND current = 1 AND +state = 'verified'"
    where = f"{below} AND priority > 0 AND ino != {NO_FILE} AND id NOT IN ({_MEMBERS})"
    others = select(connection, where, new.watch, new.folder + b"/", new.folder + b"0", inserted.lastrowid)
    vanished = changes.apply(connection, [Change(one, (Event.VANISH,), {"done_at": now}) for one in others])
    return [*done, *map(Enqueued, vanished)]


def _insert_members(connection: sqlite3.Connection, unit: int | None, new: NewUnit) -> None:
    inserted = connection.execute(
        f"INSERT INTO member (unit, version) SELECT ?, id FROM version WHERE current = 1 AND gone_at IS NULL"  # noqa: S608 - our own words
        f" AND +state IN ({_STATES}) AND file_id IN (SELECT value FROM json_each(?))",
        (unit, json.dumps([*new.members])),
    )
    if inserted.rowcount != len(new.members):
        raise LostUpdate(f"{new.manifest.file_id}: {inserted.rowcount} members instead of {len(new.members)}")


def in_state(connection: sqlite3.Connection, unit: Unit, state: State, limit: int) -> list[FileVersion]:
    """Return members and the list of sums by state."""
    where = f"+state = ? AND id IN ({_MEMBERS} UNION ALL SELECT sums FROM folder_unit WHERE id = ?) LIMIT ?"  # noqa: S608 - our own words
    return select(connection, where, str(state), unit.id, unit.id, limit)


def left(connection: sqlite3.Connection, watch: str, limit: int) -> list[FileVersion]:
    """Return verified versions with ``gone_at`` that no open unit has; a file that ``put`` sent waits for none."""
    where = f"state = 'verified' AND watch = ? AND gone_at IS NOT NULL AND priority > 0 AND ino != {NO_FILE}"
    return select(connection, f"{where} AND id NOT IN ({_IN_OPEN_UNIT}) LIMIT ?", watch, watch, limit)


def close_unit(connection: sqlite3.Connection, unit: int) -> None:
    """Set ``open`` to 0."""
    connection.execute("UPDATE folder_unit SET open = 0 WHERE id = ?", (unit,))
