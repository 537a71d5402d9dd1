"""Heartbeats: a loop that hangs is named; one that waits with a deadline or for another is not."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from presignd.runtime.heartbeat import SLACK, Heart, alive, beat, holding, overdue, resting

USUAL = 30.0


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return a clock that moves when the test says so."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_loop_that_turns_is_never_overdue(clock: list[float]) -> None:
    with alive("loop") as heart:
        for _ in range(10):
            clock[0] += USUAL
            assert overdue(USUAL) == []
            heart.beat()


def test_a_loop_that_hangs_is_named(clock: list[float]) -> None:
    with alive("good") as good, alive("bad"):
        clock[0] += USUAL + 1
        good.beat()
        assert overdue(USUAL) == ["bad"]


def test_a_wait_with_a_deadline_is_not_overdue_before_it_and_is_after_it(clock: list[float]) -> None:
    with alive("worker"):
        beat(within=300)
        clock[0] += 300 + SLACK
        assert overdue(USUAL) == []
        clock[0] += 1
        assert overdue(USUAL) == ["worker"]


def test_the_next_beat_ends_the_deadline(clock: list[float]) -> None:
    with alive("worker"):
        beat(within=300)
        beat()
        clock[0] += USUAL + 1
        assert overdue(USUAL) == ["worker"]


def test_a_deadline_shorter_than_the_usual_turn_shortens_nothing(clock: list[float]) -> None:
    with alive("worker"):
        beat(within=1)
        clock[0] += USUAL
        assert overdue(USUAL) == []


def test_who_waits_for_another_may_wait_for_ever_and_is_on_time_after_it(clock: list[float]) -> None:
    with alive("worker"):
        with resting():
            with resting():
                beat()
            clock[0] += 1e6
            assert overdue(USUAL) == []
        assert overdue(USUAL) == []
        clock[0] += USUAL + 1
        assert overdue(USUAL) == ["worker"]


async def test_a_beat_counts_for_whoever_it_is_done_for_in_threads_and_tasks_too(clock: list[float]) -> None:
    async def in_a_task() -> None:
        beat()

    with alive("loop"):
        clock[0] += USUAL + 1
        await asyncio.to_thread(beat)
        assert overdue(USUAL) == []
        clock[0] += USUAL + 1
        await asyncio.create_task(in_a_task())
        assert overdue(USUAL) == []


def test_a_thread_of_its_own_beats_for_nobody_else(clock: list[float]) -> None:
    with alive("loop"):
        clock[0] += USUAL + 1
        thread = threading.Thread(target=beat)
        thread.start()
        thread.join()
        assert overdue(USUAL) == ["loop"]


def test_what_has_ended_is_missed_by_nobody(clock: list[float]) -> None:
    with alive("worker"):
        pass
    clock[0] += 1e6
    assert overdue(USUAL) == []
    beat()
    with resting():
        pass


async def test_waiting_for_a_lock_is_rest_and_holding_it_is_not(clock: list[float]) -> None:
    lock, entered, leave = asyncio.Lock(), asyncio.Event(), asyncio.Event()

    async def hold(name: str) -> None:
        with alive(name):
            async with holding(lock):
                entered.set()
                await leave.wait()

    first = asyncio.create_task(hold("first"))
    await entered.wait()
    second = asyncio.create_task(hold("second"))
    await asyncio.sleep(0)
    clock[0] += USUAL + 1
    assert overdue(USUAL) == ["first"]
    leave.set()
    await asyncio.gather(first, second)


def test_a_heart_knows_nothing_of_the_others(clock: list[float]) -> None:
    heart = Heart("alone")
    assert not heart.is_overdue(clock[0] + USUAL, USUAL)
    assert heart.is_overdue(clock[0] + USUAL + 1, USUAL)
    assert overdue(USUAL) == []
