"""The ledger's two threads: one owns the writing connection, the other the reading one; and both as one ``Database``.

The writer makes all changes that wait in one transaction, in their order, with one fsync. Callers get their answers
after the commit. A call that fails is undone alone; a commit that fails (a full disk) fails its whole batch and leaves
the database as it was.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from presignd.errors import Fault, PresigndError, Unavailable
from presignd.runtime.crash_points import passed
from presignd.runtime.heartbeat import Heart, alive, beat
from presignd.runtime.outage import Trouble

T = TypeVar("T")
Operation = Callable[[sqlite3.Connection], T]
Explain = Callable[[BaseException], BaseException | None]

BATCH = 256
"""Most rows in one commit before it takes no more calls: after a crash so many may be done again (guarantee 3)."""

IDLE_SECONDS = 1.0
"""How long a turn waits for its first call; the thread's heartbeat is once a turn."""


RETRY_SECONDS = 1.0
"""Pause between two tries of a call that waits for the disk."""


@dataclass(slots=True)
class _Job:
    operation: Operation[Any]
    rows: int
    future: asyncio.Future[Any]
    name: str
    result: Any = None
    error: BaseException | None = None

    def answer(self) -> None:
        if self.future.done():  # the caller was cancelled; the operation was done all the same
            return
        if self.error is None:
            self.future.set_result(self.result)
        else:
            self.future.set_exception(self.error)


class DatabaseThread(ABC):
    """A thread that owns ``connection`` and runs all waiting operations in each turn; made and called in an event loop.

    ``explain`` turns an error of SQLite into an expected one, or returns None. The thread has a heartbeat of its own,
    once each turn; while nothing waits, a turn takes ``idle`` seconds.
    """

    def __init__(
        self, connection: sqlite3.Connection, explain: Explain, *, name: str, idle: float = IDLE_SECONDS
    ) -> None:
        self._name = name
        self._connection = connection
        self._explain = explain
        self._idle = idle
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closed = False
        self._cause: BaseException | None = None
        self._dead = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name=f"presignd-{name}", daemon=True)
        self._thread.start()

    async def do(self, operation: Operation[T], name: str = "", rows: int = 1) -> T:
        """Run ``operation``, which changes so many ``rows``; return its result after the commit, raise what it raised.

        ``name`` is for ``crash_points``. Cancelling the caller does not undo the operation. Raises as ``check`` does
        once the thread is closed or has died.
        """
        self.check()
        job = _Job(operation, rows, self._loop.create_future(), name)
        self._jobs.put(job)
        result: T = await job.future
        return result

    def check(self) -> None:
        """Raise once the thread is closed or has died: an expected cause as it is, else ``RuntimeError`` from it."""
        if self._cause is not None:
            raise _error_after_death(self._cause)
        if self._closed:
            raise RuntimeError("the ledger is closed")

    async def wait_until_dead(self) -> None:
        """Wait until the thread has died, and raise as ``check`` does; wait for ever while it lives."""
        await self._dead.wait()
        self.check()

    async def close(self) -> None:
        """Run the pending operations, close the connection and end the thread."""
        if not self._closed:
            self._closed = True
            self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)

    # --- in the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        batch: list[_Job] = []
        try:
            with alive(self._name) as heart:
                while self._turn(batch, heart):
                    pass
        except BaseException as error:  # noqa: BLE001 - any error: each caller must get it
            self._in_loop(self._die, error, batch)
        finally:
            self._connection.close()

    def _turn(self, batch: list[_Job], heart: Heart) -> bool:
        """Run one batch; return False once the thread must end."""
        heart.beat()
        batch.clear()
        more = self._collect(batch)
        self._do_all(batch)
        if batch:
            self._in_loop(_answer, batch.copy())
        return more

    def _collect(self, batch: list[_Job]) -> bool:
        try:
            job = self._jobs.get(timeout=self._idle)
            rows = 0
            while job is not None:
                batch.append(job)
                rows += job.rows
                if rows >= BATCH:
                    return True
                job = self._jobs.get_nowait()
        except queue.Empty:
            return True
        return False

    @abstractmethod
    def _do_all(self, batch: list[_Job]) -> None:
        """Run the collected jobs, which may be none; give each its result or its error."""

    def _in_loop(self, function: Callable[..., None], *args: Any) -> None:
        with suppress(RuntimeError):  # the loop has ended: no caller is left
            self._loop.call_soon_threadsafe(function, *args)

    # --- in the loop --------------------------------------------------------------------------------

    def _die(self, cause: BaseException, batch: list[_Job]) -> None:
        """Raise the error in all calls, running and waiting. Runs in the loop, so that no call comes in between."""
        self._cause = cause
        while not self._jobs.empty():
            job = self._jobs.get_nowait()
            batch += [job] if job else []
        for job in batch:
            job.error = _error_after_death(cause)
        _answer(batch)
        self._dead.set()


