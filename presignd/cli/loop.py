"""Runs one coroutine as a whole command, on uvloop where the platform has it."""

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
"""Objects more than were let go of, after which Python looks for cycles; by itself, 700."""

LEFT_SECONDS = 0.5
"""What threads have to end in, once nobody waits for them any more."""


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` to its end and return what it returns; Ctrl-C cancels it and raises KeyboardInterrupt.

    A file that is still hashed in a thread then is nothing to anyone: the process ends without it.
    """
    try:
        with asyncio.Runner(loop_factory=_factory()) as runner:
            return runner.run(work)
    finally:
        if BACKGROUND.are_left(0) or SENDING.are_left(0):
            guard.UNAWAITED.set()


def run_while_read(work: Coroutine[Any, Any, None]) -> None:
    """Run ``work``, which prints as things happen, until its reader goes away: ``| head`` sees no next one to come."""
    run(_while_read(work))


async def _while_read(work: Coroutine[Any, Any, None]) -> None:
    loop, printing, left = asyncio.get_running_loop(), asyncio.ensure_future(work), asyncio.Event()

    def leave() -> None:
        left.set()
        loop.remove_reader(sys.stdout.fileno())
        printing.cancel()

    if streams.is_pipe(sys.stdout):  # there is nothing to read at this end: what wakes is that the other was closed
        loop.add_reader(sys.stdout.fileno(), leave)
        os.set_blocking(sys.stdout.fileno(), True)  # libuv has it otherwise, and print would lose what finds no room
    try:
        await printing
    except asyncio.CancelledError:
        if left.is_set():
            raise BrokenPipeError from None
        raise


@contextmanager
def cleaning_up_on_sigterm() -> Iterator[None]:
    """Let SIGTERM cancel the current task, so that the body puts the terminal back, and then end the process."""
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

    A thread may read a file for minutes, or for ever on a server that is gone. What it would return is
    nothing to anyone once ``work`` is through, so the process doesn't wait for it: it ends with 0, or where
    ``work`` failed once ``main`` has told why.
    """
    executor = Threads(threads, "presignd")
    for pool in (executor, BACKGROUND, SENDING):
        pool.submit(int)  # one thread each from the start: later, the machine may give no more
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
    """Tell whether any thread still works after a moment; a runner's close and the interpreter's end wait for it."""
    return any([executor.are_left(LEFT_SECONDS), BACKGROUND.are_left(0), SENDING.are_left(0)])


def _collect_rarely() -> None:
    """Leave out of each collection what is there for good, and have fewer: they took 6 % of a burst's CPU."""
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, 20, 20)


def _factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415 - not on every platform
    except ImportError:
        return None
    return uvloop.new_event_loop
