"""The queues between the stages."""

from __future__ import annotations

import asyncio

import pytest

from presignd.model import State
from presignd.pipeline.stage import MOST, PAUSE_EACH, PAUSE_MOST, Item, Queue, UrgentFirst
from tests.versions import in_state


async def test_what_is_more_urgent_is_sent_before_what_was_claimed_earlier() -> None:
    queue = UrgentFirst()
    queue.put_all(urgent(2, 2, 1, 0, 1))
    assert [await name(queue) for _ in range(5)] == ["3", "2", "4", "0", "1"]


async def test_senders_that_wait_get_the_most_urgent_and_one_that_was_cancelled_gets_none() -> None:
    queue = UrgentFirst()
    senders = [asyncio.create_task(name(queue)) for _ in range(3)]
    await asyncio.sleep(0)
    senders[0].cancel()
    queue.put_all(urgent(2, 1, 0))
    assert await asyncio.gather(*senders[1:]) == ["2", "1"]
    assert await name(queue) == "0"


def urgent(*priorities: int) -> list[Item]:
    versions = [in_state(State.UPLOADING, file_id=f"{number}") for number in range(len(priorities))]
    return [Item(each._replace(priority=priority)) for each, priority in zip(versions, priorities, strict=True)]


async def name(queue: UrgentFirst) -> str:
    return (await queue.get()).version.file_id


class Clock:
    """Seconds that pass only while a stage sleeps, when ``meanwhile`` comes in."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []
        self.queue = Queue[int](now=lambda: self.now, sleep=self.sleep)
        self.meanwhile: list[int] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        self.queue.put_all(self.meanwhile)


async def test_a_lone_item_goes_at_once_and_what_comes_soon_after_it_goes_together() -> None:
    clock = Clock()
    clock.queue.put_all([1])
    assert (await clock.queue.take(), clock.slept) == ([1], [])
    clock.now += PAUSE_EACH / 4
    clock.meanwhile = [3, 4]
    clock.queue.put_all([2])
    assert await clock.queue.take() == [2, 3, 4]
    assert sum(clock.slept) == pytest.approx(PAUSE_EACH * 3 / 4)
    clock.now += PAUSE_EACH * 3
    clock.queue.put_all([5])
    assert (await clock.queue.take(), len(clock.slept)) == ([5], 1)


@pytest.mark.parametrize(("before", "paused"), [(1, PAUSE_EACH), (3, 3 * PAUSE_EACH), (MOST, PAUSE_MOST)])
async def test_the_more_came_together_the_longer_the_rest_gathers_but_no_longer_than_the_most(
    before: int, paused: float
) -> None:
    clock = Clock()
    clock.queue.put_all(range(before))
    await clock.queue.take()
    clock.queue.put_all([1])
    await clock.queue.take()
    assert clock.slept == [pytest.approx(paused)]


async def test_a_list_has_a_limit() -> None:
    clock = Clock()
    clock.queue.put_all(range(MOST + 1))
    assert await clock.queue.take() == [*range(MOST)]
    assert await clock.queue.take() == [MOST]
