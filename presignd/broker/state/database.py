"""The port of the broker's state: a database that runs one statement, or many in one transaction."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from presignd.errors import Unavailable
from presignd.webhooks.outbox import Away

Row = tuple[Any, ...]
Statement = tuple[str, Sequence[object]]
"""SQL, and its parameters in order."""


class StateAway(Away):
    """The state can't be reached, or refuses: answer 503, and try again later. ``fix`` says what to do."""

    def __init__(self, why: str = "", *, fix: str = "start the database, or correct [state]") -> None:
        super().__init__(why)
        self.fix = fix


@contextmanager
def needed() -> Iterator[None]:
    """Turn the ``StateAway`` of a command's body into ``Unavailable``, with its fix."""
    try:
        yield
    except StateAway as away:
        raise Unavailable(f"the state can't be used: {away}", fix=away.fix) from None


class Database(ABC):
    """A database with the tables of ``migrations``.

    The SQL must work in both SQLite and PostgreSQL; parameters are ``?1``, ``?2``. A call returns after its commit,
    which survives a loss of power. Every call raises ``StateAway`` while the database can't be used, and connects if
    there is no connection.
    """

    @abstractmethod
    async def fetch(self, sql: str, *values: object) -> list[Row]:
        """Run one statement in a transaction of its own; return its rows."""

    @abstractmethod
    async def fetch_each(self, sql: str, rows: Sequence[Sequence[object]]) -> list[list[Row]]:
        """Run one statement with each of ``rows``, all in one transaction; return the rows of each."""

    @abstractmethod
    async def transact(self, statements: Sequence[Statement]) -> list[list[Row]]:
        """Run several statements in one transaction; return the rows of each."""

    @abstractmethod
    async def close(self) -> None:
        """Close every connection."""

    async def secret(self, name: str, new: bytes) -> bytes:
        """Return the secret of this name that all brokers share; if there is none, store ``new``."""
        await self.fetch("INSERT INTO secrets (name, value) VALUES (?1, ?2) ON CONFLICT (name) DO NOTHING", name, new)
        (row,) = await self.fetch("SELECT value FROM secrets WHERE name = ?1", name)
        return bytes(row[0])


class NoDatabase(Database):
    """The state of a broker that needs none: always away."""

    async def fetch(self, sql: str, *values: object) -> list[Row]:  # noqa: ARG002 - the port's
        """Raise ``StateAway``."""
        raise StateAway("this broker has no state")

    async def fetch_each(self, sql: str, rows: Sequence[Sequence[object]]) -> list[list[Row]]:
        """Raise ``StateAway``."""
        return [await self.fetch(sql, *row) for row in rows]

    async def transact(self, statements: Sequence[Statement]) -> list[list[Row]]:
        """Raise ``StateAway``."""
        return [await self.fetch(sql, *values) for sql, values in statements]

    async def close(self) -> None:
        """Do nothing."""


NO_DATABASE = NoDatabase()
