"""The linker: each line on disk before its commit, once, whatever is unreachable meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import reduce
from typing import Any, cast

import pytest

from presignd.errors import Fault, FileFault, fault
from presignd.ledger import Ledger
from presignd.ledger.changes import Change
from presignd.links import LinksFile
from presignd.model import FileVersion, Link, LinksMark, State
from presignd.pipeline.finish.link import STALE, Linker, link_request, make_link
from presignd.pipeline.in_effect import InEffect
from presignd.pipeline.stage import Item
from presignd.presign import Grant, GrantRequest
from presignd.presign.stable import StableLink, StableRequest
from presignd.states import after
from presignd.system.clock import utcnow
from tests.versions import in_state

FULL = fault("disk_full")
AWAY = fault("connection_refused")


def verified(number: int, **given: Any) -> FileVersion:
    now = utcnow()
    version = in_state(State.VERIFIED, b"%d" % number, file_id=f"id-{number}", queued_at=now, signed_at=now)
    return version._replace(**given)


class World:
    """Ledger, links file and presigner; each list holds the faults that its next calls meet."""

    def __init__(self) -> None:
        self.commits: list[Fault] = []
        self.appends: list[Fault] = []
        self.grants: list[Fault] = []
        self.refused: dict[str, Fault] = {}
        self.held: dict[str, Fault] = {}
        self.away: list[Fault] = []
        self.made: dict[str, StableLink] = {}
        self.asked: list[int] = []
        self.lines: list[str] = []
        self.batches: list[int] = []
        self.on_sleep: list[asyncio.Event] = []
        self.committed: list[str] = []
        self.told: list[str] = []
        self.published: list[str] = []
        self.handed_on: list[Item] = []
        self.more = asyncio.Event()
        self.linker = Linker(
            cast("Ledger", self),
            cast("LinksFile", self),
            lambda versions: [f"/{version.file_id}" for version in versions],
            cast("InEffect", self),
            lambda links: self.published.extend(link.file_id for link in links),
            sleep=self.sleep,
        )
        self.linker.trouble._log = self  # type: ignore[assignment]  # two of its methods are all that is called

    async def sleep(self, _seconds: float) -> None:
        for slept in self.on_sleep:
            slept.set()
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    def error(self, event: str, **fields: Any) -> None:
        self.told.append(f"{event} {fields['error_code']}")

    def info(self, event: str) -> None:
        self.told.append(event)

    async def record_linked(self, linked: Sequence[Change], mark: LinksMark) -> list[FileVersion]:
        assert mark.offset == len(self.lines)
        if self.commits:
            raise self.commits.pop(0)
        self.committed += [change.version.file_id for change in linked]
        return [one._replace(state=reduce(after, events, one.state), **fields) for one, events, fields in linked]

    async def apply_all(self, changes: Sequence[Change]) -> list[FileVersion]:
        return [change.version._replace(**change.fields) for change in changes]

    def append(self, links: Sequence[Link]) -> LinksMark:
        if self.appends:
            raise self.appends.pop(0)
        self.batches.append(len(links))
        self.lines += [link.file_id for link in links]
        return LinksMark(1, len(self.lines))

    def now(self) -> datetime:
        return datetime.now(UTC)

    async def grant(self, requests: Sequence[GrantRequest]) -> list[Grant | Exception]:
        if self.grants:
            raise self.grants.pop(0)
        refused = [self.held.get(each.key) or self.refused.pop(each.key, None) for each in requests]
        return [no or granted(each) for no, each in zip(refused, requests, strict=True)]

    grant_as_asked = grant

    async def make_links(self, requests: Sequence[StableRequest]) -> list[StableLink | Fault]:
        self.asked.append(len(requests))
        if self.away:
            raise self.away.pop(0)
        refused = [self.held.get(each.key) or self.refused.pop(each.key, None) for each in requests]
        return [no or self.made.setdefault(each.id, told(each)) for no, each in zip(refused, requests, strict=True)]

    def put(self, *versions: FileVersion, finishes: bool = False) -> list[Item]:
        """Put versions into the linker's queue."""
        items = [Item(version, expires=900, finishes=finishes, after_link=self._take) for version in versions]
        self.linker.queue.put_all(items)
        return items

    def _take(self, items: Sequence[Item]) -> None:
        self.handed_on += items
        self.more.set()

    async def until(self, *items: Item) -> None:
        """Wait until these were handed on."""
        async with asyncio.timeout(10):
            while not {*map(id, items)} <= {*map(id, self.handed_on)}:
                self.more.clear()
                await self.more.wait()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        running = asyncio.create_task(self.linker.run())
        yield
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running

    async def link(self, *versions: FileVersion) -> list[Item]:
        async with self.running():
            items = self.put(*versions)
            await self.until(*items)
        return items


