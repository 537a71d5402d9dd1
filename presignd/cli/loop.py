"""Runs one coroutine as a whole command, on uvloop where the platform has it."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from presignd.threads import BEHIND, Threads

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

T = TypeVar("T")

LEFT_SECONDS = 0.5
"""What threads have to end in, once nobody waits for them any more."""


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` to its end and return what it returns; Ctrl-C cancels it and raises KeyboardInterrupt."""
    with asyncio.Runner(loop_factory=_factory()) as runner:
        return runner.run(work)


def run_daemon(work: Coroutine[Any, Any, None], *, threads: int) -> None:
    """Run ``work`` with up to ``threads`` threads beside it, and end the process with it.

    A thread may read a file for minutes, or for ever on a server that is gone. What it would return is
    nothing to anyone once ``work`` is through, so the process doesn't wait for it: it ends with 0.
    """
    executor = Threads(threads, "presignd")
    with asyncio.Runner(loop_factory=_factory()) as runner:
        runner.get_loop().set_default_executor(executor)
        runner.run(work)
        if executor.are_left(LEFT_SECONDS) or BEHIND.are_left(0):
            _leave()


def _leave() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(0)


def _factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415 - not on every platform
    except ImportError:
        return None
    return uvloop.new_event_loop
