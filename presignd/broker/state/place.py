"""The state of a configuration: connected on demand, and its outages logged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from urllib.parse import unquote, urlsplit

from presignd.broker.config import StatePlace
from presignd.broker.state.database import Database, Row, StateAway, Statement
from presignd.broker.state.postgres import PostgresDatabase
from presignd.broker.state.sqlite import SqliteDatabase
from presignd.redaction import redact
from presignd.telemetry.log import get_logger

MEANWHILE = "links answer 503 until then; grants are still signed"

log = get_logger()


def database_at(place: StatePlace) -> Database:
    """Return the database at ``place``; raise ``UsageError`` if PostgreSQL's driver is not installed."""
    if place.url:
        redact.register(unquote(urlsplit(place.url).password or ""))
        return PostgresDatabase(place.url)
    assert place.path is not None, "a configuration with links has a place for them"
    return SqliteDatabase(place.path)


class LoggedDatabase(Database):
    """Logs ``state.unreachable`` when a database goes away, and ``state.back`` once it answers again."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.problem = ""
        """Why it can't be used; "" while it can."""

    async def fetch(self, sql: str, *values: object) -> list[Row]:
        """Run one statement."""
        with self._logged():
            return await self._database.fetch(sql, *values)

    async def fetch_each(self, sql: str, rows: Sequence[Sequence[object]]) -> list[list[Row]]:
        """Run one statement with each of ``rows``."""
        with self._logged():
            return await self._database.fetch_each(sql, rows)

    async def transact(self, statements: Sequence[Statement]) -> list[list[Row]]:
        """Run several statements."""
        with self._logged():
            return await self._database.transact(statements)

    @contextmanager
    def _logged(self) -> Iterator[None]:
        try:
            yield
        except StateAway as away:
            if not self.problem:
                log.error("state.unreachable", error=str(away), fix=f"{away.fix}; {MEANWHILE}")  # noqa: TRY400 - expected: no traceback
            self.problem = str(away)
            raise
        if self.problem:
            log.info("state.back")
            self.problem = ""

    async def close(self) -> None:
        """Close every connection."""
        await self._database.close()
