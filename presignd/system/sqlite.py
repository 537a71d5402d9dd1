"""SQLite, whatever the tables: opening, migrating, errors in words for the user, and a check for replaced files."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from presignd.errors import NO_SPACE, LedgerLost, PresigndError, Unavailable, UsageError, fault
from presignd.system.trust import make_private

BUSY_SECONDS = 5.0
JOURNAL_LIMIT = 64 << 20
"""Bytes that the write-ahead log keeps on disk after a burst."""

_PAGE, _FEWEST_PAGES, _MOST_PAGES = 4096, 32, 1000
"""SQLite's page size in bytes, and the fewest and most pages in its WAL at which it checkpoints."""

_FILES = ("", "-wal", "-shm")

Migration = Sequence[str]


def open_database(
    path: Path, application_id: int, migrations: Sequence[Migration], *, busy: float = BUSY_SECONDS
) -> sqlite3.Connection:
    """Open (or make, mode 0600) the database and bring it to the newest schema.

    Raises ``UsageError`` for a file that is no such database, is corrupt, or was written by a newer
    version; ``Unavailable`` while another program holds it; the fault ``disk_full``.
    """
    with sqlite_errors_expected(path):
        make_private(path)  # SQLite would make it by the umask; it gives -wal and -shm the mode of this file
        connection = connect(path, busy=busy)
        with closed_on_error(connection):
            _check(connection, path, application_id, len(migrations))
            connection.execute("PRAGMA journal_mode = WAL")
            _migrate(connection, application_id, migrations)
        return connection


def pages_between_checkpoints(free: int) -> int:
    """Return the number of pages in the WAL at which SQLite checkpoints it, by the disk's ``free`` bytes.

    Usually SQLite's own 1000 (4 MB). On a small disk fewer: a WAL that fills the disk could never be checkpointed.
    """
    return max(_FEWEST_PAGES, min(_MOST_PAGES, free // (8 * _PAGE)))


def connect(path: Path, *, busy: float = BUSY_SECONDS) -> sqlite3.Connection:
    """Open a connection, for one thread at a time, without implicit transactions.

    A statement waits up to ``busy`` seconds for another program's lock.
    """
    connection = sqlite3.connect(path, timeout=busy, isolation_level=None, check_same_thread=False)
    with closed_on_error(connection):
        pages = pages_between_checkpoints(shutil.disk_usage(path.parent).free)
        always = ("synchronous = FULL", "foreign_keys = ON", f"journal_size_limit = {JOURNAL_LIMIT}")
        for pragma in (*always, f"wal_autocheckpoint = {pages}"):
            connection.execute(f"PRAGMA {pragma}")
    return connection


@contextlib.contextmanager
def closed_on_error(connection: sqlite3.Connection) -> Iterator[None]:
    """Close ``connection`` where the body fails; the garbage collector would do it later, with a warning."""
    try:
        yield
    except BaseException:
        connection.close()
        raise


@contextlib.contextmanager
def sqlite_errors_expected(path: Path) -> Iterator[None]:
    """Raise errors of SQLite and the disk as expected ones with a fix, as ``explain`` has them; bugs as they are."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        expected = explain(error, path)
        if expected is None:
            raise
        raise expected from None


def explain(error: BaseException, path: Path) -> PresigndError | None:
    """Return the expected error for one of SQLite's or the system's, None where it is a bug."""
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
    """Apply each missing migration in a transaction of its own: a crash leaves a whole earlier schema."""
    for number in range(_pragma(connection, "user_version"), len(migrations)):
        connection.execute("BEGIN IMMEDIATE")
        try:
            for statement in migrations[number]:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {application_id}")
            connection.execute(f"PRAGMA user_version = {number + 1}")
            connection.execute("COMMIT")
        except BaseException:
            connection.rollback()  # SQLite may have rolled back already; then this does nothing
            raise


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    (value,) = connection.execute(f"PRAGMA {name}").fetchone()
    return int(value)


# --- files that are no longer those that were opened --------------------------------------------------


def presence_check(path: Path) -> Callable[[], None]:
    """Return a check of the open database ``path`` that raises ``LedgerLost`` once its files were deleted or replaced.

    So it does once they were moved away, or the database was cut shorter than it was when it was opened. SQLite goes
    on writing to a deleted file without an error: every commit after that would be lost with the process
    (sqlite.org/howtocorrupt.html, "Unlinking or renaming a database file while in use"). The check uses stat(2) only:
    opening and closing the file again would drop SQLite's own locks on it (the same page).
    """
    files = {Path(f"{path}{suffix}"): _seen(Path(f"{path}{suffix}")) for suffix in _FILES}
    least = path.stat().st_size

    def check() -> None:
        for file, before in files.items():
            try:
                now = _seen(file)
            except OSError:  # says nothing about the file; on a failing disk SQLite fails too, and its callers wait
                continue
            if before and (now is None or now[:2] != before[:2]):
                raise _lost(file, "is not there any more" if now is None else "was replaced by another file")
            if now and file == path and now[2] < least:
                raise _lost(file, "was cut short")

    return check


def _seen(file: Path) -> tuple[int, int, int] | None:
    """Return a file's device, inode and size, None when it isn't there."""
    try:
        st = file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return st.st_dev, st.st_ino, st.st_size


def _lost(file: Path, how: str) -> LedgerLost:
    return LedgerLost(
        f"the ledger's file {file} {how}, and what is recorded from now on would be lost",
        fix="start presignd again: it goes on with the ledger that is there, or makes a new one; what is uploaded"
        " already is found in the store, and links.jsonl keeps its lines",
    )
