"""The state in PostgreSQL, for several brokers: a pool of connections that are made when they are needed.

asyncpg takes half the processor time of psycopg 3 for a lookup (116 to 136 against 240 to 260 us, 8 connections). It
reads the options of libpq in the URL (``sslmode``, ``sslrootcert``, several hosts with ``target_session_attrs``).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from presignd.broker.state.database import Database, Row, StateAway, Statement
from presignd.broker.state.migrations import POSTGRES, migrations, newer
from presignd.errors import UsageError
from presignd.redaction.redact import redact

if TYPE_CHECKING:
    import asyncpg

CONNECT_SECONDS = 3.0
CALL_SECONDS = 5.0
"""How long one statement may take, and how long a call waits for a free connection."""
MOST_CONNECTIONS = 10
IDLE_SECONDS = 300.0
AGAIN_SECONDS = 0.5
"""How long calls fail at once after a failed connect: otherwise each would wait ``CONNECT_SECONDS``."""
MIGRATION_LOCK = 0x70736272
"""Key of ``pg_advisory_xact_lock``: brokers that start together migrate one after the other."""


class PostgresDatabase(Database):
    """A database of PostgreSQL 13 or later at ``url``; raises ``UsageError`` if asyncpg is not installed."""

    def __init__(self, url: str) -> None:
        try:
            import asyncpg  # noqa: PLC0415 - an optional dependency
        except ImportError:
            raise UsageError(
                "state.url: PostgreSQL needs the package asyncpg", fix="pip install 'presignd[postgres]'"
            ) from None
        self._asyncpg = asyncpg
        self._url, self._place = url, _place(url)
        # Errors of the network, of the server, and of a connection that was closed during the call: InterfaceError, or
        # InternalClientError where a statement was being sent.
        closed = (asyncpg.InterfaceError, asyncpg.InternalClientError)
        self._expected = (OSError, TimeoutError, ValueError, asyncpg.PostgresError, *closed)
        self._pool: asyncpg.Pool[Any] | None = None
        self._connecting = asyncio.Lock()
        self._not_before, self._why = 0.0, ""

    async def fetch(self, sql: str, *values: object) -> list[Row]:
        """Run one statement, which is a transaction of its own."""
        async with self._connected() as connection:
            return [tuple(row) for row in await connection.fetch(_dollars(sql), *values)]

    async def fetch_each(self, sql: str, rows: Sequence[Sequence[object]]) -> list[list[Row]]:
        """Run one statement with each of ``rows`` in one transaction."""
        async with self._connected() as connection, connection.transaction():
            statement = await connection.prepare(_dollars(sql))
            return [[tuple(found) for found in await statement.fetch(*row)] for row in rows]

    async def transact(self, statements: Sequence[Statement]) -> list[list[Row]]:
        """Run several statements in one transaction."""
        async with self._connected() as connection, connection.transaction():
            return [
                [tuple(row) for row in await connection.fetch(_dollars(sql), *values)] for sql, values in statements
            ]

    async def close(self) -> None:
        """Close the pool."""
        if self._pool is not None:
            self._pool.terminate()
            self._pool = None

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Any]:
        """Yield a connection; turn the expected errors into ``StateAway``."""
        try:
            pool = self._pool or await self._open()
            connection = await pool.acquire(timeout=CALL_SECONDS)
            try:
                yield connection
            finally:
                # The pool closes a connection that it can't take back; commits on it still count.
                with suppress(*self._expected):
                    await pool.release(connection)
        except self._expected as error:
            raise StateAway(self._text(error)) from None

    async def _open(self) -> asyncpg.Pool[Any]:
        """Make the pool and migrate; other calls wait, and fail with this one."""
        async with self._connecting:
            if self._pool is not None:
                return self._pool
            if time.monotonic() < self._not_before:
                raise StateAway(self._why)
            try:
                self._pool = await self._made()
            except (*self._expected, StateAway) as error:
                self._not_before, self._why = time.monotonic() + AGAIN_SECONDS, self._text(error)
                raise StateAway(self._why) from None
            return self._pool

    async def _made(self) -> asyncpg.Pool[Any]:
        pool = await self._asyncpg.create_pool(
            self._url,
            min_size=0,
            max_size=MOST_CONNECTIONS,
            timeout=CONNECT_SECONDS,
            command_timeout=CALL_SECONDS,
            max_inactive_connection_lifetime=IDLE_SECONDS,
            server_settings={"application_name": "presignd-broker"},
        )
        try:
            async with pool.acquire(timeout=CALL_SECONDS) as connection, connection.transaction():
                await _migrate(connection)
        except BaseException:
            pool.terminate()
            raise
        return pool

    def _text(self, error: BaseException) -> str:
        """Return an error's text with the address, which never has the password."""
        return redact(str(error) if isinstance(error, StateAway) else f"{self._place}: {str(error) or 'timeout'}")


async def _migrate(connection: Any) -> None:
    """Apply the migrations that are missing."""
    await connection.execute("SELECT pg_advisory_xact_lock($1)", MIGRATION_LOCK)
    await connection.execute("CREATE TABLE IF NOT EXISTS presignd_schema (version BIGINT NOT NULL)")
    found = await connection.fetchval("SELECT max(version) FROM presignd_schema") or 0
    wanted = migrations(POSTGRES)
    if found > len(wanted):
        raise StateAway(newer(found))
    for number, statements in enumerate(wanted[found:], found + 1):
        for statement in statements:
            await connection.execute(statement)
        await connection.execute("INSERT INTO presignd_schema VALUES ($1)", number)


def _dollars(sql: str) -> str:
    return sql.replace("?", "$")


def _place(url: str) -> str:
    """Return the hosts of a URL, without user and password."""
    return urlsplit(url).netloc.rpartition("@")[2] or "PostgreSQL"
