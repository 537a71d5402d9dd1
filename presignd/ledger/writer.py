"""One thread that owns the writing connection: whatever waits is done in one transaction, one fsync.

Callers get their answers after the commit. One operation's failure undoes that operation only; a commit
that fails (a full disk) fails its whole batch and leaves the database as it was.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from presignd.errors import PresigndError
from presignd.runtime.crash_points import passed
from presignd.runtime.heartbeat import Heart, alive

T = TypeVar("T")
Many = Callable[[sqlite3.Connection, list[Any]], list[Any]]
Operation = Callable[[sqlite3.Connection], T]
Explain = Callable[[BaseException], BaseException | None]

BATCH = 256
"""Changes in one commit at most: what a crash may make presignd do again (contract, guarantee 3)."""

IDLE_SECONDS = 1.0

MANY, LINGER_SECONDS = 8, 0.005
"""After a commit of so many changes the next waits this long for company: in a burst most would come just too late."""


def _trust() -> None:
    """Stand in for a look at the files."""


@dataclass(slots=True)
class _Job:
    operation: Operation[Any]
    future: asyncio.Future[Any]
    name: str
    many: Many | None = None
    one: Any = None
    result: Any = None
    error: BaseException | None = None

    def answer(self) -> None:
        if self.future.done():  # its caller was cancelled; what it asked for is done all the same
            return
        if self.error is None:
            self.future.set_result(self.result)
        else:
            self.future.set_exception(self.error)


class Writer:
    """Runs operations on ``connection`` in a thread of its own; made and called in an event loop.

    ``explain`` turns an error of SQLite's into an expected one, or returns None. ``look`` is called each turn,
    before what was committed is answered; what it raises ends the thread, and everything with it. Its thread has
    a heart of its own and turns each second when idle.
    """

    _many = MANY

    def __init__(
        self,
        connection: sqlite3.Connection,
        explain: Explain,
        look: Callable[[], None] = _trust,
        *,
        name: str = "ledger",
    ) -> None:
        self._name = name
        self._connection = connection
        self._explain = explain
        self._look = look
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closed = False
        self._cause: BaseException | None = None
        self._dead = asyncio.Event()
        self._last = 0
        self._thread = threading.Thread(target=self._run, name=f"presignd-{name}", daemon=True)
        self._thread.start()

    async def do(self, operation: Operation[T], name: str = "", *, many: Many | None = None, one: Any = None) -> T:
        """Run ``operation`` and return its result after the commit; raise what it raised.

        ``name`` is the operation's, for ``crash_points``. With ``many``, all that wait with the same one may
        be done in its one call, given what each has for ``one``: all of them, or it raises and each goes
        alone. Cancelling the caller does not take the operation back. Raises as ``check`` does once the writer
        is closed or its thread has died.
        """
        self.check()
        job = _Job(operation, self._loop.create_future(), name, many, one)
        self._jobs.put(job)
        result: T = await job.future
        return result

    def check(self) -> None:
        """Raise when nothing can be done any more: an expected error as it is, else ``RuntimeError`` with the cause."""
        if self._cause is not None:
            raise _death(self._cause)
        if self._closed:
            raise RuntimeError("the ledger is closed")

    async def died(self) -> None:
        """Wait until the thread has died, and raise as ``check`` does; for ever, where it doesn't."""
        await self._dead.wait()
        self.check()

    async def close(self) -> None:
        """Do what is pending, close the connection and end the thread."""
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
        except BaseException as error:  # noqa: BLE001 - whatever it is, the callers must hear of it
            self._tell(self._die, error, batch)
        finally:
            self._connection.close()

    def _turn(self, batch: list[_Job], heart: Heart) -> bool:
        """Do one batch; False once told to end."""
        heart.beat()
        batch.clear()
        more = self._collect(batch)
        self._last = len(batch)
        if batch:
            self._commit(batch)
        # After the commit: what is answered was written to a file that was there.
        self._look()
        if batch:
            self._tell(_answer, batch.copy())
        return more

    def _collect(self, batch: list[_Job]) -> bool:
        try:
            job = self._jobs.get(timeout=IDLE_SECONDS)
            if self._last >= self._many:
                time.sleep(LINGER_SECONDS)
            while job is not None:
                batch.append(job)
                if len(batch) == BATCH:
                    return True
                job = self._jobs.get_nowait()
        except queue.Empty:
            return True
        return False

    def _commit(self, batch: list[_Job]) -> None:
        try:
            self._connection.execute("BEGIN")
            for many, jobs in _together(batch):
                if many is None or len(jobs) == 1 or not self._attempt_all(many, jobs):
                    for job in jobs:
                        self._attempt(job)
            _pass(batch, "before")
            self._connection.execute("COMMIT")
            _pass(batch, "after")
        except sqlite3.Error as error:
            self._connection.rollback()  # some errors rolled back already: then it does nothing
            for job in batch:
                job.error = self._explain(error) or error

    def _attempt_all(self, many: Many, jobs: list[_Job]) -> bool:
        """Do ``jobs`` in one call; False, and nothing done, where that can't be."""
        self._connection.execute("SAVEPOINT jobs")
        try:
            results = many(self._connection, [job.one for job in jobs])
        except Exception:
            if not self._connection.in_transaction:
                raise
            self._connection.execute("ROLLBACK TO jobs")
            self._connection.execute("RELEASE jobs")
            return False
        self._connection.execute("RELEASE jobs")
        for job, result in zip(jobs, results, strict=True):
            job.result = result
        return True

    def _attempt(self, job: _Job) -> None:
        self._connection.execute("SAVEPOINT job")
        try:
            job.result = job.operation(self._connection)
        except Exception as error:
            # Some errors make SQLite roll back everything (sqlite.org/lang_transaction.html): then the
            # changes before this one are gone too, and their callers must not be told otherwise.
            if not self._connection.in_transaction:
                raise
            self._connection.execute("ROLLBACK TO job")
            job.error = self._explain(error) or error
        self._connection.execute("RELEASE job")

    def _tell(self, function: Callable[..., None], *args: Any) -> None:
        with suppress(RuntimeError):  # the loop ended: nobody is left to tell
            self._loop.call_soon_threadsafe(function, *args)

    # --- in the loop --------------------------------------------------------------------------------

    def _die(self, cause: BaseException, batch: list[_Job]) -> None:
        """Fail what was under way and what waits; runs in the loop, where nothing can slip in between."""
        self._cause = cause
        while not self._jobs.empty():
            job = self._jobs.get_nowait()
            batch += [job] if job else []
        for job in batch:
            job.error = _death(cause)
        _answer(batch)
        self._dead.set()


def _death(cause: BaseException) -> Exception:
    """Return what callers of a dead thread are told."""
    if isinstance(cause, PresigndError):
        return cause
    died = RuntimeError("the ledger's thread has died")
    died.__cause__ = cause
    return died


def _together(batch: list[_Job]) -> list[tuple[Many | None, list[_Job]]]:
    """Put those with the same ``many`` together. All of a batch wait side by side, so their order is nobody's."""
    groups: dict[Many | None, list[_Job]] = {}
    for job in batch:
        groups.setdefault(job.many, []).append(job)
    return list(groups.items())


class Reader(Writer):
    """Runs questions on ``connection`` in a thread of its own: whatever waits in one turn, answered in one."""

    _many = BATCH + 1  # nothing is written, so nothing is shared

    def _commit(self, batch: list[_Job]) -> None:
        for job in batch:
            try:
                job.result = job.operation(self._connection)
            except Exception as error:  # noqa: BLE001 - it is its caller's
                job.error = self._explain(error) or error


def _pass(batch: list[_Job], side: str) -> None:
    for job in batch:
        passed(f"commit.{job.name}.{side}")


def _answer(batch: list[_Job]) -> None:
    for job in batch:
        job.answer()
