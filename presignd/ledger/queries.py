"""The ledger's queries: each reads through an index, whatever the number of versions."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import groupby
from operator import itemgetter

from presignd.errors import LONGEST_PAUSE
from presignd.ledger.rows import COLUMNS, SELECT, Suspect, WatchSummary, to_sql, version_of
from presignd.ledger.schema import UNANNOUNCED
from presignd.model import FileVersion, LinksMark, Listed, Part, Sent, State
from presignd.states import LEFT
from presignd.system.clock import from_micros, to_micros

CHUNK = 500
"""Parameters in one statement: older SQLite takes 999."""

LONGEST = timedelta(seconds=LONGEST_PAUSE)


def literals(states: Collection[State]) -> str:
    """Return states as a list in SQL."""
    return ", ".join(f"'{state}'" for state in sorted(states))


def select(connection: sqlite3.Connection, where: str, *values: object) -> list[FileVersion]:
    """Return the versions that ``where`` (and what follows it) selects."""
    return [version_of(row) for row in connection.execute(f"{SELECT} WHERE {where}", values)]


def first(connection: sqlite3.Connection, where: str, *values: object) -> FileVersion | None:
    """Return the first version that ``where`` selects, None without one."""
    row = connection.execute(f"{SELECT} WHERE {where} LIMIT 1", values).fetchone()
    return version_of(row) if row else None


def known(connection: sqlite3.Connection, watch: str, paths: Sequence[bytes]) -> dict[bytes, FileVersion]:
    """Return the current versions by path, ``CHUNK`` paths in one statement."""
    found: dict[bytes, FileVersion] = {}
    for chunk in chunks(paths):
        where = f"current = 1 AND watch = ? AND path IN ({marks(chunk)})"
        found |= {version.path: version for version in select(connection, where, watch, *chunk)}
    return found


_LISTED = f"""
SELECT CASE WHEN gone_at IS NULL AND state NOT IN ({literals(LEFT)})
 AND NOT (state = 'quarantined' AND error_code = 'unreadable') THEN path END, ino, size, mtime_ns, ctime_ns
