"""Files that left their folder without an event are noted, and forgotten later; files that only seem away are not."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from presignd.app import upkeep as upkeep_module
from presignd.app.upkeep import note_gone, note_quarantined_gone, upkeep
from presignd.config import WatchConfig
from presignd.ledger import Ledger, open_ledger
from presignd.model import FileVersion, Fingerprint, State
from presignd.pipeline.files.folder import Folder
from presignd.states import Event
from presignd.system.clock import utcnow
from tests.versions import MARK, NOW, claim, linking, new


def written(file: Path) -> Fingerprint:
    file.write_bytes(b"content")
    return Fingerprint.of(file.stat())


class World:
    def __init__(self, root: Path, ledger: Ledger) -> None:
        self.drop, self.ledger = root / "drop", ledger
        self.drop.mkdir()
        self.folder = Folder(WatchConfig(name="drop", path=self.drop, bucket="bucket"))
        self.vanished: list[bytes] = []
        self.heard = asyncio.Event()

    def hear(self, versions: Sequence[FileVersion]) -> None:
        self.vanished += [version.path for version in versions]
        self.heard.set()

    async def uploaded(self, file: Path) -> bytes:
        """Write a file, record it and take it to its end; return its path as the ledger has it."""
        path = await self.queued(file)
        (version,) = await claim(self.ledger, "drop", 1, NOW)
        version = await self.ledger.apply(version, Event.VERIFY)
        (version,) = await self.ledger.record_linked([linking(version)], MARK)
        version = await self.ledger.apply(version, Event.FINISH, done_at=NOW)
        await self.ledger.record_announced([version.file_id])
        return path

    async def queued(self, file: Path) -> bytes:
        path = os.fsencode(file.relative_to(self.drop) if file.is_relative_to(self.drop) else file)
        await self.ledger.enqueue([new(path, key=file.name, fingerprint=written(file))])
        return path

    async def round(self) -> None:
        await note_gone(self.ledger, "drop", self.folder, self.hear)

    async def is_noted(self, path: bytes) -> bool:
        version = await self.ledger.by_path("drop", path)
        return version is not None and version.gone_at is not None


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    ledger = await open_ledger(tmp_path / "ledger")
    made = World(tmp_path, ledger)
    yield made
    made.folder.close()
    await ledger.close(clean=True)


async def test_what_was_deleted_unseen_is_noted_and_forgotten_in_time(world: World) -> None:
    path, kept = await world.uploaded(world.drop / "a"), await world.uploaded(world.drop / "b")
    (world.drop / "a").unlink()
    await world.round()
    assert await world.is_noted(path)
    assert not await world.is_noted(kept)
    assert await world.ledger.prune(utcnow() + timedelta(seconds=1)) == 1
    assert set(await world.ledger.known("drop", [path, kept])) == {kept}


async def test_what_was_still_queued_ends_as_vanished(world: World) -> None:
    path = await world.queued(world.drop / "a")
    (world.drop / "a").unlink()
    await world.round()
    assert world.vanished == [path]


async def test_a_file_made_again_while_its_watch_is_looked_through_stays_queued(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = await world.uploaded(world.drop / "a")
    (world.drop / "a").unlink()
    tell_gone = upkeep_module._record_gone

    async def made_again(*args: Any) -> None:
        fresh = new(path, key="a", fingerprint=written(world.drop / "a"), queued_at=utcnow())
        await world.ledger.enqueue([fresh])
        await tell_gone(*args)

    monkeypatch.setattr(upkeep_module, "_record_gone", made_again)
    await world.round()
    assert world.vanished == []
    version = await world.ledger.by_path("drop", path)
    assert version is not None
    assert version.state is State.QUEUED


async def test_what_could_not_be_finished_may_lie_aside_and_stays_quarantined(world: World) -> None:
    path = await world.queued(world.drop / "a")
    (version,) = await claim(world.ledger, "drop", 1, NOW)
    await world.ledger.apply(version, Event.QUARANTINE, error_code="finish_failed", error="no space left")
    (world.drop / "a").rename(world.drop / f".presignd-{version.file_id}")
    await world.round()
    await note_quarantined_gone(world.ledger, {"drop": world.folder}, world.hear)
    assert world.vanished == []
    assert not await world.is_noted(path)


async def test_a_folder_that_is_away_takes_nothing_with_it(world: World) -> None:
    """Unmounted or renamed: its files are where it is."""
    path = await world.uploaded(world.drop / "a")
    world.drop.rename(world.drop.with_name("elsewhere"))
    await world.round()
    assert not await world.is_noted(path)
    world.drop.mkdir()
    await world.round()
    assert not await world.is_noted(path)


async def test_a_folder_that_comes_back_while_it_is_looked_through_takes_nothing_with_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files were looked for where nothing was mounted; by the end the root is there, another directory."""
    path = await world.queued(world.drop / "a")
    there = world.drop.rename(world.drop.with_name("there"))
    world.drop.mkdir()
    assert world.folder.reopen()
    missing = world.folder.missing

    def mounted_meanwhile(paths: Iterable[bytes]) -> list[bytes]:
        found = missing(paths)
        world.drop.rmdir()
        there.rename(world.drop)
        assert world.folder.reopen()
        return found

    monkeypatch.setattr(world.folder, "missing", mounted_meanwhile)
    await world.round()
    assert not await world.is_noted(path)
    assert world.vanished == []


