"""Run one coroutine as a command, on uvloop if the platform has it."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from presignd.cli import guard, streams
from presignd.system.threads import BACKGROUND, SENDING, Threads

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from typing import Any

T = TypeVar("T")

COLLECT_AFTER = 5_000
"""Threshold of garbage collection's first generation (CPython's default: 700)."""

LEFT_SECONDS = 0.5
"""How long threads may take to end after the work is done."""


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` to its end and return what it returns; Ctrl-C cancels it and raises KeyboardInterrupt.

    The process does not wait for a thread that still hashes a file.
    """
    try:
        with asyncio.Runner(loop_factory=_factory()) as runner:
            return runner.run(work)
    finally:
        if BACKGROUND.are_left(0) or SENDING.are_left(0):
            guard.UNAWAITED.set()


def run_while_read(work: Coroutine[Any, Any, None]) -> None:
    """Run ``work``, which prints events, until its reader goes away: ``| head`` must not wait for one more event."""
    run(_while_read(work))


async def _while_read(work: Coroutine[Any, Any, None]) -> None:
    loop, printing, left = asyncio.get_running_loop(), asyncio.ensure_future(work), asyncio.Event()

    def leave() -> None:
        left.set()
        loop.remove_reader(sys.stdout.fileno())
        printing.cancel()

    if streams.is_pipe(sys.stdout):  # this end is never readable: it wakes when the other is closed
        loop.add_reader(sys.stdout.fileno(), leave)
        os.set_blocking(
            sys.stdout.fileno(), True
        )  # libuv makes it non-blocking, and print would lose what a full pipe refuses
    try:
        await printing
    except asyncio.CancelledError:
        if left.is_set():
            raise BrokenPipeError from None
        raise


@contextmanager
def cleaning_up_on_sigterm() -> Iterator[None]:
    """Let SIGTERM cancel the current task, so that the body restores the terminal, and then end the process."""
    loop, task, came = asyncio.get_running_loop(), asyncio.current_task(), asyncio.Event()
    assert task is not None

    def cancel() -> None:
        came.set()
        task.cancel()

    loop.add_signal_handler(signal.SIGTERM, cancel)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGTERM)  # its default action is back
        if came.is_set():
            os.kill(os.getpid(), signal.SIGTERM)


def run_daemon(work: Coroutine[Any, Any, None], *, threads: int) -> None:
    """Run ``work`` with up to ``threads`` threads beside it, and end the process with it.

    A thread may read a file for minutes, or for ever on a server that is gone. Its result is not needed once ``work``
    is done, so the process doesn't wait for it: it ends with 0, or, where ``work`` failed, after ``main`` has printed
    why.
    """
    executor = Threads(threads, "presignd")
    for pool in (executor, BACKGROUND, SENDING):
        pool.submit(int)  # start one thread of each now: later the machine may refuse more
    _collect_rarely()
    runner = asyncio.Runner(loop_factory=_factory())
    runner.get_loop().set_default_executor(executor)
    try:
        runner.run(work)
    except BaseException:
        if _are_left(executor):
            guard.UNAWAITED.set()
        else:
            runner.close()
        raise
    if _are_left(executor):
        guard.leave(0)
    runner.close()


def _are_left(executor: Threads) -> bool:
    """Return whether a thread still works after a short wait: closing runner and interpreter would wait for it."""
    return any([executor.are_left(LEFT_SECONDS), BACKGROUND.are_left(0), SENDING.are_left(0)])


def _collect_rarely() -> None:
    """Exclude the objects made so far from garbage collection, and collect less often: it took 6 % of a burst's CPU."""
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, 20, 20)


def _factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415 - not on every platform
    except ImportError:
        return None
    return uvloop.new_event_loop
