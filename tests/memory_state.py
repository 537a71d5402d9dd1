"""The broker's state in SQLite's memory, for tests that order each statement of concurrent calls themselves."""

from __future__ import annotations

import sqlite3
from collections.abc import Coroutine, Generator, Iterator, Sequence
from typing import Any, TypeVar, cast

from presignd.broker.state.database import Database, Row, Statement
from presignd.broker.state.migrations import SQLITE, migrations

R = TypeVar("R")


class Turn:
    """Awaiting one lets another call go first, where the test says so."""

    def __await__(self) -> Generator[None, None, None]:
        yield


class MemoryDatabase(Database):
    """A new database; each statement or transaction is one turn."""

    def __init__(self) -> None:
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        for migration in migrations(SQLITE):
            for statement in migration:
                self.connection.execute(statement)

    async def fetch(self, sql: str, *values: object) -> list[Row]:
        (rows,) = await self.transact([(sql, values)])
        return rows

    async def fetch_each(self, sql: str, rows: Sequence[Sequence[object]]) -> list[list[Row]]:
        return await self.transact([(sql, row) for row in rows])

    async def transact(self, statements: Sequence[Statement]) -> list[list[Row]]:
        await Turn()
        with self.connection:
            self.connection.execute("BEGIN")
            return [
                self.connection.execute(sql, {str(place): value for place, value in enumerate(row, 1)}).fetchall()
                for sql, row in statements
            ]

    async def close(self) -> None:
        self.connection.close()


def run(call: Coroutine[Any, Any, R]) -> R:
    """Run one call alone."""
    (result,) = run_all([call], iter(()))
    return cast("R", result)


def run_all(calls: Sequence[Coroutine[Any, Any, Any]], order: Iterator[int]) -> list[Any]:
    """Run calls at once: ``order`` says whose turn is next, and then the first that is left."""
    results: dict[int, Any] = {}
    left = list(range(len(calls)))
    while left:
        place = left[next(order, 0) % len(left)]
        try:
            calls[place].send(None)
        except StopIteration as stop:
            results[place] = stop.value
            left.remove(place)
    return [results[place] for place in range(len(calls))]
