"""Fairness between watches, events and backlog, and how work starts and ends."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, cast

import pytest

from presignd.config import UploadConfig
from presignd.ledger import Ledger
from presignd.model import FileVersion, Fingerprint, State
from presignd.pipeline.dispatch import AHEAD, MIN_AHEAD, Dispatcher
from presignd.pipeline.worker import Worker
from tests.versions import NOW

LARGE, SMALL = 1000, 10


def version(watch: str, number: int, size: int) -> FileVersion:
    fingerprint = Fingerprint(number, size, 1, 1)
    name = f"{watch}{number}"
    return FileVersion(name, watch, name.encode(), fingerprint, State.UPLOADING, "b", name, name, "", 1, NOW)


MAX_PRIORITY = 1


class World:
    """A queue for each watch, and workers that work until they are told to end."""

    def __init__(self, slots: int, *, tiny: int = 0, **queues: Sequence[int]) -> None:
        self.queues = {
            watch: [version(watch, number, size) for number, size in enumerate(sizes)]
            for watch, sizes in queues.items()
        }
        self.shut: set[str] = set()
        self.at_work: dict[str, asyncio.Future[None]] = {}
        self.begun: list[str] = []
        self.claims: dict[str, int] = defaultdict(int)
        self.claiming = asyncio.Event()
        self.claiming.set()
        upload = UploadConfig(concurrency=slots, multipart_threshold=LARGE)
        self.dispatcher = Dispatcher(
            cast("Ledger", self),
            cast("Worker", self),
            upload,
            list(queues),
            lambda watch: watch not in self.shut,
            tiny=tiny,
        )

    # --- the ledger ---
    async def claim(
        self, watch: str, limit: int, now: datetime, *, below_size: int | None, max_priority: int | None
    ) -> list[FileVersion]:
        assert now.tzinfo is not None
        assert max_priority == MAX_PRIORITY
        await self.claiming.wait()
        self.claims[watch] += 1
        queue = self.queues[watch]
        found = [each for each in queue if below_size is None or each.size < below_size][:limit]
        self.queues[watch] = [each for each in queue if each not in found]
        return found

    async def next_due(self, watches: Collection[str], after: datetime) -> None:
        assert not self.shut & set(watches)
        assert after.tzinfo is not None

    # --- the worker ---
    async def process(self, version: FileVersion) -> None:
        self.begun.append(version.file_id)
        self.at_work[version.file_id] = asyncio.get_running_loop().create_future()
        try:
            await self.at_work[version.file_id]
        finally:
            del self.at_work[version.file_id]

    # --- the test's hand ---
    @asynccontextmanager
    async def running(self, *, careful: bool = False) -> AsyncIterator[asyncio.Task[None]]:
        task = asyncio.create_task(self.dispatcher.run(careful=careful, max_priority=MAX_PRIORITY))
        await turns()
        yield task
        task.cancel()
        await self.dispatcher.drain(0)
        await asyncio.gather(task, return_exceptions=True)

    async def end(self, *names: str) -> None:
        """Let these be through (all at work without any) and what follows begin."""
        for name in names or list(self.at_work):
            self.at_work[name].set_result(None)
        await turns()

    def watches_at_work(self) -> dict[str, int]:
        found: dict[str, int] = defaultdict(int)
        for name in self.at_work:
            found[name[0]] += 1
        return dict(found)


async def turns() -> None:
    for _ in range(30):
        await asyncio.sleep(0)


async def test_watches_take_turns_however_long_one_s_queue_is() -> None:
    world = World(4, a=[SMALL] * 100, b=[SMALL] * 2)
    async with world.running():
        assert world.watches_at_work() == {"a": 2, "b": 2}
        await world.end()
        assert world.watches_at_work() == {"a": 4}


async def test_with_one_slot_watches_take_turns_too() -> None:
    world = World(1, a=[SMALL] * 3, b=[SMALL] * 3, c=[SMALL] * 3)
    async with world.running():
        for _ in range(8):
            await world.end()
        assert {begun[0] for begun in world.begun[:3]} == {begun[0] for begun in world.begun[3:6]} == {"a", "b", "c"}


async def test_every_slot_is_used_where_only_one_watch_has_work() -> None:
    world = World(8, a=[], b=[SMALL] * 20, c=[])
    async with world.running():
        assert world.watches_at_work() == {"b": 8}


async def test_large_files_leave_half_of_the_slots_to_small_ones() -> None:
    world = World(8, a=[LARGE] * 20)
    async with world.running():
        assert len(world.at_work) == 4
        world.queues["a"] += [version("s", number, SMALL) for number in range(20)]
        world.dispatcher.wake()
        await turns()
        assert world.watches_at_work() == {"a": 4, "s": 4}
        await world.end(*[name for name in world.at_work if name.startswith("a")])
        assert world.watches_at_work() == {"a": 4, "s": 4}


async def test_a_large_file_gets_its_turn_among_many_small_ones() -> None:
    world = World(2, a=[SMALL, SMALL, SMALL, LARGE, *[SMALL] * 50])
    async with world.running():
        await world.end()
        assert "a3" in world.at_work


async def test_one_slot_takes_large_files_too() -> None:
    world = World(1, a=[LARGE])
    async with world.running():
        assert list(world.at_work) == ["a0"]


async def test_a_blocked_watch_waits_and_holds_up_no_other() -> None:
    world = World(4, a=[SMALL] * 9, b=[SMALL] * 9)
    world.shut.add("a")
    async with world.running():
        assert world.watches_at_work() == {"b": 4}
        world.shut.clear()
        await world.end()
        assert world.watches_at_work() == {"a": 2, "b": 2}


async def test_nothing_to_do_is_looked_at_once() -> None:
    world = World(4, a=[])
    async with world.running():
        assert world.claims == {"a": 1}


async def test_what_a_worker_could_not_even_record_ends_the_loop() -> None:
    world = World(4, a=[SMALL])
    async with world.running() as loop:
        world.at_work["a0"].set_exception(RuntimeError("the ledger's thread has died"))
        with pytest.raises(RuntimeError, match="died"):
            await loop


async def test_a_drain_lets_what_is_in_flight_end_and_begins_nothing_more() -> None:
    world = World(2, a=[SMALL] * 9)
    async with world.running() as loop:
        draining = asyncio.create_task(world.dispatcher.drain(60))
        await turns()
        await world.end()
        assert await draining
        await loop
        assert world.begun == ["a0", "a1"]


async def test_a_drain_that_takes_too_long_cancels_what_is_left() -> None:
    world = World(2, a=[SMALL] * 9)
    async with world.running():
        assert not await world.dispatcher.drain(0)
        assert world.at_work == {}


async def test_what_was_claimed_while_the_drain_began_is_not_begun() -> None:
    """Nobody would wait for it: it goes back to the queue with what the drain cancels."""
    world = World(2, a=[SMALL] * 9)
    world.claiming.clear()
    async with world.running() as loop:
        assert await world.dispatcher.drain(0)
        world.claiming.set()
        await loop
        assert world.begun == []


@pytest.mark.parametrize("slots", [1, 2, 3, 16])
async def test_never_more_at_work_than_slots(slots: int) -> None:
    world = World(slots, a=[LARGE, SMALL] * 20, b=[SMALL, LARGE] * 20, c=[SMALL] * 40)
    most: list[Any] = []
    async with world.running():
        while world.at_work:
            most.append(len(world.at_work))
            await world.end(next(iter(world.at_work)))
    assert max(most) == slots
    assert len(world.begun) == len(set(world.begun)) == 120


async def test_one_that_retires_claims_nothing_more_and_ends_with_what_it_claimed() -> None:
    """Versions of a claim in progress count too; otherwise nothing would release them."""
    world = World(4, a=[SMALL] * 4)
    world.claiming.clear()
    async with world.running() as task:
        retiring = asyncio.create_task(world.dispatcher.retire())
        await turns()
        world.claiming.set()
        await turns()
        assert (len(world.at_work), retiring.done(), task.done()) == (2, False, True)
        for work in list(world.at_work.values()):
            work.set_result(None)
        await retiring
        assert len(world.begun) == 2


async def test_one_that_retires_tells_what_a_worker_could_not_even_record() -> None:
    """The process must end then: the file's last state is recorded nowhere."""
    world = World(1, a=[SMALL])
    async with world.running():
        retiring = asyncio.create_task(world.dispatcher.retire())
        await turns()
        world.at_work["a0"].set_exception(RuntimeError("the ledger's thread has died"))
        with pytest.raises(RuntimeError, match="died"):
            await retiring


