"""The linker: each line on disk before its commit, once, whatever is unreachable meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from presignd.errors import Fault, FileFault, fault
from presignd.ledger import Ledger
from presignd.links import LinksFile
from presignd.model import FileVersion, Link, LinksMark, State
from presignd.pipeline.finish.link import MANY, STALE, Linker
from presignd.presign import Grant, GrantRequest
from presignd.system.clock import utcnow
from tests.versions import in_state

FULL = fault("disk_full")
AWAY = fault("connection_refused")


def verified(number: int, **given: Any) -> FileVersion:
    now = utcnow()
    version = in_state(State.VERIFIED, b"%d" % number, file_id=f"id-{number}", queued_at=now, signed_at=now)
    return replace(version, **given)


class World:
    """Ledger, links file and presigner; each list holds the faults that its next calls meet."""

    def __init__(self) -> None:
        self.commits: list[Fault] = []
        self.appends: list[Fault] = []
        self.grants: list[Fault] = []
        self.refused: dict[str, Fault] = {}
        self.held: dict[str, Fault] = {}
        self.lines: list[str] = []
        self.batches: list[int] = []
        self.on_sleep: list[asyncio.Event] = []
        self.committed: list[str] = []
        self.told: list[str] = []
        self.linker = Linker(
            cast("Ledger", self),
            cast("LinksFile", self),
            lambda version: f"/{version.file_id}",
            sign=self.grant,
            sign_again=self.grant,
            now=self.now,
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

    async def record_linked(
        self, versions: Sequence[FileVersion], mark: LinksMark, ended: Mapping[str, datetime]
    ) -> list[FileVersion]:
        assert mark.offset == len(self.lines)
        if self.commits:
            raise self.commits.pop(0)
        self.committed += [version.file_id for version in versions]
        return [replace(v, state=State.FINISHED if v.file_id in ended else State.LINKED) for v in versions]

    async def update(self, version: FileVersion, **changes: Any) -> FileVersion:
        return replace(version, **changes)

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

    async def link(self, *versions: FileVersion) -> list[tuple[FileVersion, Link] | BaseException]:
        running = asyncio.create_task(self.linker.run())
        found = await asyncio.gather(*(self.linker.link(one, 900) for one in versions), return_exceptions=True)
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        return found


async def test_in_a_burst_the_next_links_wait_a_moment_for_company() -> None:
    world, slept = World(), asyncio.Event()
    world.on_sleep.append(slept)
    running = asyncio.create_task(world.linker.run())
    await asyncio.gather(*(world.linker.link(verified(number), 900) for number in range(MANY)))
    calls = [asyncio.create_task(world.linker.link(verified(MANY), 900))]
    await slept.wait()
    calls.append(asyncio.create_task(world.linker.link(verified(MANY + 1), 900)))
    await asyncio.gather(*calls)
    running.cancel()
    assert world.batches == [MANY, 2]


async def test_a_link_whose_file_stays_is_finished_by_its_commit() -> None:
    world = World()
    running = asyncio.create_task(world.linker.run())
    (stays, _), (moves, _) = await asyncio.gather(
        world.linker.link(verified(1), 900, finish=True), world.linker.link(verified(2), 900)
    )
    running.cancel()
    assert (stays.state, moves.state) == (State.FINISHED, State.LINKED)


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
    [found] = await world.link(verified(1))
    assert not isinstance(found, BaseException)
    assert world.lines == ["id-1"]
    assert world.told == ["links.blocked no_credentials", "links.unblocked"]


async def test_an_absent_store_never_quarantines_a_verified_file() -> None:
    """The region of a bucket may have to be asked for before the first link after a restart."""
    world = World()
    world.refused = {"1": AWAY}
    [found] = await world.link(verified(1))
    assert not isinstance(found, BaseException)
    assert world.lines == ["id-1"]


async def test_a_link_that_waits_for_its_bucket_holds_no_other_up_and_is_told_once_each_way() -> None:
    """Neither what came with it nor what comes while it waits, a full disk between them included."""
    world = World()
    world.held, world.appends = {"1": AWAY}, [FULL]
    running = asyncio.create_task(world.linker.run())
    waits = asyncio.create_task(world.linker.link(verified(1), 900))
    for number in (2, 3):
        await world.linker.link(verified(number), 900)
    assert world.told == ["links.blocked disk_full"]
    assert world.linker.trouble.problem is AWAY
    assert not waits.done()
    world.held = {}
    await waits
    assert world.lines == world.committed == ["id-2", "id-3", "id-1"]
    assert world.told == ["links.blocked disk_full", "links.unblocked"]
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


async def test_a_link_that_comes_while_another_waits_does_not_wait_with_it() -> None:
    woken = asyncio.Event()

    class Asleep(World):
        async def sleep(self, _seconds: float) -> None:
            await woken.wait()

    world = Asleep()
    world.held = {"1": AWAY}
    running = asyncio.create_task(world.linker.run())
    waits = asyncio.create_task(world.linker.link(verified(1), 900))
    for number in (2, 3):
        async with asyncio.timeout(10):
            await world.linker.link(verified(number), 900)
    assert not waits.done()
    world.held = {}
    woken.set()
    await waits
    assert world.committed == ["id-2", "id-3", "id-1"]
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


async def test_a_bug_of_a_presigner_ends_the_linker_and_so_the_process() -> None:
    world = World()
    world.held = {"1": cast("Fault", ZeroDivisionError())}
    waits = asyncio.create_task(world.linker.link(verified(1), 900))
    await asyncio.sleep(0)
    with pytest.raises(ZeroDivisionError):
        await world.linker.run()
    waits.cancel()


async def test_a_version_s_own_refusal_stops_no_other() -> None:
    world = World()
    world.refused = {"1": fault("grant_refused")}
    refused, found = await world.link(verified(1), verified(2))
    assert isinstance(refused, Fault)
    assert refused.code == "grant_refused"
    assert not isinstance(found, BaseException)
    assert world.lines == ["id-2"]


async def test_a_caller_who_went_stops_no_other() -> None:
    """A worker is cancelled by a drain: whoever shares its batch gets his link, or his refusal, all the same."""
    world = World()
    world.refused = {"2": fault("grant_refused"), "3": fault("grant_refused")}
    calls = [asyncio.create_task(world.linker.link(verified(number), 900)) for number in (1, 2, 3, 4)]
    await asyncio.sleep(0)
    for gone in calls[:2]:
        gone.cancel()
    await asyncio.sleep(0)
    running = asyncio.create_task(world.linker.run())
    refused, found = await asyncio.gather(*calls[2:], return_exceptions=True)
    assert isinstance(refused, Fault)
    assert isinstance(found, tuple)
    assert world.committed == world.lines == ["id-1", "id-4"]
    running.cancel()
    await asyncio.gather(running, *calls, return_exceptions=True)


@pytest.mark.parametrize(("age", "anew"), [(STALE / 2, False), (STALE * 2, True), (-STALE * 2, True)])
async def test_a_link_that_had_to_wait_lives_from_when_it_is_written(age: timedelta, *, anew: bool) -> None:
    """And one that had not keeps its committed date, so that the same URL comes again after a crash."""
    signed_at = utcnow() - age
    [found] = await World().link(verified(1, signed_at=signed_at))
    assert not isinstance(found, BaseException)
    version, link = found
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
    waiting = asyncio.create_task(world.linker.link(verified(1), 900))
    await asyncio.gather(running, return_exceptions=True)
    assert world.lines == ["id-1"]
    assert world.committed == []
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def test_a_link_made_again_is_the_same_whatever_it_was_asked_for_then() -> None:
    world = World()
    [found] = await world.link(verified(1))
    assert not isinstance(found, BaseException)
    version, link = found
    again = await world.linker.remake_link(version)
    assert (again.url, again.expires_at) == (link.url, link.expires_at)


async def test_a_link_made_again_waits_for_an_absent_store_and_not_for_a_refusal() -> None:
    """Else a store that is away for a moment after a crash would cost the link beside the file for ever."""
    world = World()
    [found] = await world.link(verified(1))
    assert not isinstance(found, BaseException)
    version, link = found
    world.grants = [fault("server_error"), fault("connection_refused")]
    assert (await world.linker.remake_link(version)).url == link.url
    world.refused[version.key or ""] = fault("key_refused")
    with pytest.raises(FileFault):
        await world.linker.remake_link(version)
