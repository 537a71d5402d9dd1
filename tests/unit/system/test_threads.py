"""Threads behind the event loop: they give way to it, and keep their context variables."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from contextvars import ContextVar
from pathlib import Path

import pytest

from presignd.system import threads
from presignd.system.threads import NICER, in_background, opened

WHERE: ContextVar[str] = ContextVar("where", default="nowhere")


def own_priority() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.mark.skipif(sys.platform != "linux", reason="a nice value is a thread's on Linux alone")
async def test_what_takes_a_processor_for_long_gives_way_to_the_event_loop() -> None:
    loops = own_priority()
    assert await in_background(own_priority) == min(19, loops + NICER)
    assert own_priority() == loops, "the loop's own priority stays"


async def test_a_call_behind_the_loop_has_its_arguments_its_context_and_its_error() -> None:
    WHERE.set("here")

    def tell(path: Path, *, end: str) -> str:
        return f"{WHERE.get()}{path}{end}"

    assert await in_background(tell, Path("/x"), end="!") == "here/x!"
    with pytest.raises(KeyError):
        await in_background(os.environ.pop, "NOT_THERE")


async def test_where_priorities_are_not_ours_to_change_the_call_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A filter of system calls answers EPERM, and a thread whose start fails would break the whole pool."""

    def refuse(*_: int) -> None:
        raise PermissionError

    monkeypatch.setattr("os.setpriority", refuse)
    pool = threads.Threads(1, "test", threads._lower_priority)
    monkeypatch.setattr(threads, "BACKGROUND", pool)
    assert await in_background(lambda: 7) == 7
    pool.shutdown()


def test_where_no_more_threads_are_to_be_had_those_there_are_do_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's limit of processes: what was taken is done, only later."""
    pool = threads.Threads(4, "test")
    held = threading.Event()
    first = pool.submit(held.wait)

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    try:
        with monkeypatch.context() as short:
            short.setattr(threading.Thread, "start", refuse)
            others = [pool.submit(int, number) for number in range(3)]
        held.set()
        assert [first.result(30), *(other.result(30) for other in others)] == [True, 0, 1, 2]
        held.clear()
        again = pool.submit(held.wait)
        assert pool.submit(int, 7).result(30) == 7, "there are threads to be had again"
        assert not again.done()
    finally:
        held.set()
        pool.shutdown()


def test_a_pool_that_has_no_thread_at_all_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        threads.Threads(4, "test").submit(int)


# --- what a thread opens ---------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [False, True])
async def test_what_a_thread_opens_after_a_cancel_is_closed(fails: bool) -> None:
    """The call can't be stopped, and nobody is left who knows its descriptor."""
    begun, go_on, closed = asyncio.Event(), threading.Event(), asyncio.Event()
    loop, given = asyncio.get_running_loop(), []

    def open_it() -> int:
        loop.call_soon_threadsafe(begun.set)
        go_on.wait()
        if fails:
            loop.call_soon_threadsafe(closed.set)
            raise OSError
        return 4711

    def close_it(fd: int) -> None:
        given.append(fd)
        closed.set()

    opening = asyncio.create_task(opened(open_it, close_it))
    await begun.wait()
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert given == []
    go_on.set()
    await closed.wait()
    await asyncio.sleep(0)
    assert given == ([] if fails else [4711])


@pytest.mark.parametrize("inline", [False, True])
async def test_what_is_opened_is_the_callers(inline: bool) -> None:
    assert await opened(lambda: 4711, lambda _: pytest.fail("closed"), inline=inline) == 4711