async def test_what_waits_is_linked_as_one_list() -> None:
    world = World()
    items = world.put(*map(verified, range(20)))
    async with world.running():
        await world.until(*items)
    assert world.batches == [20]
    assert world.published == [item.version.file_id for item in world.handed_on] == world.lines


async def test_a_link_whose_file_stays_is_finished_by_its_commit() -> None:
    world = World()
    [stays], [moves] = world.put(verified(1), finishes=True), world.put(verified(2))
    async with world.running():
        await world.until(stays, moves)
    assert (stays.version.state, moves.version.state) == (State.FINISHED, State.LINKED)


def told(request: StableRequest) -> StableLink:
    return StableLink(url=f"https://files.example.org/l/{request.id}/{request.key}", expires_at=request.expires_at)


def granted(request: GrantRequest) -> Grant:
    assert request.date is not None
    url = f"http://h/{request.key}?X-Amz-Date={request.date:%H%M%S}&X-Amz-Expires={request.expires}"
    date = request.date.replace(microsecond=0)
    return Grant("GET", url, {}, date + timedelta(seconds=request.expires), date)


async def test_a_commit_that_fails_is_tried_again_without_writing_the_lines_again() -> None:
    world = World()
    world.commits = [FULL, FULL]
    await world.link(verified(1), verified(2))
    assert world.lines == ["id-1", "id-2"]
    assert world.committed == ["id-1", "id-2"]
    assert world.told == ["links.blocked disk_full", "links.unblocked"]


async def test_a_full_disk_and_an_absent_presigner_are_waited_for_and_told_once_each_way() -> None:
    world = World()
    world.appends, world.grants = [FULL, FULL], [fault("no_credentials")]
    await world.link(verified(1))
    assert world.lines == ["id-1"]
    assert world.told == ["links.blocked no_credentials", "links.unblocked"]


async def test_an_absent_store_never_quarantines_a_verified_file() -> None:
    """The region of a bucket may have to be asked for before the first link after a restart."""
    world = World()
    world.refused = {"1": AWAY}
    await world.link(verified(1))
    assert world.lines == ["id-1"]


async def test_a_link_that_waits_for_its_bucket_holds_no_other_up_and_is_told_once_each_way() -> None:
    """Neither what came with it nor what comes while it waits, a full disk between them included."""
    world = World()
    world.held, world.appends = {"1": AWAY}, [FULL]
    async with world.running():
        [waits] = world.put(verified(1))
        for number in (2, 3):
            await world.until(*world.put(verified(number)))
        assert world.told == ["links.blocked disk_full"]
        assert world.linker.trouble.problem is AWAY
        assert waits not in world.handed_on
        world.held = {}
        await world.until(waits)
    assert world.lines == world.committed == ["id-2", "id-3", "id-1"]
    assert world.told == ["links.blocked disk_full", "links.unblocked"]


async def test_a_link_that_comes_while_another_waits_does_not_wait_with_it() -> None:
    woken = asyncio.Event()

    class Asleep(World):
        async def sleep(self, _seconds: float) -> None:
            await woken.wait()

    world = Asleep()
    world.held = {"1": AWAY}
    async with world.running():
        [waits] = world.put(verified(1))
        for number in (2, 3):
            await world.until(*world.put(verified(number)))
        assert waits not in world.handed_on
        world.held = {}
        woken.set()
        await world.until(waits)
    assert world.committed == ["id-2", "id-3", "id-1"]


async def test_a_bug_of_a_presigner_is_its_item_s_problem() -> None:
    world, bug = World(), ZeroDivisionError()
    world.held = {"1": cast("Fault", bug)}
    stopped, linked = await world.link(verified(1), verified(2))
    assert (stopped.problem, linked.problem) == (bug, None)
    assert world.lines == ["id-2"]


