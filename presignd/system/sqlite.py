"""A SQLite file: open it privately, migrate it, explain its errors to the user, and detect that it was replaced."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from presignd.errors import NO_SPACE, PresigndError, Unavailable, UsageError, fault
from presignd.system import filesystem
from presignd.system.trust import make_private

BUSY_SECONDS = 5.0
JOURNAL_LIMIT = 64 << 20
"""Bytes that the write-ahead log keeps on disk after a burst."""

_PAGE, _FEWEST_PAGES, _MOST_PAGES = 4096, 32, 1000
"""SQLite's page size in bytes, and the fewest and most pages in its WAL at which it checkpoints."""

_FILES = ("", "-wal", "-shm")
_SHARED = 32 << 10
"""Bytes of the memory that a WAL's openers share, a file beside it, at the least."""

Migration = Sequence[str]


@dataclass(frozen=True, slots=True)
class DatabaseKind:
    """The tables of one kind of database, and the words of its errors."""

    name: str
    """Its name in messages, such as "the ledger"."""
    application_id: int
    migrations: Sequence[Migration]
    """Statements; the number of migrations that were applied is stored in the file."""
    setting: str
    """The setting that says where it is, and what it names: "ledger.path" is a "folder"."""
    place: str
    user: str
    """Its owner in messages, such as "the daemon's user"."""
    loss: str
    """What is lost by starting without a damaged one, for messages."""
    folder_owns: bool = False
    """Whether a new file that root makes belongs to the folder's owner: root may run a command before the service
    starts."""
    cache_kib: int = 2000


@dataclass(frozen=True, slots=True)
class DatabaseFile:
    """A database in the file ``path``, with ``-wal`` and ``-shm`` beside it; each call opens a connection to it."""

    path: Path
    kind: DatabaseKind

    def open(self, *, busy: float = BUSY_SECONDS) -> sqlite3.Connection:
        """Open (or make, mode 0600) the database and bring it to the newest schema; connected as by ``connect``.

        Raises ``UsageError`` for a file that is no such database, is corrupt, or was written by a newer
        version; ``Unavailable`` while another program holds it; the fault ``disk_full``.
        """
        try:
            # SQLite would make it by the umask; it gives -wal and -shm the mode of this file.
            make_private(self.path, folder_owns=self.kind.folder_owns)
            connection = self.connect(busy=busy)
            with closed_on_error(connection):
                self._check(connection)
                connection.execute("PRAGMA journal_mode = WAL")
                self._migrate(connection)
                # A change's own journal of more than 64 KiB was a temporary file, made for each list of new versions.
                connection.execute("PRAGMA temp_store = MEMORY")
        except (sqlite3.Error, OSError) as error:
            raise self.explain(error) or error from None
        return connection

    def connect(self, *, busy: float = BUSY_SECONDS) -> sqlite3.Connection:
        """Open a connection, for one thread at a time, without implicit transactions; its commits survive power loss.

        A statement waits up to ``busy`` seconds for another program's lock.
        """
        connection = sqlite3.connect(self.path, timeout=busy, isolation_level=None, check_same_thread=False)
        with closed_on_error(connection):
            pages = pages_between_checkpoints(shutil.disk_usage(self.path.parent).free)
            always = ("synchronous = FULL", "foreign_keys = ON", f"journal_size_limit = {JOURNAL_LIMIT}")
            for pragma in (*always, f"wal_autocheckpoint = {pages}", f"cache_size = -{self.kind.cache_kib}"):
                connection.execute(f"PRAGMA {pragma}")
        return connection

    def _check(self, connection: sqlite3.Connection) -> None:
        """Refuse a database of another program's or of a newer version, before anything is changed."""
        kind, found = self.kind, _pragma(connection, "application_id")
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if found != kind.application_id and (found or tables):
            raise UsageError(
                f"{self.path} is another program's database (application id {found:#010x})",
                fix=f"set {kind.setting} to a {kind.place} of presignd's own",
            )
        version, newest = _pragma(connection, "user_version"), len(kind.migrations)
        if version > newest:
            raise UsageError(
                f"{self._named} has schema version {version}, this presignd knows versions up to {newest}",
                fix=f"install the newer presignd again, or set {kind.setting} to a new {kind.place}",
            )

    def _migrate(self, connection: sqlite3.Connection) -> None:
        """Apply each missing migration in a transaction of its own: a crash leaves a whole earlier schema."""
        for number in range(_pragma(connection, "user_version"), len(self.kind.migrations)):
            connection.execute("BEGIN IMMEDIATE")
            try:
                for statement in self.kind.migrations[number]:
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {self.kind.application_id}")
                connection.execute(f"PRAGMA user_version = {number + 1}")
                connection.execute("COMMIT")
            except BaseException:
                connection.rollback()  # SQLite may have rolled back already; then this does nothing
                raise

    # --- errors in words ----------------------------------------------------------------------------

    def explain(self, error: BaseException) -> PresigndError | None:
        """Return the expected error, with a fix, for one of SQLite's or the system's; None where it is a bug."""
        if isinstance(error, OSError):
            return self._explain_system(error)
        # sqlite.org/rescode.html: the low byte is the primary code.
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        # Where the disk is full, the memory that WAL's openers share can't be mapped: an I/O error.
        if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and self._has_no_space()):
            return self._full()
        if code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
            return UsageError(f"{self._named} is damaged: {error}", fix=self._fix_damage())
        if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
            return Unavailable(f"another program holds {self._named}", fix="close it (sqlite3, a backup)")
        if code in {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_IOERR}:
            return Unavailable(
                f"{self._named} can't be read or written: {error}",
                fix="look at the disk (dmesg, mount) and at the folder's owner and mode",
            )
        return None

    def _explain_system(self, error: OSError) -> PresigndError:
        if error.errno in NO_SPACE:
            return self._full()
        return UsageError(
            f"{self._named} can't be opened: {error.strerror}", fix=f"give it to {self.kind.user}, mode 0600"
        )

    def _has_no_space(self) -> bool:
        try:
            return shutil.disk_usage(self.path.parent).free < _SHARED
        except OSError:
            return False

    def _full(self) -> PresigndError:
        return fault("disk_full", f"{self._named} can't be written")

    def _fix_damage(self) -> str:
        file, log, index = (f"{self.path.name}{suffix}" for suffix in _FILES)
        return f"test the disk, then move {file}, {log} and {index} away and start again: {self.kind.loss}"

    @property
    def _named(self) -> str:
        return f"{self.kind.name} {self.path}"


