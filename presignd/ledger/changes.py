"""The ledger's changes in SQL. Each names the state it leaves, and moves only as ``presignd.states`` says."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from presignd.errors import LONGEST_PAUSE, fault
from presignd.ledger import bulk, keys
from presignd.ledger.queries import by_id, by_path, marks, select
from presignd.ledger.rows import (
    Enqueued,
    LostUpdate,
    Selection,
    columns_of,
    columns_of_new,
    from_micros,
    to_micros,
    to_sql,
)
from presignd.model import FileVersion, Fingerprint, LinksMark, NewVersion, State
from presignd.states import IN_FLIGHT, TRANSITIONS, UNCLEAN_LIMIT, Event, after, retry_event

CHUNK = 1000
"""Versions noted as gone or forgotten in one commit, so that the uploads never wait long for these."""

LONGEST = timedelta(seconds=LONGEST_PAUSE)

_LEFT = frozenset({State.VANISHED, State.SUPERSEDED})
_AGAIN = {"attempt": 0, "faults": 0, "unclean": 0, "not_before": None, "error_code": "", "error": ""}


# --- settle -------------------------------------------------------------------------------------------


def first_start(connection: sqlite3.Connection, watch: str, now: datetime) -> tuple[datetime, bool]:
    """Return when ``watch`` was first started, and whether its first scan is still to be finished."""
    connection.execute("INSERT OR IGNORE INTO watch (name, first_started_at) VALUES (?, ?)", (watch, to_micros(now)))
    started_at, done = connection.execute(
        "SELECT first_started_at, first_scan_done FROM watch WHERE name = ?", (watch,)
    ).fetchone()
    return from_micros(started_at) or now, not done


def first_scan_done(connection: sqlite3.Connection, watch: str) -> None:
    """Record that the first scan of ``watch`` went through."""
    _one(connection.execute("UPDATE watch SET first_scan_done = 1 WHERE name = ?", (watch,)), watch)


def enqueue(connection: sqlite3.Connection, versions: Sequence[NewVersion]) -> list[Enqueued]:
    """Record new versions, each the current one of its path from now on; all of them or none."""
    done: list[Enqueued] = []
    for start in range(0, len(versions), bulk.ROWS):
        some = versions[start : start + bulk.ROWS]
        done += bulk.enqueue(connection, some) or [_enqueue(connection, new) for new in some]
    return done


def _enqueue(connection: sqlite3.Connection, new: NewVersion) -> Enqueued:
    before = by_path(connection, new.watch, new.path)
    superseded = _replace(connection, before, new.queued_at) if before else None
    key = _key_for(connection, new, before)
    row = columns_of_new(new, key)
    if new.state is State.QUEUED and new.key is not None and key is None:
        row |= _taken(connection, new)
    sql = f"INSERT INTO version ({', '.join(row)}) VALUES ({marks(row)})"  # noqa: S608 - our own column names
    connection.execute(sql, tuple(row.values()))
    if superseded and superseded.key != key:
        keys.release(connection, superseded.bucket, superseded.key)
    return Enqueued(_must(by_id(connection, new.file_id)), superseded)


def _replace(connection: sqlite3.Connection, before: FileVersion, at: datetime) -> FileVersion | None:
    """Make room for a newer version; return ``before`` when that ended it."""
    if before.state in IN_FLIGHT:
        raise LostUpdate(f"{before.file_id} is {before.state}: its newer version has to wait")
    ends = Event.SUPERSEDE in TRANSITIONS[before.state]
    connection.execute(
        "UPDATE version SET current = 0, gone_at = coalesce(gone_at, ?) WHERE file_id = ?",
        (to_micros(at), before.file_id),
    )
    return apply(connection, before, Event.SUPERSEDE, {"done_at": at}) if ends else None


def _key_for(connection: sqlite3.Connection, new: NewVersion, before: FileVersion | None) -> str | None:
    if new.key is None or new.state is State.IGNORED:
        return None
    who = keys.Claimant(new.watch, new.path, new.bucket)
    if before and not new.fresh_key and (before.bucket, before.base_key) == (new.bucket, new.key) and before.key:
        # Its predecessor's key, unless that was given up unused and is another path's now.
        inherited = keys.reserve(connection, who, before.key, fresh=False, next_key=False)
        if inherited:
            return inherited
    return keys.reserve(connection, who, to_sql(new.key), fresh=new.fresh_key, next_key=new.next_key)


def _taken(connection: sqlite3.Connection, new: NewVersion) -> dict[str, str]:
    owner = keys.owner(connection, new.bucket, to_sql(new.key))
    detail = f"{new.key} is {owner.decode('utf-8', 'backslashreplace')}'s" if owner is not None else ""
    problem = fault("key_taken", detail)
    return {"state": str(State.QUARANTINED), "error_code": problem.code, "error": to_sql(problem.message)}


def refingerprint(connection: sqlite3.Connection, file_id: str, fingerprint: Fingerprint) -> None:
    """Record that the same content is there with this fingerprint; it counts no longer as gone."""
    row = columns_of({"fingerprint": fingerprint, "gone_at": None})
    there = "current = 1 AND state NOT IN ('vanished', 'superseded')"
    sql = f"UPDATE version SET {_sets(row)} WHERE file_id = ? AND {there}"  # noqa: S608 - our own column names
    _one(connection.execute(sql, (*row.values(), file_id)), file_id)


def gone(
    connection: sqlite3.Connection, watch: str, paths: Sequence[bytes], now: datetime
) -> tuple[list[FileVersion], bool]:
    """Note versions at and below ``paths``, queued by ``now``, as gone, up to ``CHUNK`` of them.

    Returns those that ended as vanished, the queued and quarantined ones, and whether there may be more.
    """
    noted: list[FileVersion] = []
    for path in paths:
        if not path:
            raise ValueError("the watch's root is no file that can be gone")
        # b"0" follows b"/": all paths below the directory, and no others.
        for where, values in (("path = ?", (path,)), ("path > ? AND path < ?", (path + b"/", path + b"0"))):
            noted += _gone(connection, f"watch = ? AND {where}", (watch, *values), now, CHUNK - len(noted))
    return [version for version in noted if version.state is State.VANISHED], len(noted) >= CHUNK


def _gone(
    connection: sqlite3.Connection, where: str, values: tuple[object, ...], now: datetime, limit: int
) -> list[FileVersion]:
    unnoted = "(gone_at IS NULL OR state IN ('queued', 'quarantined'))"
    found = select(
        connection, f"current = 1 AND {where} AND {unnoted} AND queued_at <= ? LIMIT ?", *values, to_micros(now), limit
    )
    return [_leave(connection, version, now) for version in found]


def _leave(connection: sqlite3.Connection, version: FileVersion, now: datetime) -> FileVersion:
    if version.state in {State.QUEUED, State.QUARANTINED}:
        return apply(connection, version, Event.VANISH, {"done_at": now})
    return update(connection, version, {"gone_at": now})


# --- worker -------------------------------------------------------------------------------------------


def claim(
    connection: sqlite3.Connection,
    watch: str,
    limit: int,
    now: datetime,
    below_size: int | None,
    *,
    most_priority: int | None = None,
) -> list[FileVersion]:
    """Move up to ``limit`` due queued versions of ``watch`` to uploading, by priority, then age.

    One that is to wait for longer than any pause is due: the clock was set back since that was written.
    """
    due = connection.execute(
        "SELECT id, file_id FROM version WHERE state = 'queued' AND watch = ?"
        " AND (not_before IS NULL OR not_before NOT BETWEEN ? AND ?) AND (? IS NULL OR size < ?)"
        " AND (? IS NULL OR priority <= ?) ORDER BY priority, id LIMIT ?",
        (watch, to_micros(now) + 1, to_micros(now + LONGEST), *(below_size,) * 2, *(most_priority,) * 2, limit),
    ).fetchall()
    uploading = str(after(State.QUEUED, Event.CLAIM))
    chosen = "id IN (SELECT value FROM json_each(?))"
    ids = json.dumps([id_ for id_, _ in due])
    connection.execute(f"UPDATE version SET state = ?, attempt = attempt + 1 WHERE {chosen}", (uploading, ids))  # noqa: S608 - no text of anybody's
    claimed = {version.file_id: version for version in select(connection, chosen, ids)}
    return [claimed[file_id] for _, file_id in due]


def assign_key(
    connection: sqlite3.Connection,
    version: FileVersion,
    base_key: str,
    *,
    fresh: bool,
    next_key: bool,
    beyond: str,
) -> FileVersion | None:
    """Reserve a key for a claimed version; None when it is another path's and ``next_key`` is false."""
    who = keys.Claimant(version.watch, version.path, version.bucket)
    key = keys.reserve(connection, who, base_key, fresh=fresh, next_key=next_key, beyond=beyond)
    if key is None:
        return None
    _change(connection, version, {"base_key": base_key, "key": key, "verified": 0})
    if version.key != key:
        keys.release(connection, version.bucket, version.key)
    return _must(by_id(connection, version.file_id))