async def test_a_version_s_own_refusal_stops_no_other() -> None:
    world = World()
    world.refused = {"1": fault("grant_refused")}
    refused, _ = await world.link(verified(1), verified(2))
    assert isinstance(refused.problem, Fault)
    assert refused.problem.code == "grant_refused"
    assert (refused.version.state, refused.link) == (State.VERIFIED, None)
    assert world.lines == world.published == ["id-2"]


async def test_a_refusal_counts_no_more_once_a_later_try_makes_the_link() -> None:
    """The first try made no line, as the disk was full: the next one asks for all of its links again."""
    world = World()
    world.refused, world.appends = {"1": fault("grant_refused")}, [FULL]
    first, _ = await world.link(verified(1), verified(2))
    assert (first.problem, sorted(world.lines)) == (None, ["id-1", "id-2"])


async def test_a_full_disk_does_not_put_what_waits_for_its_bucket_back_twice() -> None:
    world = World()
    world.held, world.appends = {"1": AWAY}, [FULL, FULL]
    async with world.running():
        [waits], [linked] = world.put(verified(1)), world.put(verified(2))
        await world.until(linked)
        world.held = {}
        await world.until(waits)
        for _ in range(20):
            await asyncio.sleep(0)
    assert sorted(world.lines) == ["id-1", "id-2"]


async def test_a_linker_that_stops_leaves_no_timer_for_what_waits() -> None:
    class Asleep(World):
        async def sleep(self, _seconds: float) -> None:
            await asyncio.Event().wait()

    world = Asleep()
    world.held = {"1": AWAY}
    async with world.running():
        await world.until(*world.put(verified(1), verified(2))[1:])
    await asyncio.sleep(0)
    assert not world.linker._timers


async def test_a_link_for_a_person_is_signed_as_any_other() -> None:
    version = verified(1)
    assert (await make_link(cast("InEffect", World()), version, 900, "/a")).url == granted(
        link_request(version, 900)
    ).url


@pytest.mark.parametrize(("age", "anew"), [(STALE / 2, False), (STALE * 2, True), (-STALE * 2, True)])
async def test_a_link_that_had_to_wait_lives_from_when_it_is_written(age: timedelta, *, anew: bool) -> None:
    """And one that had not keeps its committed date, so that the same URL comes again after a crash."""
    signed_at = utcnow() - age
    version, link = _linked(*await World().link(verified(1, signed_at=signed_at)))
    assert (version.signed_at != signed_at) is anew
    assert version.expires_at == link.expires_at == link.time.replace(microsecond=0) + timedelta(seconds=900)


async def test_a_linker_that_is_stopped_lets_the_line_under_way_be_written_whole() -> None:
    """The file is closed right behind it: a thread that still wrote could write into another one."""
    world = World()
    written = asyncio.Event()

    def slowly(links: Sequence[Link]) -> LinksMark:
        loop.call_soon_threadsafe(running.cancel)
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result()
        world.lines += [link.file_id for link in links]
        loop.call_soon_threadsafe(written.set)
        return LinksMark(1, len(world.lines))

    loop = asyncio.get_running_loop()
    world.append = slowly  # type: ignore[method-assign]  # the disk takes its time
    running = asyncio.create_task(world.linker.run())
    world.put(verified(1))
    await asyncio.gather(running, return_exceptions=True)
    assert world.lines == ["id-1"]
    assert world.committed == []


async def test_a_link_made_again_is_the_same_whatever_it_was_asked_for_then() -> None:
    world = World()
    version, link = _linked(*await world.link(verified(1)))
    again = await world.linker.remake_link(version)
    assert (again.url, again.expires_at) == (link.url, link.expires_at)


async def test_a_link_made_again_waits_for_an_absent_store_and_not_for_a_refusal() -> None:
    """Else a store that is away for a moment after a crash would cost the link beside the file for ever."""
    world = World()
    version, link = _linked(*await world.link(verified(1)))
    world.grants = [fault("server_error"), fault("connection_refused")]
    assert (await world.linker.remake_link(version)).url == link.url
    world.refused[version.key or ""] = fault("key_refused")
    with pytest.raises(FileFault):
        await world.linker.remake_link(version)


