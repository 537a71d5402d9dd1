"""One timer ends every request that makes no progress, each at its own time, and no other."""

from __future__ import annotations

import asyncio

import pytest

from presignd.store.progress import LONGEST_RESPONSE, Deadlines, Progress

FOREVER = 60.0
"""Seconds that nothing here takes."""


@pytest.fixture
async def deadlines() -> Deadlines:
    return Deadlines()


async def stall(deadlines: Deadlines, timeout: float) -> float:
    """Make no progress; return after how many seconds that ended."""
    now = asyncio.get_running_loop().time
    began = now()
    with pytest.raises(TimeoutError), Progress(deadlines, timeout, None):
        await asyncio.sleep(FOREVER)
    return now() - began


async def test_each_request_ends_at_its_own_time_in_whatever_order_they_begin(deadlines: Deadlines) -> None:
    limits = [0.3, 0.1, 0.2, 0.1]
    took = await asyncio.gather(*(stall(deadlines, limit) for limit in limits))
    assert all(limit - 0.01 <= seconds < limit + 5 for limit, seconds in zip(limits, took, strict=True))
    assert took[1] < took[2] < took[0]
    assert await stall(deadlines, 0.05) < 5, "the timer is set again after a pause"


async def test_progress_extends_a_request_while_others_end(deadlines: Deadlines) -> None:
    async def move() -> list[int]:
        sent: list[int] = []
        with Progress(deadlines, 0.2, sent.append) as progress:
            for count in range(12):
                await asyncio.sleep(0.05)
                progress(count)
        return sent

    moved, _ = await asyncio.gather(move(), stall(deadlines, 0.1))
    assert moved == list(range(12))


async def test_a_response_that_drips_ends_though_its_deadline_was_extended_before(deadlines: Deadlines) -> None:
    now = asyncio.get_running_loop().time

    async def drip() -> None:
        with Progress(deadlines, 0.05, None) as progress:
            while now() < began + FOREVER:
                progress.answered()
                await asyncio.sleep(0.01)

    began = now()
    with pytest.raises(TimeoutError):
        await drip()
    assert LONGEST_RESPONSE * 0.05 - 0.01 <= now() - began < 5


async def test_a_request_that_is_cancelled_raises_no_timeout(deadlines: Deadlines) -> None:
    task = asyncio.create_task(stall(deadlines, 0.1))
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0.15)  # the timer ends, and finds nothing


async def test_a_request_that_is_cancelled_as_its_time_ends_stays_cancelled(deadlines: Deadlines) -> None:
    async def end() -> None:
        task = asyncio.current_task()
        assert task
        with Progress(deadlines, FOREVER, None) as progress:
            progress.cancel()
            task.cancel()
            await asyncio.sleep(FOREVER)

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(end())
    deadlines.stop()


async def test_an_error_of_the_request_passes_as_it_is(deadlines: Deadlines) -> None:
    with pytest.raises(OSError, match="reset"), Progress(deadlines, FOREVER, None):
        raise OSError("reset")
    deadlines.stop()