async def test_tiny_files_are_claimed_ahead_of_their_slots_up_to_a_limit() -> None:
    """So many share a commit; and not more than guarantee 3 lets a crash do again."""
    world = World(4, tiny=SMALL, a=[SMALL] * 200, b=[SMALL] * 200)
    async with world.running():
        assert AHEAD - MIN_AHEAD < len(world.at_work) <= AHEAD <= 256
        assert set(world.watches_at_work()) == {"a", "b"}


async def test_larger_files_have_their_slots_among_however_many_tiny_ones() -> None:
    world = World(4, tiny=SMALL, a=[SMALL] * 300 + [SMALL + 1] * 9)
    async with world.running():
        while not (whole := [name for name in world.at_work if int(name[1:]) >= 300]):
            await world.end(*list(world.at_work)[:MIN_AHEAD])
        assert len(whole) <= 4
        await world.end(*[name for name in world.at_work if name not in whole])
        assert len(world.at_work) == 4


async def test_none_is_claimed_ahead_after_an_unclean_end_until_all_is_through() -> None:
    """What was in flight at three unclean ends is quarantined: that should be few besides the one that kills."""
    world = World(4, tiny=SMALL, a=[SMALL] * 9)
    async with world.running(careful=True):
        while world.at_work:
            assert len(world.at_work) <= 4
            await world.end(next(iter(world.at_work)))
        world.queues["a"] = [version("a", 100 + number, SMALL) for number in range(50)]
        world.dispatcher.wake()
        await turns()
        assert len(world.at_work) == 50
