"""One circuit breaker: one probe answers for many, one event each way, no file is charged for an unreachable store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import pytest

from presignd.errors import Fault, fault
from presignd.pipeline.upload.breakers import STEADY, Breaker


class Store:
    """A probe whose answers are told beforehand, and the events the breaker sent."""

    def __init__(self, *answers: Fault | None) -> None:
        self.time = datetime(2026, 1, 1, tzinfo=UTC)
        self.answers = list(answers)
        self.probes = 0
        self.told: list[str] = []
        self.slept: list[float] = []
        self.breaker = Breaker(
            self.probe,
            on_trip=lambda problem: self.told.append(problem.code),
            on_reset=lambda _: self.told.append("open"),
            changed=lambda: None,
            sleep=self.sleep,
            now=lambda: self.time,
        )

    async def probe(self) -> Fault | None:
        self.probes += 1
        await asyncio.sleep(0)
        return self.answers.pop(0) if self.answers else None

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0)

    async def reopened(self) -> None:
        while self.breaker.trip:  # noqa: ASYNC110 - turns of the loop, no time
            await asyncio.sleep(0)


REFUSED = fault("connection_refused")


async def test_a_fault_is_the_files_own_when_the_probe_goes_through() -> None:
    store = Store(None)
    assert await store.breaker.blames_file(fault("server_error"))
    assert store.told == []
    assert store.breaker.trip is None


async def test_an_absent_store_charges_nobody_and_is_told_once_each_way() -> None:
    store = Store(REFUSED, REFUSED, REFUSED)
    verdicts = await asyncio.gather(*(store.breaker.blames_file(REFUSED) for _ in range(100)))
    assert verdicts == [False] * 100
    await store.reopened()
    assert store.told == ["connection_refused", "open"]
    assert store.probes == 4


async def test_a_hundred_faults_at_once_cost_one_probe() -> None:
    store = Store(None)
    verdicts = await asyncio.gather(*(store.breaker.blames_file(fault("timeout")) for _ in range(100)))
    assert verdicts == [True] * 100
    assert store.probes == 1


async def test_retry_after_is_waited_out_before_the_first_probe() -> None:
    store = Store(None)
    assert not await store.breaker.blames_file(fault("slow_down", retry_after=7.0))
    await store.reopened()
    assert store.slept == [7.0]
    assert store.told == ["slow_down", "open"]


async def test_a_later_outage_is_told_again() -> None:
    store = Store(REFUSED, None, REFUSED, None)
    for _ in range(2):
        await store.breaker.blames_file(REFUSED)
        await store.reopened()
    assert store.told == ["connection_refused", "open"] * 2


async def test_while_it_comes_and_goes_it_is_asked_less_and_less_often() -> None:
    store = Store(*(answer for _ in range(4) for answer in (REFUSED, None)))
    store.breaker._backoff = lambda failures, **_: float(failures)
    for _ in range(3):
        await store.breaker.blames_file(REFUSED)
        await store.reopened()
    assert store.slept == [1.0, 2.0, 3.0]
    store.time += STEADY
    await store.breaker.blames_file(REFUSED)
    await store.reopened()
    assert store.slept[3:] == [1.0]


async def test_a_store_that_was_back_just_now_is_probed_whatever_retry_after_says() -> None:
    """Many files of a key that always answers so would each shut it again."""
    busy = fault("slow_down", retry_after=7.0)
    store = Store(None, None)
    assert not await store.breaker.blames_file(busy)
    await store.reopened()
    assert await store.breaker.blames_file(busy)
    assert store.told == ["slow_down", "open"]


async def test_closing_while_shut_leaves_no_task() -> None:
    never: Callable[[], Awaitable[None]] = asyncio.Event().wait  # type: ignore[assignment] # its bool is not looked at
    store = Store(REFUSED)
    store.breaker._sleep = lambda _: never()
    await store.breaker.blames_file(REFUSED)
    await store.breaker.close()
    assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []


@pytest.mark.parametrize("code", ["access_denied", "no_such_bucket"])
async def test_the_tripped_breaker_tells_its_latest_cause(code: str) -> None:
    store = Store(REFUSED, fault(code))
    hold = asyncio.Event()
    sleeps = 0

    async def sleep(_: float) -> None:
        nonlocal sleeps
        sleeps += 1
        if sleeps == 2:
            await hold.wait()

    store.breaker._sleep = sleep
    await store.breaker.blames_file(REFUSED)
    while sleeps < 2:  # noqa: ASYNC110 - turns of the loop, no time
        await asyncio.sleep(0)
    assert store.breaker.trip is not None
    assert store.breaker.trip.fault.code == code
    hold.set()
    await store.reopened()


async def test_a_file_that_meets_retry_after_again_is_probed_for_at_once() -> None:
    """Else one key that always answers so would hold up all others each time."""
    store = Store(None)
    assert await store.breaker.blames_file(fault("slow_down", retry_after=7.0), again=True)
    assert (store.probes, store.slept, store.told) == (1, [], [])


async def test_a_bug_in_a_probe_is_told_and_probed_past() -> None:
    """A breaker that never resets is the worst there is: nothing would ever be sent, and nobody told."""
    store = Store()
    bugs = [ValueError("a bug"), ValueError("again")]

    async def probe() -> Fault | None:
        if bugs:
            raise bugs.pop()
        return None

    store.breaker._probe = probe
    assert not await store.breaker.blames_file(REFUSED)
    await store.reopened()
    assert store.told == ["internal_error", "open"]


async def test_a_caller_that_is_cancelled_takes_no_answer_from_the_others() -> None:
    store = Store(None)
    first = asyncio.create_task(store.breaker.blames_file(REFUSED))
    second = asyncio.create_task(store.breaker.blames_file(REFUSED))
    await asyncio.sleep(0)
    first.cancel()
    assert await second
    assert store.probes == 1
