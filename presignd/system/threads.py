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

MOST_BEHIND = 64
"""Threads behind the loop at most: more than there are slots, so a disk that hangs leaves some for the others."""

NICER = 10
"""How much lower the priority of a thread behind the loop is: a tenth of its share where both want a processor."""


class Threads(ThreadPoolExecutor):
    """Knows what it has not finished."""

    def __init__(self, most: int, name: str, begin: Callable[[], None] | None = None) -> None:
        super().__init__(most, name, begin)
        self._unfinished: set[Future[Any]] = set()

    def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
        """Take a call, as any executor does."""
        future = super().submit(*args, **kwargs)
        self._unfinished.add(future)
        future.add_done_callback(self._unfinished.discard)
        return future

    def _adjust_thread_count(self) -> None:
        """Do with the threads there are where the machine gives no more: what was taken is done, only later.

        Whether one is idle is told by what is unfinished: the executor's own count of idle threads is one too high for
        each call that was taken without a thread for it, and would keep it from starting others for good.
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
        """Tell whether any still works after ``seconds``."""
        return bool(wait(list(self._unfinished), seconds).not_done)


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _give_way() -> None:
    """Lower this thread's own priority (Linux: a nice value is a thread's; sched(7)); no less is right without."""
    if sys.platform == "linux":
        with suppress(OSError):  # a filter of system calls may refuse it
            own = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, own, os.getpriority(os.PRIO_PROCESS, own) + NICER)


BEHIND = Threads(MOST_BEHIND, "presignd-behind", _give_way)
"""For what takes a processor for long, such as hashing a part: small files' requests go before it."""

SENDING = Threads(MOST_BEHIND, "presignd-sending", _give_way)
"""For bodies on their way: each turn is short, and none waits for those that hash for seconds."""


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


async def behind(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return what ``call`` does, from a thread that gives way to the event loop; else as ``asyncio.to_thread``."""
    bound = partial(copy_context().run, partial(call, *args, **kwargs))
    return await asyncio.get_running_loop().run_in_executor(BEHIND, bound)