def require_local(folder: Path, named: str, fix: str) -> None:
    """Raise ``UsageError`` for a folder on a network filesystem, which the message calls ``named``; raises ``OSError``.

    SQLite's WAL needs memory that every opener shares (sqlite.org/wal.html), and a lock there may hold on its own host
    only.
    """
    if filesystem.is_network(folder):
        raise UsageError(
            f"{named} lies on {filesystem.kind(folder)}, where neither locks nor SQLite's WAL can be trusted", fix=fix
        )


@contextlib.contextmanager
def closed_on_error(connection: sqlite3.Connection) -> Iterator[None]:
    """Close ``connection`` where the body fails; the garbage collector would do it later, with a warning."""
    try:
        yield
    except BaseException:
        connection.close()
        raise


def pages_between_checkpoints(free: int) -> int:
    """Return the number of pages in the WAL at which SQLite checkpoints it, by the disk's ``free`` bytes.

    Usually SQLite's own 1000 (4 MB). On a small disk fewer: a WAL that fills the disk could never be checkpointed.
    """
    return max(_FEWEST_PAGES, min(_MOST_PAGES, free // (8 * _PAGE)))


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    (value,) = connection.execute(f"PRAGMA {name}").fetchone()
    return int(value)


# --- files that are no longer those that were opened --------------------------------------------------


def presence_check(path: Path) -> Callable[[], str]:
    """Return a check of the open database ``path`` that returns how one of its files is not the one that was opened.

    It returns "" while all are. A file may be deleted, moved away, replaced, or the database cut shorter than it was
    when it was opened. SQLite continues to write to a deleted file without an error: every commit after that would be
    lost with the process (sqlite.org/howtocorrupt.html, "Unlinking or renaming a database file while in use"). The
    check uses stat(2) only: opening and closing the file again would drop SQLite's own locks on it (the same page).
    """
    files = {file: _seen(file) for file in (f"{path}{suffix}" for suffix in _FILES)}
    database, least = str(path), path.stat().st_size

    def check() -> str:
        for file, before in files.items():
            try:
                now = _seen(file)
            except OSError:  # says nothing about the file; on a failing disk SQLite fails too, and its callers wait
                continue
            if before and now is None:
                return f"{file} is not there any more"
            if before and now and now[:2] != before[:2]:
                return f"{file} was replaced by another file"
            if now and file == database and now[2] < least:
                return f"{file} was cut short"
        return ""

    return check


def finish_log(connection: sqlite3.Connection) -> None:
    """Write what is in the log into the file that ``connection`` has open, and empty the log; never raises.

    If that file was replaced, SQLite would leave the log, and the next process to open the other file would write this
    one's pages into it.
    """
    with contextlib.suppress(sqlite3.Error):
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _seen(file: str) -> tuple[int, int, int] | None:
    """Return a file's device, inode and size, None when it isn't there."""
    try:
        st = os.stat(file)  # noqa: PTH116 - each commit asks this of each file: a Path takes twice the time
    except (FileNotFoundError, NotADirectoryError):
        return None
    return st.st_dev, st.st_ino, st.st_size