FROM version WHERE current = 1 AND watch = ? AND path"""  # noqa: S608 - our own words
"""The current versions at some paths as a scan would list them; a path is NULL where ``states.is_recorded`` is false
whatever the fingerprint."""


def differing(connection: sqlite3.Connection, watch: str, listed: Sequence[Listed]) -> list[Listed]:
    """Return the files that aren't recorded as they are, whole rows compared as sets."""
    if not listed:
        return []
    left, lowest, highest = set(listed), min(listed)[0], max(listed)[0]

    def between(most: int) -> list[Listed]:
        return connection.execute(f"{_LISTED} BETWEEN ? AND ? LIMIT ?", (watch, lowest, highest, most)).fetchall()

    # One walk along the index is twice as fast as a search for each path, if most of what it meets was listed.
    few = between(len(listed) // 8 + 1)
    if 2 * len(left.intersection(few)) >= len(few):
        left.difference_update(between(len(listed) * 5 // 4))
    for chunk in chunks([path for path, *_ in left]):
        left.difference_update(connection.execute(f"{_LISTED} IN ({marks(chunk)})", (watch, *chunk)))
    return [one for one in listed if one in left] if left else []


def paths(connection: sqlite3.Connection, watch: str, after: bytes, limit: int) -> list[bytes]:
    """Return a page of current paths, along the index."""
    rows = connection.execute(
        "SELECT path FROM version WHERE current = 1 AND watch = ? AND path > ? AND gone_at IS NULL"
        " ORDER BY path LIMIT ?",
        (watch, after, limit),
    )
    return [path for (path,) in rows]


def current(connection: sqlite3.Connection, watch: str, after: bytes, before: bytes, limit: int) -> list[FileVersion]:
    """Return a page of current versions, along the index."""
    where, values = _between(watch, after, before)
    return select(connection, f"{where} ORDER BY path LIMIT ?", *values, limit)


def current_count(connection: sqlite3.Connection, watch: str, after: bytes, before: bytes) -> int:
    """Return how many versions all pages of ``current`` have."""
    where, values = _between(watch, after, before)
    return int(connection.execute(f"SELECT count(*) FROM version WHERE {where}", values).fetchone()[0])  # noqa: S608 - our own words


def _between(watch: str, after: bytes, before: bytes) -> tuple[str, list[object]]:
    where = "current = 1 AND watch = ? AND path > ?"
    return (f"{where} AND path < ?", [watch, after, before]) if before else (where, [watch, after])


_DUE = "(not_before IS NULL OR not_before NOT BETWEEN ? AND ?)"
"""Whether a queued version may be sent now. One that would wait for longer than any pause is due: the clock was set
back since that was written."""


def _due_at(now: datetime) -> tuple[int, int]:
    return to_micros(now) + 1, to_micros(now + LONGEST)


def due(
    connection: sqlite3.Connection,
    watch: str,
    limit: int,
    now: datetime,
    *,
    below_size: int | None = None,
    max_priority: int | None = None,
) -> list[FileVersion]:
    """Return versions that may be claimed, as ``Ledger.due`` says."""
    return select(
        connection,
        f"state = 'queued' AND watch = ? AND {_DUE}"
        " AND (? IS NULL OR size < ?) AND (? IS NULL OR priority <= ?) ORDER BY priority, id LIMIT ?",
        watch,
        *_due_at(now),
        *(below_size, below_size, max_priority, max_priority, limit),
    )


def suspects(connection: sqlite3.Connection) -> list[str]:
    """Return the queued suspects; reads the whole queue, so only once at a start (a million versions take 0.3 s)."""
    found = connection.execute(
        "SELECT unclean, priority, id, file_id FROM version WHERE state = 'queued' AND unclean > 0"
    )
    return [file_id for *_, file_id in sorted(found)]


def suspects_left(
    connection: sqlite3.Connection, file_ids: Collection[str], now: datetime, max_priority: int | None
) -> tuple[list[Suspect], int]:
    """Return which of ``file_ids`` are suspects, and how many versions are uploading, as ``Ledger.suspects_left``."""
    rows = connection.execute(
        f"SELECT {', '.join(COLUMNS)}, state = 'queued' AND {_DUE} AND (? IS NULL OR priority <= ?) FROM version"  # noqa: S608 - our own words
        " WHERE file_id IN (SELECT value FROM json_each(?)) AND unclean > 0 AND +state IN ('queued', 'uploading')",
        (*_due_at(now), max_priority, max_priority, json.dumps([*file_ids])),
    )
    left = [Suspect(version_of(tuple(row)), bool(is_due)) for *row, is_due in rows]
    return left, connection.execute("SELECT count(*) FROM version WHERE state = 'uploading'").fetchone()[0]


def next_due(connection: sqlite3.Connection, watches: Collection[str], after: datetime) -> datetime | None:
    """Return the earliest ``not_before`` past ``after``, with one search for each watch."""
    earliest = "SELECT min(not_before) FROM version WHERE state = 'queued' AND watch = ? AND not_before > ?"
    found = (connection.execute(earliest, (watch, to_micros(after))).fetchone()[0] for watch in watches)
    return from_micros(min((micros for micros in found if micros is not None), default=None))


def previous_receipt(connection: sqlite3.Connection, version: FileVersion) -> FileVersion | None:
    """Return the newest verified version under the same key with a lower ``id``."""
    return first(
        connection,
        "key = ? AND bucket = ? AND watch = ? AND path = ? AND verified = 1"
        " AND id < (SELECT id FROM version WHERE file_id = ?) ORDER BY id DESC",
        *(to_sql(version.key), version.bucket, version.watch, version.path, version.file_id),
    )


def previous_receipts(connection: sqlite3.Connection, versions: Collection[FileVersion]) -> dict[str, FileVersion]:
    """Return ``previous_receipt`` of those of ``versions`` that have one, by ``file_id``."""
    keys = json.dumps(sorted({to_sql(version.key) for version in versions if version.key is not None}))
    used = "SELECT DISTINCT key FROM version WHERE key IN (SELECT value FROM json_each(?)) AND verified = 1"
    taken = {key for (key,) in connection.execute(used, (keys,))}
    found = {one.file_id: previous_receipt(connection, one) for one in versions if to_sql(one.key) in taken}
    return {file_id: previous for file_id, previous in found.items() if previous}


def sent(connection: sqlite3.Connection, version: FileVersion, own: bool = True) -> frozenset[Sent]:
    """Return what was sent under this version's key: the receipt's values, or those committed before the PUT.

    Until a version is verified, its ``etag`` is what ``FileVersion`` says; ``own`` includes that of this version.
    """
    intent = "iif(instr(etag, ':'), etag, 'md5:' || etag)"
    rows = connection.execute(
        f"SELECT size, iif(verified, checksum, {intent}), part_size, iif(verified, etag, '') FROM version"  # noqa: S608 - our own words
        " WHERE key = ? AND bucket = ? AND watch = ? AND path = ?"
        " AND (verified OR (etag != '' AND substr(etag, -1) != ':' AND (? OR file_id != ?)))",
        (to_sql(version.key), version.bucket, version.watch, version.path, own, version.file_id),
    )
    return frozenset(Sent(*row) for row in rows)


def parts(connection: sqlite3.Connection, version: FileVersion) -> list[Part]:
    """Return the version's rows of the table of parts, by number."""
    of = "version = (SELECT id FROM version WHERE file_id = ?)"
    sql = f"SELECT number, size, md5, etag FROM part WHERE {of} ORDER BY number"  # noqa: S608 - our own words
    return [Part(*row) for row in connection.execute(sql, (version.file_id,))]


def uploads_left(connection: sqlite3.Connection) -> list[FileVersion]:
    """Return versions that name an upload and are neither queued nor uploading."""
    return select(connection, "upload_id != '' AND +state NOT IN ('queued', 'uploading') ORDER BY id")


def in_state(connection: sqlite3.Connection, state: State) -> list[FileVersion]:
    """Return the versions in ``state`` by ``id``, so the oldest first."""
    return select(connection, "state = ? ORDER BY id", str(state))


def unannounced(connection: sqlite3.Connection) -> list[FileVersion]:
    """Return the ended versions with ``announced = 0``, oldest first."""
    return select(connection, f"{UNANNOUNCED} ORDER BY id")


def links_mark(connection: sqlite3.Connection) -> LinksMark | None:
    """Return the mark of ``links.jsonl``, None where there is none."""
    meta = dict(connection.execute("SELECT key, value FROM meta"))
    if "links_inode" not in meta:
        return None
    return LinksMark(int(meta["links_inode"]), int(meta["links_offset"]))


def summary(connection: sqlite3.Connection, states: Collection[State] = tuple(State)) -> list[WatchSummary]:
    """Return the numbers of each watch, also of one that has no version yet."""
    names = [name for (name,) in connection.execute("SELECT name FROM watch")]
    rows = connection.execute(
        f"SELECT watch, state, count(*), min(queued_at) FROM version WHERE state IN ({marks(states)})"  # noqa: S608 - marks
        " GROUP BY state, watch",
        [str(state) for state in states],
    ).fetchall()
    numbers = {watch: _numbers(watch, mine) for watch, mine in groupby(sorted(rows), itemgetter(0))}
    return [numbers.get(name) or _numbers(name, ()) for name in sorted({*names, *numbers})]


def quarantined(connection: sqlite3.Connection) -> list[FileVersion]:
    """Return the quarantined versions by ``id``, newest first."""
    return select(connection, "state = 'quarantined' ORDER BY id DESC")


def by_key(connection: sqlite3.Connection, key: str, bucket: str | None) -> FileVersion | None:
    """Return the newest verified version under ``key``; ``bucket`` None means any."""
    where = "key = ? AND verified = 1 AND (bucket = ? OR ? IS NULL) ORDER BY id DESC"
    return first(connection, where, to_sql(key), bucket, bucket)


def by_path(connection: sqlite3.Connection, watch: str, path: bytes) -> FileVersion | None:
    """Return the row with ``current = 1`` at the path."""
    return first(connection, "current = 1 AND watch = ? AND path = ?", watch, path)


def by_id(connection: sqlite3.Connection, file_id: str) -> FileVersion | None:
    """Return the version with this ``file_id``."""
    return first(connection, "file_id = ?", file_id)


def chunks(values: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Return ``values`` in pieces of ``CHUNK``."""
    return (values[start : start + CHUNK] for start in range(0, len(values), CHUNK))


def marks(values: Collection[object]) -> str:
    """Return a ``?`` for each value, with commas between them."""
    return ",".join("?" * len(values))


def _numbers(watch: str, rows: Iterable[tuple[str, str, int, int]]) -> WatchSummary:
    """Return one watch's numbers from its rows (watch, state, count, oldest queued_at)."""
    counts: dict[State, int] = {}
    oldest: int | None = None
    for _, state, count, queued_at in rows:
        counts[State(state)] = count
        oldest = queued_at if state == State.QUEUED else oldest
    return WatchSummary(watch, counts, from_micros(oldest))
