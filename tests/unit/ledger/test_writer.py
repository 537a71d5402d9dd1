"""The writer thread: one commit for all waiting changes, and an answer for every caller."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from presignd.ledger.schema import LEDGER
from presignd.ledger.writer import BATCH, Writer
from presignd.runtime import heartbeat
from presignd.system.sqlite import DatabaseFile

Add = Callable[[sqlite3.Connection], int]


def file(path: Path) -> DatabaseFile:
    return DatabaseFile(path, LEDGER)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    connection = file(tmp_path / "db").connect()
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE t (n INTEGER PRIMARY KEY, filler BLOB)")
    connection.close()
    return tmp_path / "db"


@pytest.fixture
async def writer(path: Path) -> AsyncIterator[Writer]:
    made = Writer(file(path).connect(), file(path).explain)
    yield made
    await made.close()


def add(number: int, size: int = 0) -> Add:
    def operation(connection: sqlite3.Connection) -> int:
        connection.execute("INSERT INTO t VALUES (?, zeroblob(?))", (number, size))
        return number

    return operation


def stored(path: Path) -> set[int]:
    connection = file(path).connect()
    try:
        return {number for (number,) in connection.execute("SELECT n FROM t")}
    finally:
        connection.close()


class Gate:
    """Holds the writer in an operation, so that a test decides what waits behind it."""

    def __init__(self) -> None:
        self._open, self._entered = threading.Event(), threading.Event()

    def __call__(self, _connection: sqlite3.Connection) -> None:
        self._entered.set()
        assert self._open.wait(60)

    async def entered(self) -> None:
        assert await asyncio.to_thread(self._entered.wait, 60)

    def open(self) -> None:
        self._open.set()


async def test_a_call_returns_after_its_commit(writer: Writer, path: Path) -> None:
    assert await writer.do(add(1)) == 1
    assert stored(path) == {1}


async def test_what_waits_shares_commits_of_256_at_most(path: Path) -> None:
    """The limit is what a crash may make presignd do again."""
    connection = file(path).connect()
    statements: list[str] = []
    connection.set_trace_callback(statements.append)
    writer, gate = Writer(connection, lambda _error: None), Gate()
    held = asyncio.create_task(writer.do(gate))
    await gate.entered()
    calls = [asyncio.create_task(writer.do(add(number))) for number in range(2 * BATCH + 10)]
    await asyncio.sleep(0)
    gate.open()
    await asyncio.gather(held, *calls)
    await writer.close()
    changes = "".join({"BEGIN": "[", "COMMIT": "]"}.get(text, "i" * text.startswith("INSERT")) for text in statements)
    assert [len(batch) for batch in changes.replace("[", "").split("]")] == [0, BATCH, BATCH, 10, 0]


async def test_a_failed_operation_is_undone_alone(writer: Writer, path: Path) -> None:
    def half(connection: sqlite3.Connection) -> None:
        add(100)(connection)
        raise LookupError("half done")

    answers = await asyncio.gather(writer.do(add(1)), writer.do(half), writer.do(add(2)), return_exceptions=True)
    assert [repr(answer) for answer in answers] == ["1", "LookupError('half done')", "2"]
    assert stored(path) == {1, 2}


async def test_a_full_disk_fails_its_commit_and_the_next_one_is_tried_again(path: Path) -> None:
    connection = file(path).connect()
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages + 3}")
    writer = Writer(connection, file(path).explain)
    for number in range(3):
        with pytest.raises(Exception, match="the disk is full") as caught:
            await writer.do(add(number, 100_000))
        assert getattr(caught.value, "code", "") == "disk_full"
    connection.execute(f"PRAGMA max_page_count = {pages + 1000}")
    assert await writer.do(add(7, 100_000)) == 7
    await writer.close()
    assert stored(path) == {7}


async def test_a_commit_that_fails_tells_every_caller_in_it(path: Path) -> None:
    """A deferred constraint fails at COMMIT, as a full disk can: nobody may believe his change is there."""
    connection = file(path).connect()
    connection.execute("CREATE TABLE child (n INTEGER REFERENCES t (n) DEFERRABLE INITIALLY DEFERRED)")
    writer, gate = Writer(connection, lambda _error: None), Gate()
    held = asyncio.create_task(writer.do(gate))
    await gate.entered()
    orphan = asyncio.create_task(writer.do(lambda c: c.execute("INSERT INTO child VALUES (99)").rowcount))
    calls = [asyncio.create_task(writer.do(add(number))) for number in range(3)]
    await asyncio.sleep(0)
    gate.open()
    answers = await asyncio.gather(orphan, *calls, return_exceptions=True)
    assert [type(answer) for answer in answers] == [sqlite3.IntegrityError] * 4
    await held
    assert await writer.do(add(5)) == 5
    await writer.close()
    assert stored(path) == {5}


async def test_a_cancelled_callers_change_is_made_all_the_same(writer: Writer, path: Path) -> None:
    gate = Gate()
    held = asyncio.create_task(writer.do(gate))
    await gate.entered()
    cancelled = asyncio.create_task(writer.do(add(1)))
    await asyncio.sleep(0)
    cancelled.cancel()
    gate.open()
    await held
    assert await writer.do(add(2)) == 2
    assert cancelled.cancelled()
    assert stored(path) == {1, 2}


async def test_a_thread_that_dies_fails_every_call_with_the_cause(path: Path) -> None:
    def die(_connection: sqlite3.Connection) -> None:
        raise SystemExit("the cause")

    writer, gate = Writer(file(path).connect(), lambda _error: None), Gate()
    held = asyncio.create_task(writer.do(gate))
    await gate.entered()
    calls = [asyncio.create_task(writer.do(operation)) for operation in (add(1), die, add(2))]
    await asyncio.sleep(0)
    gate.open()
    await held
    answers = await asyncio.gather(*calls, return_exceptions=True)
    for answer in answers:
        assert isinstance(answer, RuntimeError)
        assert isinstance(answer.__cause__, SystemExit)
    with pytest.raises(RuntimeError, match="has died") as caught:
        await writer.do(add(3))
    assert isinstance(caught.value.__cause__, SystemExit)
    await writer.close()
    assert stored(path) == set()


async def test_a_thread_that_dies_fails_what_waits_behind_it_too(path: Path) -> None:
    """Else a caller would wait for ever, and the daemon would hang instead of starting again."""
    gate = Gate()

    def die(connection: sqlite3.Connection) -> int:
        gate(connection)
        raise SystemExit("the cause")

    writer = Writer(file(path).connect(), lambda _error: None)
    first = asyncio.create_task(writer.do(die))
    await gate.entered()
    second = asyncio.create_task(writer.do(add(1)))
    closing = asyncio.create_task(writer.close())
    await asyncio.sleep(0)
    gate.open()
    for answer in await asyncio.gather(first, second, return_exceptions=True):
        assert isinstance(answer, RuntimeError)
        assert isinstance(answer.__cause__, SystemExit)
    await closing
    assert stored(path) == set()


def test_a_loop_that_ends_first_takes_nothing_back(path: Path) -> None:
    """A daemon that goes down with a change under way: it is made, and nobody is there to be told."""
    gate = Gate()

    async def leave() -> Writer:
        writer = Writer(file(path).connect(), lambda _error: None)
        operations: list[Callable[[sqlite3.Connection], object]] = [gate, add(1)]
        calls = [asyncio.create_task(writer.do(operation)) for operation in operations]
        await gate.entered()
        closing = asyncio.create_task(writer.close())
        await asyncio.sleep(0)
        for call in (*calls, closing):
            call.cancel()
        return writer

    # Its default executor waits for the thread, so the gate opens as the loop is closed.
    loop = asyncio.new_event_loop()
    writer = loop.run_until_complete(leave())
    loop.close()
    gate.open()
    writer._thread.join(60)
    assert not writer._thread.is_alive()
    assert stored(path) == {1}


async def test_closing_does_what_is_pending_first(path: Path) -> None:
    writer = Writer(file(path).connect(), lambda _error: None)
    calls = [asyncio.create_task(writer.do(add(number))) for number in range(500)]
    await asyncio.sleep(0)
    await writer.close()
    await writer.close()
    await asyncio.gather(*calls)
    assert stored(path) == set(range(500))
    with pytest.raises(RuntimeError, match="closed"):
        await writer.do(add(1000))


async def test_its_heart_goes_on_while_nothing_is_to_be_done(path: Path) -> None:
    writer = Writer(file(path).connect(), lambda _error: None, idle=0.001)
    async with asyncio.timeout(60):
        for _ in range(3):
            while heartbeat.overdue(0.0) == []:  # noqa: ASYNC110 - a thread's beat has no event to wait for
                await asyncio.sleep(0)
            while "ledger" in heartbeat.overdue(0.01):  # noqa: ASYNC110 - as above
                await asyncio.sleep(0)
    await writer.close()
    assert heartbeat.overdue(0.0) == []


async def test_its_heart_stands_still_while_the_thread_is_stuck(path: Path) -> None:
    writer, gate = Writer(file(path).connect(), lambda _error: None, idle=0.001), Gate()
    held = asyncio.create_task(writer.do(gate))
    await gate.entered()
    await asyncio.sleep(0.02)
    assert heartbeat.overdue(0.02) == ["ledger"]
    gate.open()
    await held
    await writer.close()


async def test_what_waits_is_done_in_its_order_in_one_transaction(path: Path) -> None:
    connection = file(path).connect()
    statements: list[str] = []
    connection.set_trace_callback(statements.append)
    writer, gate = Writer(connection, lambda _error: None), Gate()
    held = asyncio.create_task(writer.do(gate))
    await gate.entered()
    tasks = [asyncio.create_task(writer.do(add(n))) for n in (2, 0, 1)]
    await asyncio.sleep(0)
    gate.open()
    assert await asyncio.gather(held, *tasks) == [None, 2, 0, 1]
    await writer.close()
    assert [text.split()[0] for text in statements] == [
        *("BEGIN", "COMMIT"),
        *("BEGIN", "INSERT", "INSERT", "INSERT", "COMMIT"),
    ]
    assert [text.split("(")[1][0] for text in statements if "INSERT" in text] == ["2", "0", "1"]


async def test_a_lone_operation_that_fails_is_undone(writer: Writer, path: Path) -> None:
    def half(connection: sqlite3.Connection) -> None:
        add(100)(connection)
        raise LookupError("half done")

    with pytest.raises(LookupError):
        await writer.do(half)
    assert await writer.do(add(1)) == 1
    assert stored(path) == {1}


async def test_what_waits_with_a_call_that_undoes_the_whole_transaction_is_made_again(path: Path) -> None:
    """SQLite rolls everything back on some errors: no other call may be told that it was done while it is not."""
    writer, gate = Writer(file(path).connect(), lambda _error: None), Gate()

    def undone(connection: sqlite3.Connection) -> None:
        connection.execute("ROLLBACK")
        raise sqlite3.OperationalError("disk I/O error")

    held = asyncio.create_task(writer.do(gate))
    await gate.entered()
    operations: list[Callable[[sqlite3.Connection], object]] = [add(0), undone, add(2)]
    tasks = [asyncio.create_task(writer.do(operation)) for operation in operations]
    await asyncio.sleep(0)
    gate.open()
    answers = await asyncio.gather(held, *tasks, return_exceptions=True)
    assert [repr(answer) for answer in answers[1:]] == ["0", "OperationalError('disk I/O error')", "2"]
    assert stored(path) == {0, 2}
    await writer.close()


async def test_a_disk_that_fails_under_a_call_fails_all_that_wait_with_it(path: Path) -> None:
    """Each would find the disk as it is, after as long a wait."""
    writer, gate, tries = Writer(file(path).connect(), file(path).explain), Gate(), []

    def fails(_connection: sqlite3.Connection) -> None:
        tries.append(1)
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    held = asyncio.create_task(writer.do(gate))
    await gate.entered()
    tasks = [asyncio.create_task(writer.do(operation)) for operation in (fails, fails, fails)]
    await asyncio.sleep(0)
    gate.open()
    answers = await asyncio.gather(held, *tasks, return_exceptions=True)
    assert [getattr(answer, "code", "") for answer in answers[1:]] == ["disk_full"] * 3
    assert len(tries) == 1
    await writer.close()
