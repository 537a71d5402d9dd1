"""A file that is not a ledger is refused in one line; a ledger is migrated completely, and queried through indexes."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from presignd.errors import Unavailable, UsageError, fault
from presignd.ledger import Patience, changes, open_ledger
from presignd.ledger import queries as questions
from presignd.ledger.changes import Change, Claim
from presignd.ledger.schema import LEDGER, MIGRATIONS
from presignd.states import Event
from presignd.system import filesystem
from presignd.system.sqlite import DatabaseFile
from tests.descriptors import open_descriptors
from tests.versions import LATER, MARK, NOW, PRINT, linking, new


async def opened_and_closed(folder: Path) -> None:
    await (await open_ledger(folder)).close(clean=True)


async def test_the_ledger_is_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        ledger = await open_ledger(tmp_path / "deep" / "ledger")
        await ledger.begin_run()
        modes = {name: mode(tmp_path / "deep/ledger" / name) for name in contents(tmp_path / "deep/ledger")}
        await ledger.close(clean=True)
    finally:
        os.umask(before)
    assert modes == {"ledger.sqlite3": 0o600, "ledger.sqlite3-wal": 0o600, "ledger.sqlite3-shm": 0o600}
    assert mode(tmp_path / "deep" / "ledger") == 0o700


def contents(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_change_makes_no_temporary_file(tmp_path: Path) -> None:
    """SQLite keeps a list's own journal in memory, whatever its size: a file would be made and written for each."""
    with closing(DatabaseFile(tmp_path / "ledger.sqlite3", LEDGER).open()) as connection:
        assert connection.execute("PRAGMA temp_store").fetchone() == (2,)


async def test_an_existing_folders_mode_is_left_alone(tmp_path: Path) -> None:
    """StateDirectory= of systemd has made it, with the mode that its unit says."""
    await asyncio.to_thread(tmp_path.chmod, 0o750)
    await opened_and_closed(tmp_path)
    assert mode(tmp_path) == 0o750


def test_links_of_the_first_schema_count_as_naming_their_version(tmp_path: Path) -> None:
    """That schema does not have which version a link names, and nearly every link of a version named it."""
    connection = DatabaseFile(tmp_path / "db", replace(LEDGER, migrations=MIGRATIONS[:1])).open()
    rows = [("named", "v1", 1), ("not linked", "v1", None), ("suspended", "null", 1), ("none", "", 1)]
    connection.executemany(
        "INSERT INTO version (file_id, watch, path, current, state, ino, size, mtime_ns, ctime_ns, bucket,"
        " content_type, priority, queued_at, version_id, expires_at)"
        " VALUES (?, 'drop', 'a', 0, 'finished', 1, 1, 1, 1, 'bucket', '', 0, 0, ?, ?)",
        rows,
    )
    connection.close()
    connection = DatabaseFile(tmp_path / "db", LEDGER).open()
    found = {file_id: questions.by_id(connection, file_id) for file_id, *_ in rows}
    connection.close()
    assert {name: version and (version.link_version, version.linked) for name, version in found.items()} == {
        "named": ("v1", True),
        "not linked": ("", False),
        "suspended": ("", True),
        "none": ("", True),
    }


async def test_a_file_that_is_no_database_is_one_line_with_the_fix(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite3").write_bytes(b"not a database at all" * 100)
    with pytest.raises(UsageError, match=r"ledger\.sqlite3 is damaged") as caught:
        await open_ledger(tmp_path)
    assert "move ledger.sqlite3, ledger.sqlite3-wal and ledger.sqlite3-shm away" in caught.value.fix
    assert caught.value.__suppress_context__
    assert "\n" not in str(caught.value)


async def test_damage_inside_is_the_same_line_when_it_is_met(tmp_path: Path) -> None:
    await opened_and_closed(tmp_path)
    file = tmp_path / "ledger.sqlite3"
    content = bytearray(file.read_bytes())
    with closing(sqlite3.connect(file)) as connection:
        pages = [page for (page,) in connection.execute("SELECT rootpage FROM sqlite_schema WHERE rootpage > 1")]
    for page in pages:
        content[(page - 1) * 4096 : page * 4096] = b"\xff" * 4096
    file.write_bytes(content)
    ledger = await open_ledger(tmp_path)
    for call in (ledger.quarantined, ledger.summary, ledger.begin_run):
        with pytest.raises(UsageError, match="is damaged"):
            await call()
    await ledger.close(clean=False)


async def test_a_network_filesystem_is_refused_before_anything_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filesystem, "fs_type", lambda _target: 0xFF534D42)
    with pytest.raises(UsageError, match="lies on CIFS"):
        await open_ledger(tmp_path)
    assert contents(tmp_path) == []


async def test_a_ledger_that_can_not_be_opened_is_left_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even while its error is at hand: Python 3.13 warns of a connection that nobody closed."""
    file = tmp_path / "ledger.sqlite3"
    file.write_bytes(b"not a database at all" * 100)
    await asyncio.to_thread(int)  # the loop's own descriptors are there from here on
    before = open_descriptors()
    with pytest.raises(UsageError) as damaged:
        await open_ledger(tmp_path)
    assert open_descriptors() == before, damaged
    file.unlink()
    monkeypatch.setattr("presignd.ledger.ledger.sync_folder", lambda _: os.close(-1))
    with pytest.raises(OSError, match="Bad file descriptor") as unsynced:
        await open_ledger(tmp_path)
    assert open_descriptors() == before, unsynced


async def test_a_ledger_that_nobody_waits_for_any_more_is_closed_once_it_is_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon that is told to end while it starts: the thread that opens can't be stopped."""
    entered, gate = threading.Event(), threading.Event()
    await asyncio.to_thread(int)
    before = open_descriptors()

    def wait(_folder: Path) -> None:
        entered.set()
        assert gate.wait(60)

    monkeypatch.setattr("presignd.ledger.ledger.sync_folder", wait)
    opening = asyncio.create_task(open_ledger(tmp_path))
    assert await asyncio.to_thread(entered.wait, 60)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert open_descriptors() > before
    gate.set()
    async with asyncio.timeout(60):
        while open_descriptors() > before:  # noqa: ASYNC110 - a thread ends without an event to wait for
            await asyncio.sleep(0)