async def test_a_quarantined_file_that_is_gone_ends_though_no_event_told_of_it(world: World) -> None:
    """On a network folder none does. One that went while it was in flight was noted then, and told of no more."""
    names = ["unseen", "in flight", "there"]
    for name in names:
        await world.queued(world.drop / name)
    for version in await claim(world.ledger, "drop", 3, NOW):
        if version.path == b"in flight":
            await world.ledger.record_gone("drop", [version.path], NOW)
        await world.ledger.apply(version, Event.QUARANTINE, error_code="rejected", error="no")
    round_and_round = asyncio.create_task(
        upkeep(world.ledger, {"drop": world.folder}, 3600.0, world.hear, look_seconds=0.01, look_share=1)
    )
    (world.drop / "in flight").unlink()
    async with asyncio.timeout(20):
        await world.heard.wait()
        world.heard.clear()
        (world.drop / "unseen").unlink()
        await world.heard.wait()
    round_and_round.cancel()
    await asyncio.gather(round_and_round, return_exceptions=True)
    await note_quarantined_gone(world.ledger, {"drop": world.folder}, world.hear)
    assert world.vanished == [b"in flight", b"unseen"]
    assert [version.path for version in await world.ledger.in_state(State.QUARANTINED)] == [b"there"]


async def test_what_went_with_its_directory_is_noted_and_what_lies_beside_is_not(world: World) -> None:
    for directory in ("d", "e"):
        (world.drop / directory).mkdir()
    names = ("d/a", "d/b", "d.txt", "e/a", "e/b")
    paths = [await world.uploaded(world.drop / name) for name in names]
    shutil.rmtree(world.drop / "d")
    (world.drop / "e" / "b").unlink()
    await world.round()
    assert [name for name, path in zip(names, paths, strict=True) if await world.is_noted(path)] == [
        "d/a",
        "d/b",
        "e/b",
    ]


@pytest.mark.parametrize("broken", ["open", "stat", "lstat"])
async def test_what_can_not_be_looked_at_is_no_deleted_file(
    world: World, monkeypatch: pytest.MonkeyPatch, broken: str, tmp_path: Path
) -> None:
    """A disk with errors, or a folder whose rights were taken away: its files are there."""
    (world.drop / "d").mkdir()
    paths = [await world.uploaded(world.drop / "d" / "a"), await world.uploaded(tmp_path / "put")]
    real = getattr(os, broken)

    def refused(path: Any, *more: Any, **given: Any) -> Any:
        if path != world.folder.root:  # the folder itself is there
            raise OSError(errno.EIO, "Input/output error")
        return real(path, *more, **given)

    with monkeypatch.context() as patched:
        patched.setattr(os, broken, refused)
        await world.round()
    assert not any([await world.is_noted(path) for path in paths])


async def test_a_file_put_from_elsewhere_is_remembered_as_long_as_it_is_there(world: World, tmp_path: Path) -> None:
    """Else every put would be remembered for ever."""
    gone, kept = await world.uploaded(tmp_path / "gone"), await world.uploaded(tmp_path / "kept")
    (tmp_path / "gone").unlink()
    await world.round()
    assert await world.is_noted(gone)
    assert not await world.is_noted(kept)


async def test_a_put_under_way_goes_on_though_its_path_is_gone(world: World, tmp_path: Path) -> None:
    path = await world.queued(tmp_path / "a")
    (tmp_path / "a").unlink()
    await world.round()
    assert world.vanished == []
    assert not await world.is_noted(path)
