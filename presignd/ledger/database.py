"""SQLite plumbing that knows no business: opening, migrating, and errors in words for the user."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

from presignd.errors import NO_SPACE, PresigndError, Unavailable, UsageError, fault
from presignd.ledger.folder import make_private

BUSY_SECONDS = 5.0
JOURNAL_LIMIT = 64 << 20
"""Bytes of write-ahead log kept on disk once a burst is over."""

_PAGE, _FEWEST_PAGES, _MOST_PAGES = 4096, 32, 1000
"""SQLite's page size in bytes, and the pages that its log may hold before they go into the database."""

Migration = Sequence[str]


def open_database(path: Path, application_id: int, migrations: Sequence[Migration]) -> sqlite3.Connection:
    """Open (or make, mode 0600) the database and bring it to the newest schema.

    Raises ``UsageError`` for a file that is no such database, is corrupt, or was written by a newer
    version; ``Unavailable`` while another program holds it; the fault ``disk_full``.
    """
    with translated(path):
        make_private(path)  # SQLite's would follow the umask; its -wal and -shm follow the file
        connection = connect(path)
        with closed_on_error(connection):
            _check(connection, path, application_id, len(migrations))
            connection.execute("PRAGMA journal_mode = WAL")
            _migrate(connection, application_id, migrations)
        return connection


def pages_between_checkpoints(free: int) -> int:
    """Return after how many pages in its log SQLite shall bring them into the database, ``free`` bytes being left.

    Usually its own 1000 (4 MB). On a small disk less: the log gives nothing back until there is room for what it
    holds in the database too, so one that fills the disk would stay for ever.
    """
    return max(_FEWEST_PAGES, min(_MOST_PAGES, free // (8 * _PAGE)))


def connect(path: Path) -> sqlite3.Connection:
    """Open a connection, for one thread at a time, without implicit transactions."""
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    with closed_on_error(connection):
        pages = pages_between_checkpoints(shutil.disk_usage(path.parent).free)
        always = ("synchronous = FULL", "foreign_keys = ON", f"journal_size_limit = {JOURNAL_LIMIT}")
        for pragma in (*always, f"wal_autocheckpoint = {pages}"):
            connection.execute(f"PRAGMA {pragma}")
    return connection


@contextlib.contextmanager
def closed_on_error(connection: sqlite3.Connection) -> Iterator[None]:
    """Close ``connection`` where the body fails; the garbage collector would, with a warning, at a time of its own."""
    try:
        yield
    except BaseException:
        connection.close()
        raise


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn what SQLite and the disk may say into an expected error with its fix; bugs go through."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        expected = explain(error, path)
        if expected is None:
            raise
        raise expected from None


def explain(error: BaseException, path: Path) -> PresigndError | None:
    """Return the expected error for one of SQLite's or the system's; None where it is a bug."""
    if isinstance(error, OSError):
        return _explain_system(error, path)
    # sqlite.org/rescode.html: the low byte is the primary code.
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return _full(path)
    if code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
        return UsageError(f"the ledger {path} is damaged: {error}", fix=_fix_damage(path))
    if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
        return Unavailable(f"another program holds the ledger {path}", fix="close it (sqlite3, a backup)")
    if code in {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_IOERR}:
        return Unavailable(
            f"the ledger {path} can't be read or written: {error}",
            fix="look at the disk (dmesg, mount) and at the folder's owner and mode",
        )
    return None


def _explain_system(error: OSError, path: Path) -> PresigndError:
    if error.errno in NO_SPACE:
        return _full(path)
    return UsageError(
        f"the ledger {path} can't be opened: {error.strerror}", fix="give it to the daemon's user, mode 0600"
    )


def _full(path: Path) -> PresigndError:
    return fault("disk_full", f"the ledger {path} can't be written")


def _fix_damage(path: Path) -> str:
    return (
        f"test the disk, then move {path.name}, {path.name}-wal and {path.name}-shm away and start again: "
        "files already uploaded are found in the store, not sent twice"
    )


def _check(connection: sqlite3.Connection, path: Path, application_id: int, newest: int) -> None:
    found = _pragma(connection, "application_id")
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if found != application_id and (found or tables):
        raise UsageError(
            f"{path} is another program's database (application id {found:#010x})",
            fix="set ledger.path to a folder of presignd's own",
        )
    version = _pragma(connection, "user_version")
    if version > newest:
        raise UsageError(
            f"the ledger {path} has schema version {version}, this presignd knows versions up to {newest}",
            fix="install the newer presignd again, or set ledger.path to a new folder",
        )


def _migrate(connection: sqlite3.Connection, application_id: int, migrations: Sequence[Migration]) -> None:
    """Apply each missing step in a transaction of its own: a crash leaves a whole earlier schema."""
    for number in range(_pragma(connection, "user_version"), len(migrations)):
        connection.execute("BEGIN IMMEDIATE")
        try:
            for statement in migrations[number]:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {application_id}")
            connection.execute(f"PRAGMA user_version = {number + 1}")
            connection.execute("COMMIT")
        except BaseException:
            connection.rollback()  # some errors rolled back already: then it does nothing
            raise


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    (value,) = connection.execute(f"PRAGMA {name}").fetchone()
    return int(value)
