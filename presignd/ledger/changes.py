"""The ledger's changes in SQL. Each names the state that it leaves, and makes only the moves of ``presignd.states``.

Most changes take a list, as the stages do. A statement for hundreds of rows runs without the GIL and costs a fifth of
one statement per row. A change writes all of its rows or raises; then the caller rolls back what it wrote.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from functools import lru_cache, reduce
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

from presignd.errors import fault
from presignd.ledger import keys
from presignd.ledger.queries import by_path, literals, previous_receipt, previous_receipts, select
from presignd.ledger.rows import (
    CHANGEABLE,
    FINGERPRINT,
    NEW_COLUMNS,
    Claimed,
    Enqueued,
    LostUpdate,
    Selection,
    as_recorded,
    etag_of,
    row_of_new,
    to_sql,
    with_fields,
)
from presignd.model import FileVersion, Fingerprint, LinksMark, NewVersion, Part, State
from presignd.states import IN_FLIGHT, LEFT, TRANSITIONS, UNCLEAN_LIMIT, WAITING, Event, after, retry_event
from presignd.system.clock import from_micros, to_micros

CHUNK = 1000
"""Versions recorded as gone, or deleted, in one commit: uploads must not wait long for it."""

Intents: TypeAlias = Mapping[str, str]
"""The intents of new versions that are claimed as they are recorded, by file_id (see ``Claim``)."""
NOTHING: Mapping[str, Any] = MappingProxyType({})

ROWS = 64
"""New versions in one statement: all of a turn (``pipeline.stage.TURN``)."""

# The plus: see ``schema.UNANNOUNCED``.
_IN_STATE = {state: f"+version.state = '{state}'" for state in State}
_CURRENT = f"version.current = 1 AND +version.state NOT IN ({literals(LEFT)})"

_IMPLIED = {Event.VERIFY: (("unclean", 0), ("verified", 1)), Event.LINK: (("linked", True),)}
"""Columns that an event writes, besides the state."""

_RETRIED = {"attempt": 0, "faults": 0, "unclean": 0, "not_before": None, "error_code": "", "error": ""}


class Change(NamedTuple):
    """A change of one version: the events that move it, one after the other, and the fields that get new values."""

    version: FileVersion
    events: tuple[Event, ...] = ()
    fields: Mapping[str, Any] = NOTHING


class Claim(NamedTuple):
    """A queued version to be sent, and its intent: its object's checksum, "" while that is unknown."""

    version: FileVersion
    intent: str = ""


# --- moves -------------------------------------------------------------------------------


def apply(connection: sqlite3.Connection, changes: Sequence[Change]) -> list[FileVersion]:
    """Move versions and change their fields; return each as its own change leaves it.

    Raises ``LostUpdate`` unless every version is in the state it names, ``BadTransition`` for a move that is not in the
    table, ``TypeError`` for an unknown field.
    """
    alike: dict[tuple[State, tuple[Event, ...], tuple[str, ...]], list[int]] = {}
    for place, change in enumerate(changes):
        alike.setdefault((change.version.state, change.events, (*change.fields,)), []).append(place)
    moved: dict[int, FileVersion] = {}
    for places in alike.values():
        moved.update(zip(places, _apply_alike(connection, [changes[place] for place in places]), strict=True))
    return [moved[place] for place in range(len(changes))]


def _apply_alike(connection: sqlite3.Connection, changes: Sequence[Change]) -> list[FileVersion]:
    """Apply changes that move versions from one state by the same events, and set the same fields."""
    versions, columns = [change.version for change in changes], _columns(changes)
    _update(connection, [version.file_id for version in versions], columns, _IN_STATE[versions[0].state])
    if "upload_id" in columns:
        ended = zip(versions, columns["upload_id"], strict=True)
        _forget_parts(connection, [version for version, now in ended if version.upload_id not in ("", now)])
    if Event.VANISH in changes[0].events:
        keys.release(connection, [(version.bucket, version.key) for version in versions])
    return with_fields(versions, columns)


