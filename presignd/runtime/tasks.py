"""Run named loops side by side, and wait until an event ends the wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any


class Loops:
    """Named loops; one that fails ends the others and the body beside them, with its error."""

    def __init__(self, group: asyncio.TaskGroup) -> None:
        self._group = group
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, name: str, loop: Coroutine[Any, Any, None]) -> None:
        """Start one more."""
        task = self._group.create_task(loop, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self, *names: str) -> None:
        """Cancel the loops of these names, and wait until they end."""
        tasks = [task for task in self._tasks if task.get_name() in names]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def stop_all(self) -> None:
        """Cancel all of them."""
        for task in self._tasks:
            task.cancel()


@asynccontextmanager
async def looping() -> AsyncIterator[Loops]:
    """Run loops beside the body; when it ends, cancel them."""
    async with asyncio.TaskGroup() as group:
        loops = Loops(group)
        yield loops
        loops.stop_all()


def first_error(group: BaseExceptionGroup[Any]) -> BaseException:
    """Return the first error of a group, without any group around it."""
    first = group.exceptions[0]
    return first_error(first) if isinstance(first, BaseExceptionGroup) else first


async def within(seconds: float, event: asyncio.Event) -> None:
    """Wait for ``event``, ``seconds`` at most.

    Not by ``wait_for``: before Python 3.12 it loses a cancellation that comes with the event.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(max(0.0, seconds)):
            await event.wait()


async def unless(event: asyncio.Event, work: Coroutine[Any, Any, object]) -> bool:
    """Do ``work``, but cancel it if ``event`` is set first. Return whether it was done."""
    doing, waiting = asyncio.ensure_future(work), asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait({doing, waiting}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        doing.cancel()
        waiting.cancel()
        await asyncio.gather(doing, waiting, return_exceptions=True)
    if doing.cancelled():
        return False
    doing.result()
    return True
