"""The state in a SQLite file on this machine: one thread, and one commit for all waiting calls.

Several processes may use one file: a broker, and a command that revokes a token.
"""

from __future__ import annotations

import asyncio
import fcntl
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from presignd.broker.state.database import Database, Row, StateAway, Statement
from presignd.broker.state.migrations import SQLITE, migrations
from presignd.errors import PresigndError
from presignd.system.durable import make_folder
from presignd.system.sqlite import DatabaseFile, DatabaseKind, finish_log, presence_check, require_local
from presignd.system.trust import open_folder

APPLICATION_ID = 0x70736272
"""Marks the file as a broker's state ("psbr")."""

STATE = DatabaseKind(
    "the state",
    APPLICATION_ID,
    migrations(SQLITE),
    setting="state.path",
    place="file",
    user="the broker's user",
    loss="its links and invitations no longer open then, unless a backup has them",
    folder_owns=True,
    cache_kib=16 << 10,
)

Work = Callable[[sqlite3.Connection], list[list[Row]]]
Waiting = tuple[Work, asyncio.Future[list[list[Row]]]]


class SqliteDatabase(Database):
    """A SQLite file, made when missing (0600), opened by the first call."""

    def __init__(self, path: Path) -> None:
        self._file = DatabaseFile(path, STATE)
        self._thread = ThreadPoolExecutor(1, "presignd-state")
        self._connection: sqlite3.Connection | None = None
        self._changed: Callable[[], str] | None = None
        self._waiting: list[Waiting] = []
        self._working: asyncio.Task[None] | None = None

    async def fetch(self, sql: str, *values: object) -> list[Row]:
        """Run one statement, in one commit with all other waiting calls."""
        (rows,) = await self.fetch_each(sql, [values])
        return rows

    async def fetch_each(self, sql: str, rows: Sequence[Sequence[object]]) -> list[list[Row]]:
        """Run one statement with each of ``rows``, in one commit with all other waiting calls."""
        return await self.transact([(sql, row) for row in rows])

    async def transact(self, statements: Sequence[Statement]) -> list[list[Row]]:
        """Run several statements, in one commit with all other waiting calls."""

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
        """Finish the waiting calls, and close the file."""
        if self._working is not None:
            await asyncio.gather(self._working, return_exceptions=True)
        await asyncio.get_running_loop().run_in_executor(self._thread, self._drop)
        self._thread.shutdown()

    async def _work(self) -> None:
        """Commit all waiting calls together, until none waits."""
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
        except (sqlite3.Error, OSError, PresigndError) as error:
            self._drop()  # closing rolls back, and the next call opens what is there then
            raise self._away(error) from None
        except BaseException:
            self._drop()
            raise
        return results

    def _away(self, error: Exception) -> StateAway:
        known = error if isinstance(error, PresigndError) else self._file.explain(error)
        return StateAway(known.message, fix=known.fix) if known else StateAway(f"{self._file.path}: {error}")

    def _current(self) -> sqlite3.Connection:
        """Return the connection; another one if the file was replaced or removed."""
        if self._connection is not None and self._changed is not None and self._changed():
            finish_log(self._connection)
            self._drop()
        if self._connection is None:
            self._connection = open_file(self._file.path)
            self._changed = presence_check(self._file.path)
        return self._connection

    def _drop(self) -> None:
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
        self._connection = self._changed = None


def open_file(path: Path) -> sqlite3.Connection:
    """Open or make a state file, for one thread at a time, and bring it to the newest schema.

    Raises as ``DatabaseFile.open`` does, and ``OSError``.
    """
    make_folder(path.parent, 0o700)
    require_local(
        path.parent, f"the state {path}", "set state.path to a local file, or state.url to a PostgreSQL database"
    )
    with open_folder(path.parent) as folder:
        # Changing a new file to WAL fails at once where another process uses it: SQLite does not wait there. So one
        # process at a time opens a file here. The lock is not on the file itself: closing a descriptor of that would
        # release SQLite's own locks (sqlite.org/howtocorrupt.html).
        fcntl.flock(folder, fcntl.LOCK_EX)
        return DatabaseFile(path, STATE).open()