def _columns(changes: Sequence[Change]) -> dict[str, Sequence[Any]]:
    """Return the new values of alike changes, with those that their events imply, as columns."""
    version, events, fields = changes[0]
    if not fields.keys() <= CHANGEABLE:
        raise TypeError(f"not to be changed like this: {', '.join(fields.keys() - CHANGEABLE)}")
    columns: dict[str, Sequence[Any]] = {}
    columns |= zip(fields, zip(*[change.fields.values() for change in changes], strict=True), strict=True)
    if events:
        state = reduce(after, events, version.state)
        implied = [("state", state), *(each for event in events for each in _IMPLIED.get(event, ()))]
        columns |= {name: [value] * len(changes) for name, value in implied}
        if state in LEFT:
            columns["gone_at"] = [_left_at(change) for change in changes]
    return columns


def _left_at(change: Change) -> datetime:
    version, _, fields = change
    gone_at: datetime | None = fields.get("gone_at", version.gone_at)
    return gone_at or fields.get("done_at", version.done_at) or version.queued_at


def _forget_parts(connection: sqlite3.Connection, versions: Collection[FileVersion]) -> None:
    if versions:
        connection.execute(
            "DELETE FROM part WHERE version IN"
            " (SELECT id FROM version WHERE file_id IN (SELECT value FROM json_each(?)))",
            (json.dumps([version.file_id for version in versions]),),
        )


def claim(connection: sqlite3.Connection, wanted: Sequence[Claim]) -> list[Claimed | None]:
    """Move queued versions to uploading, as ``Ledger.claim`` says."""
    ids = json.dumps([one.version.file_id for one in wanted])
    queued = {*connection.execute(_STILL_QUEUED, (ids,))}
    unchanged = [_claim_of(one) for one in wanted if (one.version.file_id, one.version.attempt) in queued]
    claimed = {version.file_id: version for version in apply(connection, unchanged)}
    previous = previous_receipts(connection, claimed.values())
    found = {file_id: Claimed(version, previous.get(file_id)) for file_id, version in claimed.items()}
    return [found.get(one.version.file_id) for one in wanted]


_STILL_QUEUED = """
SELECT file_id, attempt FROM version WHERE +state = 'queued' AND file_id IN (SELECT value FROM json_each(?))"""


def _claim_of(one: Claim) -> Change:
    version = one.version
    etag = version.etag or etag_of(one.intent)
    return Change(version, (Event.CLAIM,), {"attempt": version.attempt + 1, "etag": etag})


def record_linked(connection: sqlite3.Connection, changes: Sequence[Change], mark: LinksMark) -> list[FileVersion]:
    """Apply the changes of versions whose links were made, and set the mark of ``links.jsonl``."""
    moved = apply(connection, changes)
    set_meta(connection, links_inode=mark.inode, links_offset=mark.offset)
    return moved


def requeue(connection: sqlite3.Connection, selection: Selection, now: datetime) -> list[FileVersion]:
    """Move the selected quarantined versions by ``states.retry_event``."""
    where, values = ["state = 'quarantined'"], []
    if selection.path is not None:
        where.append("current = 1 AND watch = ? AND path = ?")
        values += [*selection.path]
    for column, value in (("watch", selection.watch), ("error_code", selection.error_code)):
        if value is not None:
            where.append(f"{column} = ?")
            values.append(value)
    chosen = select(connection, f"{' AND '.join(where)} ORDER BY id", *values)
    return apply(connection, [_retried(version, now) for version in chosen])


def _retried(version: FileVersion, now: datetime) -> Change:
    event = retry_event(version)
    kept = {"attempt": version.attempt} if event is Event.RESUME else {"queued_at": now}
    return Change(version, (event,), {**_RETRIED, **kept})


def release(connection: sqlite3.Connection, *, unclean: bool) -> list[FileVersion]:
    """``Ledger.release``: count the unclean exit, quarantine, then put the rest back."""
    stopped: list[FileVersion] = []
    if unclean:
        (uploading,) = connection.execute("SELECT count(*) FROM version WHERE state = 'uploading'").fetchone()
        counted = "UPDATE version SET unclean = max(unclean, 1) + ? WHERE state = 'uploading'"
        connection.execute(counted, (uploading == 1,))
        problem = fault("internal_error", f"it was in flight, alone, at {UNCLEAN_LIMIT} unclean exits")
        error = {"error_code": problem.code, "error": problem.message}
        worst = select(connection, "state = 'uploading' AND unclean > ?", UNCLEAN_LIMIT)
        stopped = apply(connection, [Change(version, (Event.QUARANTINE,), error) for version in worst])
    back = str(after(State.UPLOADING, Event.RELEASE))
    connection.execute("UPDATE version SET state = ? WHERE state = 'uploading'", (back,))
    return stopped


