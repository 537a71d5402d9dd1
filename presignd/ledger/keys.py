"""Number keys, and reserve each for one path, so that no two paths ever share a key."""

from __future__ import annotations

import posixpath
import re
import sqlite3
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from presignd.s3.limits import MAX_KEY

_DOUBLE = re.compile(r"\.tar\.(gz|bz2|xz|zst|lz|lz4|lzma|Z|br)$", re.IGNORECASE)
_NUMBER = re.compile(r"~(\d{1,18})(?=\.|$)")


@dataclass(frozen=True, slots=True)
class Claimant:
    """The path that needs a key."""

    watch: str
    path: bytes
    bucket: str


def numbered_key(key: str, number: int) -> str | None:
    """Return ``key`` with ``~number`` before its suffix: "a/b.tar.gz" → "a/b~2.tar.gz", ".env" → ".env~2".

    The name is cut so that the key stays within 1024 bytes. Returns None where nothing of the name would be left.
    """
    folder, name = posixpath.split(key)
    stem, suffix = _split(name)
    folder += "/" if folder else ""
    tail = f"~{number}{suffix}"
    room = MAX_KEY - len(f"{folder}{tail}".encode())
    stem = stem.encode()[: max(room, 0)].decode(errors="ignore")
    return f"{folder}{stem}{tail}" if stem else None


def number_in(base_key: str, key: str) -> int:
    """Return the number that turns ``base_key`` into ``key``; 1 when there is none."""
    for match in reversed(list(_NUMBER.finditer(key))):
        if numbered_key(base_key, int(match[1])) == key:
            return int(match[1])
    return 1


def first_free(base_key: str, after: int, is_free: Callable[[str], bool]) -> str | None:
    """Return a free numbered key with a number over ``after``: the lowest, where no number was skipped.

    Searches in doubling steps, then by halves: the ten-thousandth name must not cost ten thousand queries.
    """

    def free(number: int) -> bool:
        key = numbered_key(base_key, number)
        return key is None or is_free(key)

    taken, step = after, 1
    while not free(taken + step):
        taken, step = taken + step, step * 2
    while step > 1:
        step //= 2
        if not free(taken + step):
            taken += step
    return numbered_key(base_key, taken + 1)


def reserve(
    connection: sqlite3.Connection,
    claimant: Claimant,
    base_key: str,
    *,
    fresh: bool,
    next_key: bool,
    after_key: str = "",
) -> str | None:
    """Reserve ``base_key`` for a path, or with ``next_key`` its next free number; return None where that is taken.

    ``fresh`` excludes keys that the path itself had before. ``after_key`` is a key that holds another's object: the
    next free number after it is reserved.
    """

    def is_free(key: str) -> bool:
        return _is_free(connection, claimant, key, fresh=fresh)

    if not after_key and is_free(base_key):
        key: str | None = base_key
    elif next_key:
        key = first_free(base_key, max(number_in(base_key, after_key), 1), is_free)
    else:
        key = None
    if key is not None:
        connection.execute(
            "INSERT OR IGNORE INTO object_key (bucket, key, watch, path) VALUES (?, ?, ?, ?)",
            (claimant.bucket, key, claimant.watch, claimant.path),
        )
    return key


def reserve_from(connection: sqlite3.Connection, first: int) -> None:
    """Reserve the keys of the versions from the id ``first`` on; raise ``IntegrityError`` if one is not free."""
    connection.execute(
        "INSERT INTO object_key (bucket, key, watch, path)"
        " SELECT bucket, key, watch, path FROM version WHERE id >= ? AND key IS NOT NULL",
        (first,),
    )


def release(connection: sqlite3.Connection, keys: Iterable[tuple[str, str | None]]) -> None:
    """Free keys, given with their buckets, under which no version has an object or will have one.

    So a file that was renamed before its upload can reuse its key under its new name.
    """
    used = " AND (attempt > 0 OR verified = 1 OR state IN ('queued', 'quarantined'))"
    connection.executemany(_DELETE_UNLESS.format(used), keys)


def forget(connection: sqlite3.Connection, keys: Iterable[tuple[str, str]]) -> None:
    """Free keys, given with their buckets, that no version names any more."""
    connection.executemany(_DELETE_UNLESS.format(""), keys)


_DELETE_UNLESS = (
    "DELETE FROM object_key WHERE bucket = ? AND key = ? AND NOT EXISTS (SELECT 1 FROM version"
    " WHERE version.key = object_key.key AND version.bucket = object_key.bucket{})"
)


def owner(connection: sqlite3.Connection, bucket: str, key: str | None) -> bytes | None:
    """Return the path for which ``key`` is reserved, None for a free key."""
    row = connection.execute("SELECT path FROM object_key WHERE bucket = ? AND key = ?", (bucket, key)).fetchone()
    return row[0] if row else None


def _is_free(connection: sqlite3.Connection, claimant: Claimant, key: str, *, fresh: bool) -> bool:
    row = connection.execute(
        "SELECT watch, path FROM object_key WHERE bucket = ? AND key = ?", (claimant.bucket, key)
    ).fetchone()
    if row is None:
        return True
    return not fresh and row == (claimant.watch, claimant.path)


def _split(name: str) -> tuple[str, str]:
    if (double := _DOUBLE.search(name)) and double.start() > 0:
        return name[: double.start()], name[double.start() :]
    return posixpath.splitext(name)
