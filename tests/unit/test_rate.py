"""The rate limit: exact over seconds, fair between those who ask, free where there is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from presignd.rate import BURST, RateLimit


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