# --- new versions, and files that are gone ------------------------------------------------------------


def enqueue_new(
    connection: sqlite3.Connection, versions: Sequence[NewVersion], intents: Intents = NOTHING
) -> list[Enqueued]:
    """Record new versions of new paths, ``ROWS`` in one statement; raise ``IntegrityError`` if a path or key is taken.

    The tables' own constraints decide: a path has one current version, a key one path.
    """
    recorded = [
        as_recorded(new, None if new.state is State.IGNORED else to_sql(new.key), intents.get(new.file_id))
        for new in versions
    ]
    for start in range(0, len(recorded), ROWS):
        keys.reserve_from(connection, _insert(connection, recorded[start : start + ROWS]))
    return [Enqueued(version) for version in recorded]  # nothing was sent under a new path's new key


def enqueue(
    connection: sqlite3.Connection, versions: Sequence[NewVersion], intents: Intents = NOTHING
) -> list[Enqueued]:
    """Record new versions one by one, as ``Ledger.enqueue`` says."""
    return [_enqueue(connection, new, intents.get(new.file_id)) for new in versions]


def _enqueue(connection: sqlite3.Connection, new: NewVersion, intent: str | None) -> Enqueued:
    before = by_path(connection, new.watch, new.path)
    superseded = _supersede(connection, before, new.queued_at) if before else None
    key = _key_for(connection, new, before)
    if new.state is State.QUEUED and new.key is not None and key is None:
        new = _key_taken(connection, new)
    recorded = as_recorded(new, key, intent)
    _insert(connection, [recorded])
    if superseded and superseded.key != key:
        keys.release(connection, [(superseded.bucket, superseded.key)])
    claimed = recorded.state is State.UPLOADING
    return Enqueued(recorded, superseded, previous_receipt(connection, recorded) if claimed else None)


def _insert(connection: sqlite3.Connection, versions: Sequence[FileVersion]) -> int:
    """Insert versions, and return the id of the first."""
    row = f"({','.join('?' * len(NEW_COLUMNS))}, 1)"
    sql = f"INSERT INTO version ({', '.join(NEW_COLUMNS)}, current) VALUES {','.join([row] * len(versions))}"  # noqa: S608 - our own column names
    cursor = connection.execute(sql, [value for version in versions for value in row_of_new(version)])
    assert cursor.lastrowid is not None
    return cursor.lastrowid + 1 - len(versions)  # each gets the highest id and one more


def _supersede(connection: sqlite3.Connection, before: FileVersion, at: datetime) -> FileVersion | None:
    """Take ``before`` off its path, for a newer version; return it as superseded, or None if it had already ended."""
    if before.state in IN_FLIGHT:
        raise LostUpdate(f"{before.file_id} is {before.state}: its newer version has to wait")
    connection.execute(
        "UPDATE version SET current = 0, gone_at = coalesce(gone_at, ?) WHERE file_id = ?",
        (to_micros(at), before.file_id),
    )
    if Event.SUPERSEDE not in TRANSITIONS[before.state]:
        return None
    (superseded,) = apply(connection, [Change(before, (Event.SUPERSEDE,), {"done_at": at})])
    return superseded


def _key_for(connection: sqlite3.Connection, new: NewVersion, before: FileVersion | None) -> str | None:
    if new.key is None or new.state is State.IGNORED:
        return None
    claimant = keys.Claimant(new.watch, new.path, new.bucket)
    if before and not new.fresh_key and (before.bucket, before.base_key) == (new.bucket, new.key) and before.key:
        # Its predecessor's key, unless that was freed unused and is another path's now.
        inherited = keys.reserve(connection, claimant, before.key, fresh=False, next_key=False)
        if inherited:
            return inherited
    return keys.reserve(connection, claimant, to_sql(new.key), fresh=new.fresh_key, next_key=new.next_key)


def _key_taken(connection: sqlite3.Connection, new: NewVersion) -> NewVersion:
    """Return ``new`` quarantined, because its key is another path's."""
    base_key = to_sql(new.key)
    owner = keys.owner(connection, new.bucket, base_key)
    detail = f"{base_key} is {owner.decode('utf-8', 'backslashreplace')}'s" if owner is not None else ""
    problem = fault("key_taken", detail)
    return new._replace(state=State.QUARANTINED, error_code=problem.code, error=problem.message)


