"""Threads beside the event loop: for short calls, and, at a lower priority, for long computations."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

P = ParamSpec("P")
T = TypeVar("T")

MOST_THREADS = 64
"""Most threads of each pool: more than there are slots, so that a disk that hangs leaves some for other files."""

NICER = 10
"""Added to the nice value of these threads: they get a tenth of the event loop's share of a busy processor."""


class Threads(ThreadPoolExecutor):
    """A thread pool that knows its unfinished calls, and works with its existing threads if it can start no more."""

    def __init__(self, most: int, name: str, begin: Callable[[], None] | None = None) -> None:
        super().__init__(most, name, begin)
        self._unfinished: set[Future[Any]] = set()

    def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
        """Schedule a call, as any executor does."""
        future = super().submit(*args, **kwargs)
        self._unfinished.add(future)
        future.add_done_callback(self._unfinished.discard)
        return future

    def _adjust_thread_count(self) -> None:
        """Start a thread if none is idle; where the system allows no more, the calls wait for the existing threads.

        Whether one is idle is computed from the unfinished calls. The executor's own count of idle threads is one too
        high for each call that was accepted without a thread for it, and would stop it from ever starting others.
        """
        if len(self._unfinished) < len(self._threads):
            return
        while self._idle_semaphore.acquire(blocking=False):
            pass
        try:
            super()._adjust_thread_count()
        except RuntimeError:  # "can't start new thread": RLIMIT_NPROC, or the cgroup's pids.max
            if not self._threads:
                raise

    def are_left(self, seconds: float) -> bool:
        """Return whether any call is still unfinished after ``seconds``."""
        return bool(wait(list(self._unfinished), seconds).not_done)


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _lower_priority() -> None:
    """Lower this thread's priority (on Linux each thread has a nice value; sched(7)), where that is permitted."""
    if sys.platform == "linux":
        with suppress(OSError):  # a filter of system calls may refuse it
            own = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, own, os.getpriority(os.PRIO_PROCESS, own) + NICER)


BACKGROUND = Threads(MOST_THREADS, "presignd-background", _lower_priority)
"""For long computations, such as hashing a part: small files' requests are served first."""

SENDING = Threads(MOST_THREADS, "presignd-sending", _lower_priority)
"""For sending bodies: each turn is short, and must not wait for a thread that hashes for seconds."""


async def run(call: Callable[[], T], *, inline: bool) -> T:
    """Return the result of ``call``, which runs in a thread unless ``inline`` (quicker than starting a thread)."""
    return call() if inline else await asyncio.to_thread(call)


async def opened(call: Callable[[], T], close: Callable[[T], object], *, inline: bool = False) -> T:
    """Return what ``call`` opens, as ``run`` does; what a thread opens after a cancellation is closed."""
    if inline:
        return call()
    opening = asyncio.ensure_future(asyncio.to_thread(call))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(lambda late: late.cancelled() or late.exception() or close(late.result()))
        raise


async def in_background(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run ``call`` in a thread of lower priority than the event loop; otherwise as ``asyncio.to_thread``."""
    bound = partial(copy_context().run, partial(call, *args, **kwargs))
    return await asyncio.get_running_loop().run_in_executor(BACKGROUND, bound)