def apply(
    connection: sqlite3.Connection, version: FileVersion, event: Event, changes: Mapping[str, Any]
) -> FileVersion:
    """Move ``version`` by ``event`` from the state it has, with ``changes``; return it as it is now."""
    state = after(version.state, event)
    row = {**columns_of(changes), "state": str(state)}
    if event is Event.VERIFY:
        row["verified"] = 1
    _change(connection, version, row)
    if row.get("upload_id") == "":
        connection.execute(
            "DELETE FROM part WHERE version = (SELECT id FROM version WHERE file_id = ?)", (version.file_id,)
        )
    if state in _LEFT:
        connection.execute(
            "UPDATE version SET gone_at = coalesce(gone_at, done_at, queued_at) WHERE file_id = ?",
            (version.file_id,),
        )
    if event is Event.VANISH:
        keys.release(connection, version.bucket, version.key)
    return _must(by_id(connection, version.file_id))


def update(connection: sqlite3.Connection, version: FileVersion, changes: Mapping[str, Any]) -> FileVersion:
    """Change columns of ``version`` without moving it."""
    _change(connection, version, columns_of(changes))
    return _must(by_id(connection, version.file_id))


def linked(
    connection: sqlite3.Connection, versions: Sequence[FileVersion], mark: LinksMark, ended: Mapping[str, datetime]
) -> list[FileVersion]:
    """Move verified versions to linked, those in ``ended`` on to finished, with the links file's mark."""
    moved = bulk.apply(connection, [_link_of(version, ended.get(version.file_id)) for version in versions])
    set_meta(connection, links_inode=mark.inode, links_offset=mark.offset)
    return moved


