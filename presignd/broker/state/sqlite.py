"""The state in a SQLite file of this machine: one thread, and one commit for all that waits.

Several processes may use one file: a broker, and a command that revokes a token.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from presignd.broker.state.database import Database, Row, StateAway, Statement
from presignd.broker.state.migrations import SQLITE, migrations, newer
from presignd.system.trust import require_owner, walked

BUSY_SECONDS = 5.0
"""How long a statement waits for another process."""

APPLICATION_ID = 0x70736272
"""Marks the file as a broker's state ("psbr")."""

CACHE_KIB = 16 << 10
JOURNAL_LIMIT = 64 << 20
"""Bytes that the write-ahead log keeps on disk after a burst."""

Work = Callable[[sqlite3.Connection], list[list[Row]]]
Waiting = tuple[Work, asyncio.Future[list[list[Row]]]]


class SqliteDatabase(Database):
    """A SQLite file, made when missing (0600), opened by the first call."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, "presignd-state")
        self._connection: sqlite3.Connection | None = None
        self._opened: tuple[int, int] | None = None
        self._waiting: list[Waiting] = []
        self._working: asyncio.Task[None] | None = None

    async def fetch(self, sql: str, *values: object) -> list[Row]:
        """Run one statement, in one commit with all that wait."""
        (rows,) = await self.fetch_each(sql, [values])
        return rows

    async def fetch_each(self, sql: str, rows: Sequence[Sequence[object]]) -> list[list[Row]]:
        """Run one statement with each of ``rows``, in one commit with all that wait."""
        return await self.transact([(sql, row) for row in rows])

    async def transact(self, statements: Sequence[Statement]) -> list[list[Row]]:
        """Run several statements, in one commit with all that wait."""

        def work(connection: sqlite3.Connection) -> list[list[Row]]:
            # By name: since Python 3.12 sqlite3 takes ``?1`` for one, and warns of values without names.
            named = [(sql, {str(place): value for place, value in enumerate(row, 1)}) for sql, row in statements]
            return [connection.execute(sql, values).fetchall() for sql, values in named]

        done: asyncio.Future[list[list[Row]]] = asyncio.get_running_loop().create_future()
        self._waiting.append((work, done))
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work(), name="state")
        return await done

    async def close(self) -> None:
        """Finish what waits, and close the file."""
        if self._working is not None:
            await asyncio.gather(self._working, return_exceptions=True)
        await asyncio.get_running_loop().run_in_executor(self._thread, self._drop)
        self._thread.shutdown()

    async def _work(self) -> None:
        """Commit all that wait together, until nothing waits."""
        loop = asyncio.get_running_loop()
        while batch := self._waiting:
            self._waiting = []
            try:
                results = await loop.run_in_executor(self._thread, self._commit, [work for work, _ in batch])
            except Exception as error:  # noqa: BLE001 - each caller raises it
                for _, done in batch:
                    if not done.done():
                        done.set_exception(error)
                continue
            for (_, done), result in zip(batch, results, strict=True):
                if not done.done():  # its caller may be gone
                    done.set_result(result)

    # --- in the thread -----------------------------------------------------------------------------
    def _commit(self, batch: Sequence[Work]) -> list[list[list[Row]]]:
        try:
            connection = self._current()
            connection.execute("BEGIN IMMEDIATE")
            results = [work(connection) for work in batch]
            connection.execute("COMMIT")
        except (sqlite3.Error, OSError) as error:
            self._drop()  # closing rolls back, and the next call opens what is there then
            raise StateAway(f"{self._path}: {error}") from None
        except BaseException:
            self._drop()
            raise
        return results

    def _current(self) -> sqlite3.Connection:
        """Return the connection; another one if the file was replaced or removed."""
        if self._connection is not None and self._identity() != self._opened:
            self._drop()
        if self._connection is None:
            self._connection = open_file(self._path)
            self._opened = self._identity()
        return self._connection

    def _identity(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    def _drop(self) -> None:
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
        self._connection = None


def open_file(path: Path) -> sqlite3.Connection:
    """Open or make a state file, for one thread at a time, and bring it to the newest schema.

    Raises ``sqlite3.Error``, ``OSError``, and ``StateAway`` for a file that is no state or is a newer one.
    """
    _make_private(path)
    with _alone_in(path.parent):
        return _open_file(path)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Let no other process open a state file in ``folder`` meanwhile.

    Changing a new file to WAL fails at once where another process uses it: SQLite does not wait there. Not by a lock on
    the file itself: closing a descriptor of it would release SQLite's own locks (sqlite.org/howtocorrupt.html).
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _open_file(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        # FULL: a count that was answered must survive a loss of power.
        for pragma in ("synchronous = FULL", f"journal_size_limit = {JOURNAL_LIMIT}", f"cache_size = -{CACHE_KIB}"):
            connection.execute(f"PRAGMA {pragma}")
        _migrate(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _make_private(path: Path) -> None:
    """Make the file (0600, whatever the umask) where it is missing, for its folder's owner; refuse another user's.

    As root, SQLite gives ``-wal`` and ``-shm`` the owner of the file; their mode is the file's in any case.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with walked(path.parent) as folder:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(path.name, flags, 0o600, dir_fd=folder.fd)
        try:
            st = os.fstat(fd)
            require_owner(st, path)
            if not st.st_size and os.geteuid() == 0:  # a command of root's came before the service: it is the service's
                os.fchown(fd, folder.st.st_uid, folder.st.st_gid)
        finally:
            os.close(fd)


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Apply the migrations that are missing, in one transaction."""
    wanted = migrations(SQLITE)
    if _number(connection, "user_version") == len(wanted):
        return
    connection.execute("BEGIN IMMEDIATE")
    found = _number(connection, "user_version")  # another process may have been first
    mark = _number(connection, "application_id")
    if mark != APPLICATION_ID and (mark or found or _has_tables(connection)):
        raise StateAway(f"{path}: is another program's database")
    if found > len(wanted):
        raise StateAway(f"{path}: {newer(found)}")
    for statement in (statement for migration in wanted[found:] for statement in migration):
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {len(wanted)}")
    connection.execute("COMMIT")


def _number(connection: sqlite3.Connection, pragma: str) -> int:
    return int(connection.execute(f"PRAGMA {pragma}").fetchone()[0])


def _has_tables(connection: sqlite3.Connection) -> bool:
    return bool(connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone())