def _linked(item: Item) -> tuple[FileVersion, Link]:
    assert item.link is not None
    return item.version, item.link


# --- stable links -----------------------------------------------------------------------------------------------


def stable(number: int, **given: Any) -> FileVersion:
    return verified(number, link_id=f"{number:022}", **given)


async def test_stable_links_are_asked_for_once_a_list_and_the_others_are_signed() -> None:
    world = World()
    items = world.put(stable(1), verified(2), stable(3))
    async with world.running():
        await world.until(*items)
    assert (world.asked, world.batches) == ([2], [3])
    urls = [_linked(item)[1].url for item in items]
    assert [url.partition("//")[2][:20] for url in urls] == [
        "files.example.org/l/",
        urls[1][7:27],
        "files.example.org/l/",
    ]
    assert [f"{number:022}" in url for number, url in zip((1, 2, 3), urls, strict=True)] == [True, False, True]
    assert [item.version.file_id for item in items] == world.lines == world.published


async def test_the_end_of_a_stable_link_counts_from_its_date_and_what_the_broker_tells_is_taken() -> None:
    world, version = World(), stable(1)
    assert version.signed_at is not None
    [item] = await world.link(version)
    assert _linked(item)[1].expires_at == version.signed_at + timedelta(seconds=900)
    world.made = {version.link_id: StableLink(url="https://files.example.org/l/x/y", expires_at=None, state="revoked")}
    [again] = await world.link(version)
    assert (_linked(again)[1].expires_at, _linked(again)[1].url) == (None, "https://files.example.org/l/x/y")


async def test_a_stable_link_without_a_lifetime_has_no_end_and_is_made_again_without_one() -> None:
    world = World()
    [item] = world.put(stable(1))
    item.expires = None
    async with world.running():
        await world.until(item)
    version, link = _linked(item)
    assert version.expires_at is link.expires_at is None
    assert await world.linker.remake_link(version) == link


async def test_while_the_broker_has_no_links_stable_ones_wait_and_presigned_ones_go_on() -> None:
    """Its state is away: the links come by themselves once it is back, and are the ones that have these ids."""
    woken = asyncio.Event()

    class Asleep(World):
        async def sleep(self, _seconds: float) -> None:
            await woken.wait()

    world = Asleep()
    world.away = [fault("presigner_unreachable"), fault("presigner_unreachable")]
    async with world.running():
        [waits], [signed] = world.put(stable(1)), world.put(verified(2))
        await world.until(signed)
        assert waits not in world.handed_on
        assert world.linker.trouble.problem is not None
        woken.set()
        await world.until(waits)
    assert world.lines == world.committed == ["id-2", "id-1"]
    assert world.told == ["links.blocked presigner_unreachable", "links.unblocked"]


@pytest.mark.parametrize("code", ["not_allowed", "bad_broker", "no_stable_links"])
async def test_what_is_no_fault_of_one_file_is_waited_for(code: str) -> None:
    world = World()
    world.refused = {"1": fault(code)}
    await world.link(stable(1))
    assert world.lines == ["id-1"]


async def test_a_link_that_the_broker_refuses_is_its_file_s_problem() -> None:
    world = World()
    world.refused = {"1": fault("outside_prefix")}
    refused, _ = await world.link(stable(1), stable(2))
    assert isinstance(refused.problem, Fault)
    assert refused.problem.code == "outside_prefix"
    assert world.lines == ["id-2"]


async def test_a_stable_link_made_again_is_the_same_whatever_is_away_meanwhile() -> None:
    world = World()
    [item] = await world.link(stable(1))
    version, link = _linked(item)
    world.away = [fault("presigner_unreachable")]
    world.refused = {"1": fault("not_allowed")}
    assert await world.linker.remake_link(version) == link
    world.refused = {"1": fault("outside_prefix")}
    with pytest.raises(FileFault):
        await world.linker.remake_link(version)


async def test_a_disk_that_is_full_makes_no_second_link() -> None:
    world = World()
    world.appends = [FULL, FULL]
    await world.link(stable(1))
    assert len(world.made) == 1
    assert world.lines == ["id-1"]
