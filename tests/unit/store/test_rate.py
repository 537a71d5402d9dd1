"""The rate limit: exact over seconds, fair between uploads, without cost if there is none."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from presignd.store.rate import BURST, RateLimit


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds

    def limit(self, rate: int | None) -> RateLimit:
        return RateLimit(rate, monotonic=self.monotonic, sleep=self.sleep)


@given(st.integers(10_000, 1 << 30), st.integers(1, 1 << 20))
async def test_ten_seconds_worth_takes_ten_seconds(rate: int, most: int) -> None:
    clock = Clock()
    limit = clock.limit(rate)
    size = limit.chunk(most)
    turns = min(-(-10 * rate // size), 2000)
    for _ in range(turns):
        await limit.take(size)
    assert clock.now - 100.0 == pytest.approx(turns * size / rate, abs=BURST + 0.001)


async def test_a_pause_is_no_credit() -> None:
    clock = Clock()
    limit = clock.limit(1000)
    await limit.take(1000)
    await clock.sleep(60)
    before = clock.now
    await limit.take(5000)
    assert clock.now - before == pytest.approx(5.0, abs=BURST + 0.001)


async def test_no_limit_costs_nothing() -> None:
    clock = Clock()
    limit = clock.limit(None)
    await limit.take(1 << 40)
    assert clock.now == 100.0
    assert limit.chunk(1 << 20) == 1 << 20


async def test_bodies_are_cut_small_under_a_low_limit() -> None:
    """So that files which send together take turns, and none waits for another's megabyte."""
    assert Clock().limit(100_000).chunk(1 << 20) == 10_000


class Timeline:
    """Time for several that sleep at once: it goes on to whoever wakes first."""

    def __init__(self) -> None:
        self.now = 100.0
        self._asleep: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()

    async def sleep(self, seconds: float) -> None:
        woken = asyncio.get_running_loop().create_future()
        heapq.heappush(self._asleep, (self.now + seconds, next(self._numbers), woken))
        await woken

    async def run(self, turns: int) -> None:
        for _ in range(turns):
            for _ in range(10):
                await asyncio.sleep(0)  # whoever can go on does, before time does
            self.now, _, woken = heapq.heappop(self._asleep)
            woken.set_result(None)


async def test_files_share_alike_however_many_parts_of_one_are_under_way() -> None:
    timeline = Timeline()
    limit = RateLimit(1000, monotonic=lambda: timeline.now, sleep=timeline.sleep)
    sent: Counter[str] = Counter()

    async def part(file: str) -> None:
        while True:
            await limit.take(100, file)
            sent[file] += 100

    parts = [asyncio.create_task(part(file)) for file in ("large", "large", "large", "large", "other")]
    await timeline.run(200)
    for each in parts:
        each.cancel()
    assert sent["other"] == pytest.approx(sent["large"], rel=0.05)
    assert sum(sent.values()) == pytest.approx(1000 * (timeline.now - 100.0), rel=0.05)