def _link_of(version: FileVersion, done_at: datetime | None) -> bulk.Change:
    link = {"expires_at": version.expires_at}
    if done_at is None:
        return version, (Event.LINK,), link
    return version, (Event.LINK, Event.FINISH), {**link, "done_at": done_at}


# --- start, end, upkeep -------------------------------------------------------------------------------


def release(connection: sqlite3.Connection, *, unclean: bool) -> list[FileVersion]:
    """Put uploading versions back in the queue; return those quarantined for too many unclean exits."""
    stopped: list[FileVersion] = []
    if unclean:
        connection.execute("UPDATE version SET unclean = unclean + 1 WHERE state = 'uploading'")
        problem = fault("internal_error", f"it was in flight at {UNCLEAN_LIMIT} unclean exits")
        error = {"error_code": problem.code, "error": problem.message}
        worst = select(connection, "state = 'uploading' AND unclean >= ?", UNCLEAN_LIMIT)
        stopped = [apply(connection, version, Event.QUARANTINE, error) for version in worst]
    back = str(after(State.UPLOADING, Event.RELEASE))
    connection.execute("UPDATE version SET state = ? WHERE state = 'uploading'", (back,))
    return stopped


def begin_run(connection: sqlite3.Connection) -> bool:
    """Tell whether the last run ended cleanly (or there was none); from now on it counts as unclean."""
    row = connection.execute("SELECT value FROM meta WHERE key = 'clean'").fetchone()
    set_meta(connection, clean=0)
    return row is None or bool(row[0])


