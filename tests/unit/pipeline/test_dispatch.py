"""Fairness between watches, events and backlog, and how work starts and ends."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from typing import Any, cast

import pytest

from presignd.config import UploadConfig
from presignd.ledger import Enqueued, Ledger, Suspect
from presignd.ledger.changes import Claim
from presignd.ledger.rows import Claimed, as_recorded
from presignd.model import FileVersion, Fingerprint, NewVersion, State
from presignd.pipeline.dispatch import BATCH, Dispatcher
from presignd.pipeline.files.hash import Prepared
from presignd.pipeline.stage import MOST, TURN, Item, Receipt
from presignd.pipeline.suspects import Suspects
from presignd.pipeline.upload.breakers import Breakers
from presignd.pipeline.upload.uploader import Uploader
from tests.versions import NOW

LARGE, SMALL = 1000, 10


def new(watch: str, number: int, size: int, **fields: Any) -> NewVersion:
    name = f"{watch}{number}"
    given = NewVersion(name, watch, name.encode(), Fingerprint(number, size, 1, 1), "b", name, "", 1, NOW)
    return given._replace(**fields)


def version(watch: str, number: int, size: int) -> FileVersion:
    fingerprint = Fingerprint(number, size, 1, 1)
    name = f"{watch}{number}"
    return FileVersion(name, watch, name.encode(), fingerprint, State.UPLOADING, "b", name, name, "", 1, NOW)


MAX_PRIORITY = 1
PREPARED: Any = object()
RECEIPT = Receipt(Fingerprint(1, 1, 1, 1), "", 0, "", "", adopted=False)


class Sent(asyncio.Queue[Item]):
    def put_all(self, items: Iterable[Item]) -> None:
        for item in items:
            self.put_nowait(item)


class World:
    """A queue for each watch, and senders that send until they are told to end; of the uploader, only the queue."""

    def __init__(self, slots: int, *, tiny: int = 0, **queues: Sequence[int]) -> None:
        self.queues = {
            watch: [version(watch, number, size) for number, size in enumerate(sizes)]
            for watch, sizes in queues.items()
        }
        self.shut: set[str] = set()
        self.unknown: set[str] = set()
        self.retries = False
        self.ended: set[str] = set()
        self.begun: list[str] = []
        self.claims: dict[str, int] = defaultdict(int)
        self.claiming = asyncio.Event()
        self.claiming.set()
        self.tiny, self.queue = tiny, Sent()
        self.suspects, self.retrying, self.elsewhere = Suspects(), set[str](), 0
        self.looking = asyncio.Event()
        self.looking.set()
        upload = UploadConfig(concurrency=slots, multipart_threshold=LARGE)
        self.dispatcher = Dispatcher(
            cast("Ledger", self),
            cast("Uploader", self),
            upload,
            cast("Breakers", self),
            self.suspects,
        )

    # --- the breakers ---
    @property
    def watches(self) -> Collection[str]:
        return self.queues

    def may_send(self, watch: str) -> bool:
        return watch not in self.shut

    # --- the ledger ---
    async def due(
        self, watch: str, limit: int, now: datetime, *, below_size: int | None, max_priority: int | None
    ) -> list[FileVersion]:
        assert now.tzinfo is not None
        assert max_priority == MAX_PRIORITY
        self.claims[watch] += 1
        due = [each for each in self.queues[watch] if each.file_id not in self.retrying]
        return [each for each in due if below_size is None or each.size < below_size][:limit]

    async def suspects_left(
        self, file_ids: Collection[str], now: datetime, *, max_priority: int | None
    ) -> tuple[list[Suspect], int]:
        assert now.tzinfo is not None
        assert max_priority == MAX_PRIORITY
        await self.looking.wait()
        at_work = [each.version for each in self.dispatcher.at_work.values()]
        uploading = [each for each in at_work if each.state is State.UPLOADING]
        waiting = [each for queue in self.queues.values() for each in queue]
        left = [
            *[Suspect(each, each.file_id not in self.retrying) for each in waiting],
            *[Suspect(each, due=False) for each in uploading],
        ]
        return [each for each in left if each.version.file_id in file_ids], len(uploading) + self.elsewhere

    async def claim(self, wanted: Sequence[Claim]) -> list[Claimed | None]:
        await self.claiming.wait()
        assert [one.intent for one in wanted] == [f"md5:{one.version.file_id}" for one in wanted]
        names = {one.version.file_id for one in wanted}
        for watch, queue in self.queues.items():
            self.queues[watch] = [each for each in queue if each.file_id not in names]
        names -= self.ended
        claimed = [one.version._replace(state=State.UPLOADING) for one in wanted]
        return [Claimed(version, None) if version.file_id in names else None for version in claimed]

    async def next_due(self, watches: Collection[str], after: datetime) -> datetime | None:
        assert not self.shut & set(watches)
        assert after.tzinfo is not None
        return after if self.retries else None

    # --- the uploader ---
    def knows_store(self, watch: str) -> bool:
        assert watch in self.queues
        return watch not in self.unknown

    async def read(self, versions: Sequence[FileVersion]) -> list[Item]:
        self.begun += [each.file_id for each in versions]
        return [Item(each, prepared=PREPARED, intent=self.intent(each, PREPARED)) for each in versions]

    def intent(self, version: FileVersion | NewVersion, prepared: Prepared) -> str:
        assert prepared is PREPARED
        return f"md5:{version.file_id}"

    def room_for(self, versions: Sequence[NewVersion]) -> AbstractAsyncContextManager[dict[str, str]]:
        """Let the tiny ones have been read as they settled."""
        read = {each.file_id: PREPARED for each in versions if each.fingerprint.size <= self.tiny}
        return self.dispatcher.room_for(versions, read)

    # --- the test's hand ---
    async def record(self, *new: NewVersion) -> list[str]:
        """Record new versions as the recorder does; return those that skipped the queue."""
        async with self.room_for(new) as intents:
            assert [*intents.values()] == [f"md5:{name}" for name in intents]
            done = [Enqueued(self._recorded(one, intents.get(one.file_id))) for one in new]
            self.dispatcher.begin(done, dict.fromkeys(intents, PREPARED), intents)
        await turns()
        return [*intents]

    def _recorded(self, new: NewVersion, intent: str | None) -> FileVersion:
        version = as_recorded(new, new.key, intent)
        if version.state is State.QUEUED:
            self.queues[new.watch].append(version)
        return version

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        task = asyncio.create_task(self.dispatcher.run(max_priority=MAX_PRIORITY))
        await turns()
        yield task
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    @property
    def at_work(self) -> list[str]:
        return list(self.dispatcher.at_work)

    def unsent(self) -> list[str]:
        return [name for name, item in self.dispatcher.at_work.items() if item.receipt is None]

    async def send(self, *names: str) -> None:
        """Let these be sent and verified (all without any), and wait for their link."""
        for item in [self.dispatcher.at_work[name] for name in names or self.unsent()]:
            item.receipt, item.version = RECEIPT, item.version._replace(state=State.VERIFIED)
        self.dispatcher.sent()
        await turns()

    async def end(self, *names: str) -> None:
        """Let these be through (all at work without any) and what follows begin."""
        self.dispatcher.leave([self.dispatcher.at_work[name] for name in names or self.at_work])
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


async def test_every_sender_is_used_where_only_one_watch_has_work() -> None:
    world = World(8, a=[], b=[SMALL] * 20, c=[])
    async with world.running():
        assert world.watches_at_work() == {"b": 8}


async def test_large_files_leave_half_of_the_senders_to_small_ones() -> None:
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
        assert "a3" in world.begun


async def test_one_sender_takes_large_files_too() -> None:
    world = World(1, a=[LARGE])
    async with world.running():
        assert world.at_work == ["a0"]


async def test_a_blocked_watch_waits_and_holds_up_no_other() -> None:
    world = World(4, a=[SMALL] * 20, b=[SMALL] * 20)
    world.shut.add("a")
    async with world.running():
        assert world.watches_at_work() == {"b": 4}
        world.shut.clear()
        await world.end()
        assert world.watches_at_work() == {"a": 2, "b": 2}


async def test_nothing_to_do_is_looked_at_once() -> None:
    world = World(4, tiny=SMALL, a=[])
    async with world.running():
        assert world.claims == {"a": 1}
        world.dispatcher.sent()
        await turns()
        assert world.claims == {"a": 1}


async def test_a_retry_is_claimed_once_it_is_due() -> None:
    world = World(4, a=[])
    world.retries = True
    async with world.running(), asyncio.timeout(20):
        world.queues["a"] = [version("a", 0, SMALL)]
        while not world.at_work:  # noqa: ASYNC110 - the dispatcher wakes by itself
            await asyncio.sleep(0)


async def test_what_ended_before_its_claim_is_not_sent() -> None:
    world = World(2, a=[SMALL] * 3)
    world.ended.add("a1")
    async with world.running():
        assert world.at_work == ["a0", "a2"]


async def test_a_drain_lets_what_is_in_flight_end_and_begins_nothing_more() -> None:
    world = World(2, a=[SMALL] * 9)
    async with world.running() as loop:
        draining = asyncio.create_task(world.dispatcher.drain(60))
        await turns()
        await world.end()
        assert await draining
        await loop
        assert world.begun == ["a0", "a1"]


async def test_a_drain_that_takes_too_long_tells_so() -> None:
    world = World(2, a=[SMALL] * 9)
    async with world.running():
        assert not await world.dispatcher.drain(0)


async def test_what_was_claimed_while_the_drain_began_is_not_begun() -> None:
    """Nobody would wait for it: it goes back to the queue with what the drain cancels."""
    world = World(2, a=[SMALL] * 9)
    world.claiming.clear()
    async with world.running() as loop:
        assert await world.dispatcher.drain(0)
        world.claiming.set()
        await loop
        assert world.at_work == []


@pytest.mark.parametrize("slots", [1, 2, 3, 16])
async def test_never_more_bodies_are_claimed_and_not_sent_than_there_are_senders(slots: int) -> None:
    world = World(slots, a=[LARGE, SMALL] * 20, b=[SMALL, LARGE] * 20, c=[SMALL] * 40)
    most: list[Any] = []
    async with world.running():
        while world.at_work:
            most.append(len(world.unsent()))
            await world.send(world.unsent()[0])
            await world.end(next(name for name in world.at_work if name not in world.unsent()))
    assert max(most) == slots
    assert len(world.begun) == len(set(world.begun)) == 120


async def test_what_was_sent_by_an_earlier_run_takes_no_sender() -> None:
    world = World(4, a=[LARGE] * 4)
    for number in range(20):
        world.dispatcher.add([Item(version("l", number, LARGE)._replace(state=State.LINKED))])
    async with world.running():
        assert world.watches_at_work() == {"l": 20, "a": 2}


async def test_one_that_retires_claims_nothing_more_and_ends_with_what_it_claimed() -> None:
    """Versions of a claim in progress count too; otherwise nothing would release them."""
    world = World(4, a=[SMALL] * 4)
    world.claiming.clear()
    async with world.running() as task:
        retiring = asyncio.create_task(world.dispatcher.retire())
        await turns()
        assert not retiring.done()
        world.claiming.set()
        await turns()
        assert (len(world.at_work), retiring.done(), task.done()) == (4, False, True)
        await world.end()
        await retiring


async def test_tiny_files_are_claimed_ahead_up_to_a_limit_that_counts_what_waits_for_its_link() -> None:
    """So many share a commit; and not more than guarantee 3 lets a crash do again."""
    world = World(4, tiny=SMALL, a=[SMALL] * 400, b=[SMALL] * 400)
    async with world.running():
        assert MOST - BATCH < len(world.at_work) <= MOST == 256
        assert set(world.watches_at_work()) == {"a", "b"}
        await world.send()
        assert MOST - BATCH < len(world.at_work) <= MOST


async def test_until_the_store_is_known_only_as_many_are_claimed_as_there_are_senders() -> None:
    """Each of these is hashed and recorded on its own, as nobody knows yet by which checksum."""
    world = World(4, tiny=SMALL, a=[SMALL] * 400)
    world.unknown = {"a"}
    async with world.running():
        assert len(world.begun) == 4
        world.unknown.clear()
        await world.end(world.begun[0])
        assert len(world.begun) == MOST + 1


async def test_a_watch_whose_store_is_unknown_waits_for_no_backlog_of_another() -> None:
    world = World(4, tiny=SMALL, a=[SMALL] * 400, b=[SMALL] * 10)
    world.unknown = {"b"}
    async with world.running():
        assert sum(name.startswith("b") for name in world.begun) == 4


async def test_larger_files_have_their_senders_among_however_many_tiny_ones() -> None:
    world = World(4, tiny=SMALL, a=[SMALL] * 300 + [SMALL + 1] * 20)
    async with world.running():
        while not (whole := [name for name in world.at_work if int(name[1:]) >= 300]):
            await world.end(*world.at_work[:BATCH])
        assert len(whole) <= 4
        await world.end(*[name for name in world.at_work if name not in whole])
        assert len(world.at_work) == 4


# --- suspects ---------------------------------------------------------------------------------------


async def test_suspects_go_first_and_one_at_a_time_and_then_all_others() -> None:
    world = World(4, tiny=SMALL, a=[SMALL] * 9, b=[SMALL] * 9)
    world.suspects.add(["b8", "a7", "b3"])
    async with world.running():
        for name in ("b8", "a7", "b3"):
            assert world.unsent() == [name], "alone, though those before it still wait for their links"
            await world.send()
        assert len(world.unsent()) == 15


async def test_a_suspect_that_waits_for_a_retry_holds_up_nothing_and_is_alone_once_it_is_due() -> None:
    world = World(2, a=[SMALL] * 6)
    world.suspects.add(["a3"])
    world.retrying.add("a3")
    async with world.running():
        assert world.unsent() == ["a0", "a1"]
        world.retrying.clear()
        world.dispatcher.wake()
        await world.send("a0")
        assert world.unsent() == ["a1"], "it waits until nothing else is uploading, and nothing else goes"
        await world.send("a1")
        assert world.unsent() == ["a3"]
        await world.send("a3")
        assert world.unsent() == ["a2", "a4"]


async def test_a_suspect_of_a_blocked_watch_holds_up_nothing() -> None:
    world = World(2, a=[SMALL], b=[SMALL] * 9)
    world.suspects.add(["a0"])
    world.shut.add("a")
    async with world.running():
        assert world.watches_at_work() == {"b": 2}


async def test_a_suspect_whose_watch_is_gone_holds_up_nothing() -> None:
    world = World(2, a=[SMALL] * 9)
    world.queues["gone"] = [version("gone", 0, SMALL)]
    world.suspects.add(["gone0"])
    async with world.running():
        assert world.watches_at_work() == {"a": 2}


async def test_a_suspect_that_got_on_is_alone_no_longer() -> None:
    """A large one, of which a part is recorded; nothing wakes the dispatcher then, it looks by itself."""
    world = World(4, a=[LARGE] * 3)
    world.suspects.add(["a1"])
    async with world.running(), asyncio.timeout(20):
        assert world.unsent() == ["a1"]
        world.suspects.turn([], 0, lambda _: True, 0.0)
        while len(world.at_work) < 2:  # noqa: ASYNC110 - the dispatcher wakes by itself
            await asyncio.sleep(0)


@pytest.mark.parametrize("suspects", [["a0"], ["a0", "a1"]])
async def test_a_suspect_gives_way_if_others_wait(suspects: list[str]) -> None:
    world = World(4, a=[LARGE] * 3)
    world.suspects.add(suspects)
    async with world.running():
        assert [item.gives_way for item in world.dispatcher.at_work.values()] == [len(suspects) > 1]
        await world.end()
        await world.end()
        assert not any(item.gives_way for item in world.dispatcher.at_work.values())


async def test_no_other_gives_way_to_suspects_that_wait() -> None:
    world = World(4, a=[LARGE] * 3)
    world.suspects.add(["a0", "a1"])
    world.retrying.update(["a0", "a1"])
    async with world.running():
        assert [item.gives_way for item in world.dispatcher.at_work.values()] == [False]


async def test_a_suspect_that_ended_before_its_claim_holds_up_nothing() -> None:
    world = World(2, a=[SMALL] * 3)
    world.suspects.add(["a1"])
    world.ended.add("a1")
    async with world.running():
        assert world.at_work == ["a0", "a2"]


async def test_what_an_earlier_configuration_uploads_is_waited_for() -> None:
    world = World(2, a=[SMALL] * 3)
    world.suspects.add(["a1"])
    world.elsewhere = 1
    async with world.running():
        assert world.at_work == []
        world.elsewhere = 0
        world.dispatcher.wake()
        await turns()
        assert world.at_work == ["a1"]


async def test_nothing_skips_the_queue_while_a_suspect_is_alone() -> None:
    world = World(4, tiny=SMALL, a=[SMALL], b=[])
    world.suspects.add(["a0"])
    async with world.running():
        assert await world.record(new("b", 1, SMALL)) == []
        assert world.unsent() == ["a0"]
        await world.send()
        assert world.unsent() == ["b1"]
        await world.send()
        assert await world.record(new("b", 2, SMALL)) == ["b2"]


async def test_nothing_skips_an_empty_queue_while_a_suspect_is_alone() -> None:
    world = World(4, tiny=SMALL, a=[SMALL], b=[])
    world.suspects.add(["a0"])
    world.retrying.add("a0")
    async with world.running():
        world.retrying.clear()
        await world.record(new("b", 1, LARGE))
        assert world.at_work == ["a0"]
        assert await world.record(new("b", 2, SMALL)) == []


async def test_no_suspect_goes_while_a_commit_claims_what_skips_the_queue() -> None:
    """The ledger does not know of it yet when it is asked."""
    world = World(4, tiny=SMALL, a=[SMALL], b=[])
    world.suspects.add(["a0"])
    world.retrying.add("a0")
    async with world.running():
        async with world.room_for([new("b", 1, SMALL)]) as intents:
            assert len(intents) == 1
            world.retrying.clear()
            world.looking.clear()
            world.dispatcher.wake()
            await turns()
        world.looking.set()
        await turns()
        assert world.at_work == []
        assert await world.record(new("b", 2, SMALL)) == []
        assert world.at_work == ["a0"]


async def test_a_suspect_needs_room_too() -> None:
    """No more than ``MOST`` are claimed and not linked, whatever holds up the links."""
    world = World(4, a=[SMALL])
    world.suspects.add(["a0"])
    for number in range(MOST):
        world.dispatcher.add([Item(version("l", number, SMALL)._replace(state=State.VERIFIED), receipt=RECEIPT)])
    async with world.running():
        assert world.unsent() == []
        await world.end("l0")
        assert world.unsent() == ["a0"]


# --- past the queue ---------------------------------------------------------------------------------


async def test_new_tiny_files_are_claimed_by_the_commit_that_records_them() -> None:
    world = World(4, tiny=SMALL, a=[], b=[])
    async with world.running():
        assert await world.record(new("a", 1, SMALL), new("a", 2, SMALL)) == ["a1", "a2"]
        assert await world.record(new("b", 3, SMALL)) == ["b3"]
        assert world.at_work == ["a1", "a2", "b3"]
        assert world.queue.qsize() == 3


async def test_nothing_skips_a_tiny_file_that_waits_in_any_queue() -> None:
    world = World(4, tiny=SMALL, a=[SMALL] * 2 * MOST, b=[])
    async with world.running():
        assert await world.record(new("b", 1, SMALL)) == []
        while world.queues["a"]:
            assert await world.record(new("b", 2, SMALL)) == []
            await world.end()
        await world.end()
        assert await world.record(new("b", 3, SMALL)) == ["b3"]


async def test_a_blocked_watch_s_queue_holds_up_no_other_watch_s_new_files() -> None:
    world = World(4, tiny=SMALL, a=[SMALL] * 9, b=[])
    world.shut.add("a")
    async with world.running():
        assert await world.record(new("a", 20, SMALL), new("b", 1, SMALL)) == ["b1"]


async def test_larger_files_wait_for_a_sender_and_hold_up_no_tiny_ones() -> None:
    world = World(2, tiny=SMALL, a=[])
    async with world.running():
        assert await world.record(*[new("a", number, LARGE) for number in range(4)]) == []
        assert world.at_work == ["a0"], "the other sender is for smaller ones"
        assert await world.record(new("a", 9, SMALL)) == ["a9"]


async def test_tiny_files_that_skip_the_queue_leave_room_for_larger_ones() -> None:
    world = World(4, tiny=SMALL, a=[])
    async with world.running():
        many = [
            *[new("a", number, SMALL + 1) for number in range(4)],
            *[new("a", 4 + n, SMALL) for n in range(2 * MOST)],
        ]
        assert len(await world.record(*many)) == MOST - 4
        assert [name for name in world.at_work if int(name[1:]) < 4] == ["a0", "a1", "a2", "a3"]


async def test_many_new_files_wait_a_moment_for_room_and_for_the_queue() -> None:
    world = World(4, tiny=SMALL, a=[SMALL] * MOST)
    many = [new("a", 1000 + number, SMALL) for number in range(TURN)]
    async with world.running():
        recording = asyncio.create_task(world.record(*many))
        await world.end(*world.at_work[:TURN])
        assert not recording.done(), "others wait in the queue"
        while world.queues["a"]:
            await world.end(world.at_work[0])
        await world.end()
        assert await recording == [one.file_id for one in many]


async def test_few_files_and_the_more_urgent_with_the_others_wait_for_no_room() -> None:
    world = World(4, tiny=SMALL, a=[SMALL] * 2 * MOST)
    many = [new("a", 1000 + number, SMALL) for number in range(TURN)]
    async with world.running():
        assert await world.record(*many[1:]) == []
        assert await world.record(new("a", 999, SMALL, priority=0), *many[1:]) == []


async def test_room_is_kept_for_what_is_being_recorded() -> None:
    world = World(4, tiny=SMALL, a=[])
    async with world.running():
        async with world.room_for([new("a", number, SMALL) for number in range(MOST - 4)]) as intents:
            assert len(intents) == MOST - 4
            world.queues["a"] = [version("a", 1000 + number, SMALL) for number in range(20)]
            world.dispatcher.wake()
            await turns()
            assert len(world.at_work) == 4
            retiring = asyncio.create_task(world.dispatcher.retire())
            await world.end()
            assert not retiring.done()
        await retiring


@pytest.mark.parametrize(
    "fields", [{"state": State.QUARANTINED}, {"key": None}, {"priority": MAX_PRIORITY + 1}], ids=str
)
async def test_what_is_not_to_be_sent_now_is_left_to_the_queue(fields: dict[str, Any]) -> None:
    world = World(4, tiny=SMALL, a=[])
    async with world.running():
        assert await world.record(new("a", 1, SMALL, **fields)) == []


async def test_nothing_skips_the_queue_before_the_start_and_after_the_end() -> None:
    world = World(4, tiny=SMALL, a=[])
    assert await world.record(new("a", 1, SMALL)) == []
    async with world.running():
        await world.end()
        assert await world.dispatcher.drain(60)
        assert await world.record(new("a", 2, SMALL)) == []


async def test_what_was_recorded_while_the_drain_began_is_not_begun() -> None:
    world = World(4, tiny=SMALL, a=[])
    async with world.running():
        one = new("a", 1, SMALL)
        async with world.room_for([one]) as intents:
            draining = asyncio.create_task(world.dispatcher.drain(60))
            await turns()
            recorded = as_recorded(one, one.key, intents[one.file_id])
            world.dispatcher.begin([Enqueued(recorded)], dict.fromkeys(intents, PREPARED), intents)
        assert await draining
        assert world.queue.empty()
