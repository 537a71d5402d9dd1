"""``put``: each client that passes a descriptor gets its link or the cause, and nothing is left behind."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from presignd.config import WatchConfig
from presignd.errors import Fault, Refused
from presignd.ledger import Enqueued, Ledger, open_ledger
from presignd.model import FileVersion, Fingerprint, Link, NewVersion, State
from presignd.pipeline.files.folder import Folder
from presignd.pipeline.put import PutHandler, PutRequest, PutRequests
from presignd.states import Event
from tests.links import link
from tests.versions import MARK, NOW, claim, linking, new


class World:
    """A real ledger, one watch, and a worker in the test's hand."""

    def __init__(self, folder: Path, ledger: Ledger) -> None:
        (folder / "drop").mkdir()
        self.drop, self.ledger = folder / "drop", ledger
        self.watch = WatchConfig(name="drop", path=self.drop, bucket="bucket", max_size=100)
        self.folder = Folder(self.watch)
        self.held = PutRequests()
        self.queued: asyncio.Queue[Enqueued] = asyncio.Queue()
        self.vanished: list[bytes] = []
        self.puts = PutHandler(self.held, ledger, record=self.record, on_vanished=self.note_vanished)

    def note_vanished(self, versions: Sequence[FileVersion]) -> None:
        self.vanished.extend(version.path for version in versions)

    async def record(self, versions: Sequence[NewVersion]) -> None:
        for one in await self.ledger.enqueue(versions):
            if one.superseded:
                self.held.ended([one.superseded])
            if one.version.state is State.QUARANTINED:
                self.held.ended([one.version])
            self.queued.put_nowait(one)

    async def claimed(self) -> FileVersion:
        """Wait until something is queued and claim it."""
        await self.queued.get()
        (version,) = await claim(self.ledger, "drop", 1, NOW)
        return version

    async def upload(self, version: FileVersion) -> None:
        """Take a claimed version through to its link."""
        version = await self.ledger.apply(version, Event.VERIFY, checksum="md5:00", signed_at=NOW)
        (version,) = await self.ledger.record_linked([linking(version, expires_at=NOW)], MARK)
        self.held.linked([link(1)._replace(file_id=version.file_id)])
        await self.ledger.apply(version, Event.FINISH, done_at=NOW)

    def put(self, file: Path, fd: int, *, key: str | None = None, expires: int | None = None) -> asyncio.Task[Link]:
        inside = file.is_relative_to(self.drop)
        path = os.fsencode(file.relative_to(self.drop) if inside else file)
        request = PutRequest(fd, expires, lambda _: None)
        return asyncio.create_task(self.puts.put(request, path, self.watch, folder=self.folder, key=key))


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    ledger = await open_ledger(tmp_path / "ledger")
    made = World(tmp_path, ledger)
    yield made
    made.folder.close()
    await ledger.close(clean=True)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    (tmp_path / "elsewhere").write_bytes(b"content")
    return tmp_path / "elsewhere"


async def test_the_link_comes_back_and_the_descriptor_is_let_go(world: World, elsewhere: Path) -> None:
    with elsewhere.open("rb") as file:
        put = world.put(elsewhere, file.fileno(), expires=60)
        version = await world.claimed()
        assert world.held[version.file_id].fd == file.fileno()
        assert world.held[version.file_id].expires == 60
        await world.upload(version)
        assert (await put).file_id == version.file_id
    assert world.held == {}


async def test_two_puts_of_one_file_each_get_a_link(world: World, elsewhere: Path) -> None:
    """Were they enqueued at once, the second would take the first's place, and that be told of a change."""
    with elsewhere.open("rb") as one, elsewhere.open("rb") as two:
        puts = [world.put(elsewhere, one.fileno()), world.put(elsewhere, two.fileno())]
        for _ in puts:
            await world.upload(await world.claimed())
        first, second = await asyncio.gather(*puts)
    assert first.file_id != second.file_id
    assert not world.puts._turns


async def test_a_put_waits_for_the_version_in_flight_and_then_gets_its_own_link(world: World) -> None:
    file = world.drop / "a"
    file.write_bytes(b"content")
    await world.ledger.enqueue([new(b"a", fingerprint=Fingerprint.of(file.stat()))])
    (by_event,) = await claim(world.ledger, "drop", 1, NOW)
    with file.open("rb") as opened:
        put = world.put(file, opened.fileno())
        await asyncio.sleep(0)
        assert world.queued.empty()
        await world.upload(by_event)
        version = await world.claimed()
        assert version.path == b"a"
        await world.upload(version)
        assert (await put).file_id == version.file_id != by_event.file_id


async def test_a_name_in_the_watch_stands_for_its_file_only_with_that_file_s_descriptor(
    world: World, elsewhere: Path
) -> None:
    """Else whoever may use the socket could have another content recorded for a watched path."""
    (world.drop / "a").write_bytes(b"the watch's own")
    with elsewhere.open("rb") as file:
        put = world.put(world.drop / "a", file.fileno())
        version = await world.claimed()
        assert version.path == os.fsencode(world.drop / "a")
        await world.upload(version)
        await put


async def test_a_client_that_goes_leaves_nothing_behind(world: World, elsewhere: Path) -> None:
    with elsewhere.open("rb") as file:
        put = world.put(elsewhere, file.fileno())
        await world.queued.get()
        put.cancel()
        with pytest.raises(asyncio.CancelledError):
            await put
    assert world.vanished == [os.fsencode(elsewhere)]
    assert await claim(world.ledger, "drop", 1, NOW) == []
    assert world.held == {}


async def test_a_refused_file_from_elsewhere_is_told_of_and_waits_for_nobody(world: World, tmp_path: Path) -> None:
    """No retry can reach it without its descriptor, so it doesn't stay quarantined."""
    large = tmp_path / "large"
    large.write_bytes(bytes(101))
    with large.open("rb") as file, pytest.raises(Refused, match="at most 100"):
        await world.put(large, file.fileno())
    assert await world.ledger.quarantined() == []
    assert world.vanished == [os.fsencode(large)]


async def test_a_refused_file_of_the_watch_stays_quarantined(world: World) -> None:
    large = world.drop / "large"
    large.write_bytes(bytes(101))
    with large.open("rb") as file, pytest.raises(Refused, match="at most 100"):
        await world.put(large, file.fileno())
    assert [version.path for version in await world.ledger.quarantined()] == [b"large"]


async def test_whoever_waits_is_told_that_the_content_changed(world: World, elsewhere: Path) -> None:
    with elsewhere.open("rb") as file:
        put = world.put(elsewhere, file.fileno())
        version = await world.claimed()
        world.held.ended([await world.ledger.apply(version, Event.SUPERSEDE, done_at=NOW)])
        with pytest.raises(Fault, match="changed"):
            await put


@pytest.mark.parametrize("key", ["a//b", "/a", "a/../b", "x" * 1025])
async def test_a_key_no_store_holds_is_refused_before_anything_is_recorded(
    world: World, elsewhere: Path, key: str
) -> None:
    with elsewhere.open("rb") as file, pytest.raises(Fault, match="storable"):
        await world.put(elsewhere, file.fileno(), key=key)
    assert world.queued.empty()
