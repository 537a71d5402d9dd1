"""Changes of many versions in one statement each: in a burst most of a commit's work is of one kind.

A statement that runs through hundreds of rows inside SQLite leaves Python's lock alone meanwhile, and costs a
fifth of as many statements. What does not fit (``is_plain``, or one version that isn't in the state it names)
goes one by one, as ``presignd.ledger.changes`` does it.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, reduce
from typing import Any

from presignd.ledger.rows import Enqueued, LostUpdate, as_recorded, columns_of, columns_of_new, to_sql
from presignd.model import FileVersion, NewVersion, State
from presignd.states import Event, after

Change = tuple[FileVersion, Sequence[Event], Mapping[str, Any]]
"""A version, how it moves (not at all, or by one event after the other), and its fields that change."""

ROWS = 40
"""New versions in one statement: older SQLite takes 999 parameters."""

_PLAIN = frozenset({Event.VERIFY, Event.LINK, Event.FINISH})


def is_plain(version: FileVersion, event: Event) -> bool:
    """Tell whether the move changes the version's own row alone: no key goes free, no part is forgotten."""
    return event in _PLAIN and not version.upload_id


def apply(connection: sqlite3.Connection, wanted: Sequence[Change]) -> list[FileVersion]:
    """Make plain changes; raise ``LostUpdate`` unless every version is in the state it names.

    Returned is each version as its own change leaves it.
    """
    rows: dict[tuple[State, tuple[str, ...]], list[list[Any]]] = {}
    changed = []
    for version, events, changes in wanted:
        state = reduce(after, events, version.state)
        row = {**columns_of(changes), "state": str(state)}
        if Event.VERIFY in events:
            row["verified"] = 1
        rows.setdefault((version.state, tuple(row)), []).append([version.file_id, *row.values()])
        changed.append(replace(version, state=state, **changes))
    for (state, columns), values in rows.items():
        cursor = connection.execute(_update(columns), (json.dumps(values), str(state)))
        if cursor.rowcount != len(values):
            raise LostUpdate(f"{cursor.rowcount} of {len(values)} versions were {state}")
    return changed


def enqueue(connection: sqlite3.Connection, versions: Sequence[NewVersion]) -> list[Enqueued] | None:
    """Record new versions of paths that have none, under keys that are nobody's; None, and nothing done, else.

    The tables' own rules tell: a path has one current version, and a key one path.
    """
    if not all(new.state is State.QUEUED and new.key is not None for new in versions):
        return None
    rows = [columns_of_new(new, to_sql(new.key)) for new in versions]
    claims = [(new.bucket, to_sql(new.key), new.watch, new.path) for new in versions]
    connection.execute("SAVEPOINT several")
    try:
        _insert(connection, "object_key (bucket, key, watch, path)", claims)
        _insert(connection, f"version ({', '.join(rows[0])})", [tuple(row.values()) for row in rows])
    except sqlite3.IntegrityError:
        connection.execute("ROLLBACK TO several")
        connection.execute("RELEASE several")
        return None
    connection.execute("RELEASE several")
    return [Enqueued(as_recorded(new, to_sql(new.key)), None) for new in versions]


def _insert(connection: sqlite3.Connection, into: str, rows: Sequence[tuple[Any, ...]]) -> None:
    row = f"({','.join('?' * len(rows[0]))})"
    sql = f"INSERT INTO {into} VALUES {','.join([row] * len(rows))}"  # noqa: S608 - our own names
    connection.execute(sql, [value for each in rows for value in each])


@lru_cache(maxsize=64)
def _update(columns: tuple[str, ...]) -> str:
    sets = ", ".join(f"{name} = json_extract(v.value, '$[{place}]')" for place, name in enumerate(columns, 1))
    # The plus keeps SQLite from the index on the state, and so from going through every version.
    return (
        f"UPDATE version SET {sets} FROM json_each(?) AS v"  # noqa: S608 - our own column names
        " WHERE version.file_id = json_extract(v.value, '$[0]') AND +version.state = ?"
    )