def refingerprint(connection: sqlite3.Connection, found: Sequence[tuple[str, Fingerprint]]) -> None:
    """Write fingerprints by ``file_id``, and clear ``gone_at``."""
    file_ids, prints = zip(*found, strict=True)
    _update(connection, file_ids, {"fingerprint": prints, "gone_at": [None] * len(found)}, _CURRENT)


def record_gone(
    connection: sqlite3.Connection, watch: str, paths: Sequence[bytes], now: datetime
) -> tuple[list[FileVersion], bool]:
    """Record versions at and below ``paths``, queued by ``now``, as gone, up to ``CHUNK`` of them.

    Returns those that ended as vanished (the queued and quarantined ones), and whether there may be more.
    """
    found: dict[str, FileVersion] = {}  # ``paths`` may hold a file and its directory
    more = False
    for path in paths:
        if not path:
            raise ValueError("the watch's root is not a file that can be gone")
        # b"0" follows b"/": all paths below the directory, and no others.
        for where, values in (("path = ?", (path,)), ("path > ? AND path < ?", (path + b"/", path + b"0"))):
            limit = CHUNK - len(found)
            some = _not_gone(connection, f"watch = ? AND {where}", (watch, *values), now, limit)
            more = more or len(some) >= limit
            found |= {one.file_id: one for one in some}
    ended = [Change(one, (Event.VANISH,), {"done_at": now}) for one in found.values() if one.state in WAITING]
    apply(connection, [Change(one, (), {"gone_at": now}) for one in found.values() if one.state not in WAITING])
    return apply(connection, ended), more


def _not_gone(
    connection: sqlite3.Connection, where: str, values: tuple[object, ...], now: datetime, limit: int
) -> list[FileVersion]:
    unnoted = f"(gone_at IS NULL OR state IN ({literals(WAITING)}))"
    wanted = f"current = 1 AND {where} AND {unnoted} AND queued_at <= ? LIMIT ?"
    return select(connection, wanted, *values, to_micros(now), limit)


# --- keys and parts -----------------------------------------------------------------------------------


def assign_key(
    connection: sqlite3.Connection,
    version: FileVersion,
    base_key: str,
    *,
    fresh: bool,
    next_key: bool,
    after_key: str = "",
) -> FileVersion | None:
    """Reserve a key as ``Ledger.assign_key`` does, and release the one the version had."""
    claimant = keys.Claimant(version.watch, version.path, version.bucket)
    key = keys.reserve(connection, claimant, base_key, fresh=fresh, next_key=next_key, after_key=after_key)
    if key is None:
        return None
    etag = version.etag if version.key in (None, key) else ""  # nothing was sent under the new key yet
    fields: dict[str, Sequence[Any]] = {"base_key": [base_key], "key": [key], "verified": [0], "etag": [etag]}
    _update(connection, [version.file_id], fields, _IN_STATE[version.state])
    if version.key != key:
        keys.release(connection, [(version.bucket, version.key)])
    return version._replace(base_key=base_key, key=key, etag=etag)


def record_part(connection: sqlite3.Connection, version: FileVersion, part: Part) -> None:
    """Insert a part; one that was sent again replaces its row. Raises ``LostUpdate`` for another upload's part."""
    inserted = connection.execute(
        "INSERT OR REPLACE INTO part (version, number, size, md5, etag)"
        " SELECT id, ?, ?, ?, ? FROM version WHERE file_id = ? AND upload_id = ?",
        (part.number, part.size, part.digest, part.etag, version.file_id, version.upload_id),
    )
    if inserted.rowcount != 1:
        raise LostUpdate(f"{version.file_id}: part {part.number} of an upload that is not its own")
    # A version that makes progress does not kill the daemon; a large file may be in flight at many exits.
    connection.execute("UPDATE version SET unclean = 0 WHERE file_id = ? AND unclean > 0", (version.file_id,))


# --- start, end, upkeep -------------------------------------------------------------------------------


def first_start(connection: sqlite3.Connection, watch: str, now: datetime) -> tuple[datetime, bool]:
    """Return the watch's first start and whether its first scan is still to be finished; insert its row if missing."""
    connection.execute("INSERT OR IGNORE INTO watch (name, first_started_at) VALUES (?, ?)", (watch, to_micros(now)))
    started_at, done = connection.execute(
        "SELECT first_started_at, first_scan_done FROM watch WHERE name = ?", (watch,)
    ).fetchone()
    return from_micros(started_at), not done