def announced(connection: sqlite3.Connection, file_ids: Sequence[str]) -> None:
    """Record that ``file.done`` was said for these."""
    said = "SELECT value FROM json_each(?)"
    cursor = connection.execute(
        f"UPDATE version SET announced = 1 WHERE file_id IN ({said})",  # noqa: S608 - no text of anybody's
        (json.dumps(list(file_ids)),),
    )
    if cursor.rowcount != len(file_ids):
        raise LostUpdate(f"{cursor.rowcount} of {len(file_ids)} versions are there to be announced")


def prune(connection: sqlite3.Connection, before: datetime) -> int:
    """Forget up to ``CHUNK`` versions whose content left its path before ``before``.

    Kept are those whose ``file.done`` is still to be said, and receipts that a waiting newer version
    needs, to know its own object again.
    """
    # The plus keeps SQLite from the index on the state, and so from going through every version.
    old = connection.execute(
        "SELECT id, bucket, key FROM version AS old WHERE gone_at IS NOT NULL AND gone_at < ? AND upload_id = ''"
        " AND (+state = 'ignored' OR announced = 1 AND +state IN ('finished', 'vanished', 'superseded'))"
        " AND NOT EXISTS (SELECT 1 FROM version AS now WHERE now.current = 1 AND now.watch = old.watch"
        " AND now.path = old.path AND now.state IN ('queued', 'uploading', 'quarantined')) LIMIT ?",
        (to_micros(before), CHUNK),
    ).fetchall()
    connection.executemany("DELETE FROM version WHERE id = ?", [(id_,) for id_, _, _ in old])
    for bucket, key in {(bucket, key) for _, bucket, key in old if key is not None}:
        keys.forget(connection, bucket, key)
    return len(old)


def requeue(connection: sqlite3.Connection, selection: Selection, now: datetime) -> list[FileVersion]:
    """Take the selected quarantined versions back; one that goes to the queue counts as queued ``now``."""
    where, values = ["state = 'quarantined'"], []
    if selection.path is not None:
        where.append("current = 1 AND watch = ? AND path = ?")
        values += [*selection.path]
    for column, value in (("watch", selection.watch), ("error_code", selection.error_code)):
        if value is not None:
            where.append(f"{column} = ?")
            values.append(value)
    chosen = select(connection, f"{' AND '.join(where)} ORDER BY id", *values)
    return [_again(connection, version, now) for version in chosen]


def _again(connection: sqlite3.Connection, version: FileVersion, now: datetime) -> FileVersion:
    event = retry_event(version)
    kept = {"attempt": version.attempt} if event is Event.RESUME else {"queued_at": now}
    return apply(connection, version, event, {**_AGAIN, **kept})


def set_meta(connection: sqlite3.Connection, **values: int) -> None:
    """Record values of the ledger as a whole."""
    connection.executemany(
        "INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", [(k, to_sql(v)) for k, v in values.items()]
    )


# --- one row ------------------------------------------------------------------------------------------


def _change(connection: sqlite3.Connection, version: FileVersion, row: Mapping[str, Any]) -> None:
    cursor = connection.execute(
        f"UPDATE version SET {_sets(row)} WHERE file_id = ? AND state = ?",  # noqa: S608 - our own column names
        (*row.values(), version.file_id, str(version.state)),
    )
    _one(cursor, f"{version.file_id} in state {version.state}")


def _sets(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{column} = ?" for column in row)


def _one(cursor: sqlite3.Cursor, what: str) -> None:
    if cursor.rowcount != 1:
        raise LostUpdate(f"{what}: {cursor.rowcount} rows instead of one")


def _must(version: FileVersion | None) -> FileVersion:
    assert version is not None
    return version
