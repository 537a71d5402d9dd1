"""A broker's state as the contract suites try it: a database in SQLite, and one in PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from presignd.broker.state.database import Database
from presignd.broker.state.postgres import PostgresDatabase
from presignd.broker.state.sqlite import SqliteDatabase
from tests.postgres import Postgres

Connect = Callable[[], Database]


@pytest.fixture(params=["sqlite", "postgres"])
def connect(request: pytest.FixtureRequest, tmp_path: Path) -> Connect:
    """Return what connects to one database; each call is another broker."""
    if request.param == "sqlite":
        return lambda: SqliteDatabase(tmp_path / "state.db")
    server: Postgres = request.getfixturevalue("postgres")
    url = server.new_database()
    return lambda: PostgresDatabase(url)