def first_scan_done(connection: sqlite3.Connection, watch: str) -> None:
    """Set ``first_scan_done`` in the watch's row."""
    _require_all(connection.execute("UPDATE watch SET first_scan_done = 1 WHERE name = ?", (watch,)), [watch])


def begin_run(connection: sqlite3.Connection) -> bool:
    """Set the mark ``clean`` to 0; return whether it was 1, or there was none (a new ledger)."""
    row = connection.execute("SELECT value FROM meta WHERE key = 'clean'").fetchone()
    set_meta(connection, clean=0)
    return row is None or bool(row[0])


def record_announced(connection: sqlite3.Connection, file_ids: Sequence[str]) -> None:
    """Set ``announced`` in the rows of these versions."""
    cursor = connection.execute(
        "UPDATE version SET announced = 1 WHERE file_id IN (SELECT value FROM json_each(?))",
        (json.dumps(list(file_ids)),),
    )
    _require_all(cursor, file_ids)


def prune(connection: sqlite3.Connection, before: datetime) -> int:
    """Delete up to ``CHUNK`` rows that ``Ledger.prune`` may; return how many."""
    old = connection.execute(
        "SELECT id, bucket, key FROM version AS old WHERE gone_at IS NOT NULL AND gone_at < ? AND upload_id = ''"
        " AND (+state = 'ignored' OR announced = 1 AND +state IN ('finished', 'vanished', 'superseded'))"
        " AND NOT EXISTS (SELECT 1 FROM version AS now WHERE now.current = 1 AND now.watch = old.watch"
        " AND now.path = old.path AND now.state IN ('queued', 'uploading', 'quarantined')) LIMIT ?",
        (to_micros(before), CHUNK),
    ).fetchall()
    connection.executemany("DELETE FROM version WHERE id = ?", [(id_,) for id_, _, _ in old])
    keys.forget(connection, {(bucket, key) for _, bucket, key in old if key is not None})
    return len(old)


def set_meta(connection: sqlite3.Connection, **values: int) -> None:
    """Record values of the ledger as a whole."""
    rows = ", ".join(["(?, ?)"] * len(values))
    flat = [each for name, value in values.items() for each in (name, to_sql(value))]
    connection.execute(f"INSERT OR REPLACE INTO meta (key, value) VALUES {rows}", flat)  # noqa: S608 - only parameter marks


# --- many rows in one statement -----------------------------------------------------------------------


def _update(
    connection: sqlite3.Connection, file_ids: Sequence[str], fields: Mapping[str, Sequence[Any]], condition: str
) -> None:
    """Write fields of versions, given as columns, by ``file_id``; each version must meet the condition.

    A value that is the same for all is one parameter, the others are a table in JSON.
    """
    columns = {name: column for name, column in fields.items() if name != "fingerprint"}
    if "fingerprint" in fields:
        columns |= zip(FINGERPRINT, zip(*fields["fingerprint"], strict=True), strict=True)
    same = {name: to_sql(column[0]) for name, column in columns.items() if column.count(column[0]) == len(column)}
    each = {name: map(to_sql, column) for name, column in columns.items() if name not in same}
    table = {file_id: row for file_id, *row in zip(file_ids, *each.values(), strict=True)}
    sql = _update_from_table((*same,), (*each,), condition)
    _require_all(connection.execute(sql, (*same.values(), json.dumps(table))), file_ids)


@lru_cache(maxsize=64)
def _update_from_table(same: tuple[str, ...], each: tuple[str, ...], condition: str) -> str:
    sets = [f"{name} = ?" for name in same]
    sets += [f"{name} = json_extract(v.value, '$[{place}]')" for place, name in enumerate(each)]
    return (
        f"UPDATE version SET {', '.join(sets)} FROM json_each(?) AS v"  # noqa: S608 - our own column names
        f" WHERE version.file_id = v.key AND {condition}"
    )


def _require_all(cursor: sqlite3.Cursor, names: Sequence[str]) -> None:
    if cursor.rowcount != len(names):
        missed = f"{cursor.rowcount} rows instead of {len(names)}"
        raise LostUpdate(f"{', '.join(names[:3])}{', …' * (len(names) > 3)}: {missed}")  # noqa: PLR2004 - enough to look for