async def test_another_programs_lock_is_waited_for_and_then_told(tmp_path: Path) -> None:
    ledger = await open_ledger(tmp_path, busy=0.01)
    other = sqlite3.connect(tmp_path / "ledger.sqlite3", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="another program holds the ledger"):
        await ledger.begin_run()
    other.execute("ROLLBACK")
    other.close()
    assert await ledger.begin_run()
    await ledger.close(clean=True)


# --- every statement goes through an index ------------------------------------------------------------


class Recorder:
    """A connection that keeps each statement and its values."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.seen: list[tuple[str, Any]] = []

    def execute(self, sql: str, values: Any = ()) -> sqlite3.Cursor:
        self.seen.append((sql, values))
        return self._connection.execute(sql, values)

    def executemany(self, sql: str, rows: Any) -> None:
        for row in rows:
            self.execute(sql, row)

    def plans(self) -> list[str]:
        return [
            f"{row[3]} in: {sql}"
            for sql, values in self.seen
            if not sql.startswith("INSERT")
            for row in self._connection.execute(f"EXPLAIN QUERY PLAN {sql}", values)
        ]


@pytest.fixture
def recorder(tmp_path: Path) -> Any:
    connection = DatabaseFile(tmp_path / "db", LEDGER).open()
    yield Recorder(connection)
    connection.close()


def test_no_statement_of_the_daily_work_scans_or_sorts_the_versions(recorder: Any) -> None:
    """A million versions cost each of them no more than a few."""
    changes.enqueue(recorder, [new(b"1/a", key="a"), new(b"2/a", key="a"), new(b"d/x")])
    changes.enqueue(recorder, [new(b"d/x", key="other")])
    due = questions.due(recorder, "drop", 10, LATER, below_size=10**9)
    claimed = changes.claim(recorder, [Claim(version) for version in due])
    one, two, three = [found.version for found in claimed if found]
    (one,) = changes.apply(recorder, [Change(one, (Event.VERIFY,), {"etag": "e"})])
    (one,) = changes.record_linked(recorder, [linking(one)], MARK)
    assert changes.assign_key(recorder, two, "a", fresh=True, next_key=True, after_key="a~2")
    changes.apply(recorder, [Change(three, (Event.QUARANTINE,))])
    questions.known(recorder, "drop", [b"1/a", b"2/a"])
    questions.differing(recorder, "drop", [(b"1/a", 0, 0, 0, 0)])
    questions.paths(recorder, "drop", b"", 100)
    questions.next_due(recorder, ["drop"], NOW)
    questions.suspects_left(recorder, [two.file_id], NOW, None)
    questions.previous_receipt(recorder, two)
    questions.sent(recorder, two)
    questions.unannounced(recorder)
    questions.by_key(recorder, "a", None)
    questions.by_path(recorder, "drop", b"1/a")
    questions.by_id(recorder, one.file_id)
    changes.refingerprint(recorder, [(one.file_id, PRINT)])
    changes.record_gone(recorder, "drop", [b"d"], NOW)
    changes.release(recorder, unclean=True)
    changes.record_announced(recorder, [one.file_id])
    changes.prune(recorder, LATER)
    plans = recorder.plans()
    assert len(plans) > 30
    assert [plan for plan in plans if costly(plan)] == []


def costly(plan: str) -> bool:
    """Return whether a query step scans more versions than it needs, or sorts them.

    Few versions are uploading, and those in ``version_unannounced`` are what the question is about.
    """
    step, _, sql = plan.partition(" in: ")
    by_state = "version_state" in step and "state = 'uploading'" not in sql
    return by_state or "TEMP B-TREE" in step or (step.startswith("SCAN version") and "version_unannounced" not in step)


def test_the_summary_reads_an_index_only(recorder: Any) -> None:
    questions.summary(recorder)
    assert [plan for plan in recorder.plans() if "version" in plan.partition(" in: ")[0]] == [
        f"SEARCH version USING COVERING INDEX version_state (state=?) in: {recorder.seen[1][0]}"
    ]


async def test_a_ledger_without_patience_says_at_once_that_it_can_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command would rather end than wait."""
    ledger = await open_ledger(tmp_path)

    async def locked(*_: object, **__: object) -> None:
        raise Unavailable("locked")

    with monkeypatch.context() as patch:
        patch.setattr(ledger._database._writer, "do", locked)
        with pytest.raises(Unavailable):
            await ledger.enqueue([new(b"a")])
    await ledger.close(clean=True)


async def test_a_ledger_with_patience_writes_once_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon waits: its change is made by a later try, and nobody hears of the first."""

    async def at_once(_seconds: float) -> None:
        await asyncio.sleep(0)

    ledger = await open_ledger(tmp_path, Patience(sleep=at_once))
    do, failures = ledger._database._writer.do, [Unavailable("locked"), fault("disk_full")]

    async def at_first_locked(*args: Any, **more: Any) -> object:
        if failures:
            raise failures.pop()
        return await do(*args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(ledger._database._writer, "do", at_first_locked)
        (recorded,) = await ledger.enqueue([new(b"a")])
    assert recorded.version.path == b"a"
    await ledger.close(clean=True)
