"""A SQLite file is migrated completely or refused in one line, and its errors are told in the words of its kind."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from presignd.errors import PresigndError, Unavailable, UsageError
from presignd.system.sqlite import DatabaseFile, DatabaseKind, Migration

FIRST = ("CREATE TABLE one (n)",)
SECOND = ("CREATE TABLE two (n)", "INSERT INTO two VALUES (1)")
BROKEN = ("CREATE TABLE three (n)", "INSERT INTO missing VALUES (1)")


def tables(path: Path) -> tuple[int, set[str]]:
    connection = sqlite3.connect(path)
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        return version, {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    finally:
        connection.close()


def pragma(connection: sqlite3.Connection, name: str) -> Any:
    return connection.execute(f"PRAGMA {name}").fetchone()[0]


def database(path: Path, *migrations: Migration) -> DatabaseFile:
    kind = DatabaseKind("the notes", 1, migrations, setting="notes.path", place="file", user="me", loss="none is lost")
    return DatabaseFile(path, kind)


def test_every_commit_is_on_disk_before_it_counts(tmp_path: Path) -> None:
    connection = database(tmp_path / "db", FIRST).open()
    settings = [pragma(connection, name) for name in ("journal_mode", "synchronous", "foreign_keys")]
    timeout = pragma(connection, "busy_timeout")
    connection.close()
    assert settings == ["wal", 2, 1]
    assert timeout >= 1000


def test_migrations_go_on_from_where_the_file_stands(tmp_path: Path) -> None:
    database(tmp_path / "db", FIRST).open().close()
    assert tables(tmp_path / "db") == (1, {"one"})
    database(tmp_path / "db", FIRST, SECOND).open().close()
    database(tmp_path / "db", FIRST, SECOND).open().close()
    assert tables(tmp_path / "db") == (2, {"one", "two"})


def test_a_migration_that_fails_leaves_the_schema_before_it(tmp_path: Path) -> None:
    with pytest.raises(sqlite3.OperationalError, match="missing"):
        database(tmp_path / "db", FIRST, BROKEN).open()
    assert tables(tmp_path / "db") == (1, {"one"})


def test_a_database_of_a_newer_presignd_is_refused_with_both_versions(tmp_path: Path) -> None:
    database(tmp_path / "db", FIRST, SECOND).open().close()
    with pytest.raises(UsageError, match="schema version 2, this presignd knows versions up to 1") as caught:
        database(tmp_path / "db", FIRST).open()
    assert "newer presignd" in caught.value.fix
    assert tables(tmp_path / "db") == (2, {"one", "two"})


@pytest.mark.parametrize("application_id", [0, 77])
def test_another_programs_database_is_refused_and_left_alone(tmp_path: Path, application_id: int) -> None:
    connection = sqlite3.connect(tmp_path / "db")
    connection.executescript(f"CREATE TABLE theirs (n); PRAGMA application_id = {application_id};")
    connection.close()
    content = (tmp_path / "db").read_bytes()
    with pytest.raises(UsageError, match="another program's database"):
        database(tmp_path / "db", FIRST).open()
    assert (tmp_path / "db").read_bytes() == content


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (PermissionError(13, "Permission denied"), UsageError, "can't be opened: Permission denied"),
        (OSError(28, "No space left on device"), PresigndError, "the disk is full"),
        (OSError(122, "Disk quota exceeded"), PresigndError, "the disk is full"),
    ],
)
def test_the_systems_errors_are_told_in_words(error: OSError, kind: type[PresigndError], words: str) -> None:
    told = database(Path("/l")).explain(error)
    assert isinstance(told, kind)
    assert words in told.message
    assert told.fix


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (sqlite3.SQLITE_FULL, PresigndError),
        (sqlite3.SQLITE_IOERR_WRITE, Unavailable),
        (sqlite3.SQLITE_READONLY, Unavailable),
        (sqlite3.SQLITE_CORRUPT_INDEX, UsageError),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, Unavailable),
        (sqlite3.SQLITE_CONSTRAINT, None),
        (sqlite3.SQLITE_MISUSE, None),
    ],
)
def test_sqlites_errors_are_expected_ones_or_bugs(code: int, kind: type[PresigndError] | None) -> None:
    error = sqlite3.OperationalError("words")
    error.sqlite_errorcode = code
    told = database(Path("/l")).explain(error)
    assert told is None if kind is None else isinstance(told, kind)