class Writer(DatabaseThread):
    """Makes all waiting changes in one transaction.

    ``check_files`` is called each turn, before the calls return; if it raises, that ends the thread and every call.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        explain: Explain,
        check_files: Callable[[], None] | None = None,
        *,
        idle: float = IDLE_SECONDS,
    ) -> None:
        self._check_files = check_files
        super().__init__(connection, explain, name="ledger", idle=idle)

    def _do_all(self, batch: list[_Job]) -> None:
        left = batch
        while left:
            left = self._commit(left)
        # After the commit: a call may only return if the file that it was written to is still there.
        if self._check_files:
            self._check_files()

    def _commit(self, batch: list[_Job]) -> list[_Job]:
        """Make the changes of a batch. If a call raises, undo all, and return the others, which are to be made again.

        Calls seldom raise: a savepoint for each cost more than that.
        """
        running: _Job | None = None
        try:
            self._connection.execute("BEGIN")
            for running in batch:
                running.result = running.operation(self._connection)
            running = None
            _pass(batch, "before")
            self._connection.execute("COMMIT")
            _pass(batch, "after")
        except Exception as error:  # noqa: BLE001 - for its callers
            self._connection.rollback()  # SQLite may have rolled back already; then this does nothing
            explained = self._explain(error)
            for job in batch if explained or not running else [running]:
                job.error = explained or error
            return [job for job in batch if job.error is None]
        return []


class Reader(DatabaseThread):
    """Runs queries, each on a snapshot of its own."""

    def __init__(self, connection: sqlite3.Connection, explain: Explain) -> None:
        super().__init__(connection, explain, name="ledger-reader")

    def _do_all(self, batch: list[_Job]) -> None:
        for job in batch:
            try:
                job.result = job.operation(self._connection)
            except Exception as error:  # noqa: BLE001 - it is its caller's
                job.error = self._explain(error) or error


class Patience:
    """Retries a call until it works, while a full disk or another program's lock prevents it: a daemon waits.

    Logs ``ledger.blocked`` once and ``ledger.unblocked`` once, however many calls wait. A damaged ledger
    (``UsageError``) and bugs are raised at once, as is everything after ``end``.
    """

    def __init__(self, *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        self._sleep = sleep
        self._ended = False
        self.trouble = Trouble("ledger")

    def end(self) -> None:
        """Stop waiting: the daemon ends, and the next start redoes what was not written."""
        self._ended = True

    async def __call__(self, call: Callable[[], Awaitable[T]]) -> T:
        """Return what ``call`` returns once it works."""
        waited = False
        while True:
            beat()
            try:
                found = await call()
            except (Fault, Unavailable) as problem:
                if self._ended:
                    raise
                self.trouble.met(problem)
                waited = True
                await self._sleep(RETRY_SECONDS)
            else:
                # A query that succeeds doesn't mean that changes can be written again.
                if waited:
                    self.trouble.over()
                return found


class Database:
    """The two threads as one: changes go to the writer, queries to the reader.

    With ``patience``, calls wait instead of raising ``disk_full`` or ``Unavailable``.
    """

    def __init__(self, writer: Writer, reader: Reader, patience: Patience | None) -> None:
        self._writer, self._reader, self._patience = writer, reader, patience
        self.wait_until_dead = writer.wait_until_dead

    async def do(self, change: Callable[..., T], *args: Any, name: str = "", rows: int = 1, **more: Any) -> T:
        """Make a change, of so many rows; ``name`` is that of its crash points, by default the function's."""

        def operation(connection: sqlite3.Connection) -> T:
            return change(connection, *args, **more)

        def call() -> Awaitable[T]:
            return self._writer.do(operation, name or change.__name__, rows)

        try:
            return await call()
        except (Fault, Unavailable):
            if self._patience is None:
                raise
        return await self._patience(call)

    async def do_all(self, change: Callable[..., T], rows: Sequence[Any], *args: Any, name: str = "") -> T:
        """Make a change of the rows that it is given first."""
        return await self.do(change, rows, *args, name=name, rows=len(rows))

    async def ask(self, query: Callable[..., T], *args: Any) -> T:
        """Return a query's result."""

        def call() -> Awaitable[T]:
            return self._reader.do(lambda connection: query(connection, *args))

        self._writer.check()
        return await (self._patience(call) if self._patience else call())

    async def close(self) -> None:
        """Finish what waits, and end both threads."""
        await self._reader.close()
        await self._writer.close()


def _error_after_death(cause: BaseException) -> Exception:
    """Return the error that a call gets once the thread has died of ``cause``."""
    if isinstance(cause, PresigndError):
        return cause
    died = RuntimeError("the ledger's thread has died")
    died.__cause__ = cause
    return died


def _pass(batch: list[_Job], side: str) -> None:
    for job in batch:
        passed(f"commit.{job.name}.{side}")


def _answer(batch: list[_Job]) -> None:
    for job in batch:
        job.answer()
