"""Finishing: ends are recorded as a list, and what fails stops or delays its version alone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from presignd.config import WatchConfig
from presignd.errors import Fault, fault
from presignd.ledger import LostUpdate
from presignd.ledger.changes import Change
from presignd.model import FileVersion, State
from presignd.pipeline.files.folder import Folder
from presignd.pipeline.finish import finisher as module
from presignd.pipeline.finish.finisher import Finisher
from presignd.pipeline.finish.remove import Finished, FinishOutcome
from presignd.pipeline.in_effect import Pauses, Shared
from presignd.pipeline.stage import Item
from presignd.states import Event
from tests.links import link
from tests.versions import in_state


class World:
    """A finisher of one watch that deletes; its ledger refuses some versions, its link files meet some faults."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.refused: set[bytes] = set()
        self.faults: list[Fault] = []
        self.newer: dict[str, Any] = {}
        self.announced: list[bytes] = []
        self.stopped: list[bytes] = []
        self.told: list[str] = []
        self.left: list[Item] = []
        (folder / "drop").mkdir()
        watch = WatchConfig(
            name="drop", path=folder / "drop", bucket="bucket", after="delete", link_file="{name}.link.txt"
        )
        stages = SimpleNamespace(ledger=self, linker=self, announcer=self)
        stages.submit, stages.pauses = lambda *_: None, Pauses(finish=0.0)
        self.finisher = Finisher([watch], {"drop": Folder(watch)}, cast("Shared", stages), self.left.extend)
        monkeypatch.setattr(module, "keep_move_or_delete", lambda *_: Finished(FinishOutcome.DELETED))
        monkeypatch.setattr(module, "write_link_file", self.write)

    def write(self, *_: object) -> bool:
        if self.faults:
            raise self.faults.pop()
        return True

    async def apply_all(self, changes: Sequence[Change]) -> list[FileVersion]:
        if self.refused & {change.version.path for change in changes}:
            raise LostUpdate("it moved on")
        return [change.version._replace(state=State.FINISHED) for change in changes]

    async def by_path(self, _watch: str, path: bytes) -> FileVersion:
        return linked(path)._replace(**self.newer)

    async def remake_link(self, _version: FileVersion) -> Any:
        return link(1)

    async def by_id(self, _file_id: str) -> None:
        return None

    async def apply(self, version: FileVersion, event: Event, **_: Any) -> FileVersion:
        assert event is Event.QUARANTINE
        return version

    def quarantined(self, version: FileVersion, _exception: str) -> None:
        self.stopped.append(version.path)

    def done(self, versions: Sequence[FileVersion]) -> None:
        self.announced += [version.path for version in versions]

    def event(self, name: str, _version: FileVersion, *, level: str, **_: Any) -> None:
        self.told.append(f"{level} {name}")


def linked(path: bytes, state: State = State.LINKED) -> FileVersion:
    return in_state(state, path, file_id=path.decode())


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


async def finished(world: World, items: Sequence[Item]) -> None:
    loops = [asyncio.create_task(world.finisher.run("drop")), asyncio.create_task(world.finisher.record())]
    world.finisher.take(items)
    async with asyncio.timeout(10):
        while len(world.left) < len(items):  # noqa: ASYNC110 - each file is handled in a thread
            await asyncio.sleep(0)
    for loop in loops:
        loop.cancel()
    await asyncio.gather(*loops, return_exceptions=True)


async def test_an_end_that_can_not_be_recorded_stops_its_version_alone(world: World) -> None:
    world.refused = {b"b"}
    await finished(world, [Item(linked(name), link=link(1)) for name in (b"a", b"b", b"c")])
    assert (sorted(world.announced), world.stopped, world.finisher.waiting) == ([b"a", b"c"], [b"b"], {})


async def test_the_ends_of_many_are_recorded_as_a_list_of_which_each_may_fail_alone(world: World) -> None:
    world.refused = {b"b"}
    items = [Item(linked(name), link=link(1)) for name in (b"a", b"b", b"c")]
    jobs = [world.finisher._job(item) for item in items]
    await world.finisher._record(jobs)
    assert (world.announced, world.stopped) == ([b"a", b"c"], [b"b"])


async def test_a_link_file_is_rewritten_once_its_fault_has_passed(world: World) -> None:
    world.faults = [fault("disk_full"), fault("disk_full")]
    assert await world.finisher.rewrite_link_file(linked(b"a", State.FINISHED))
    assert (world.faults, world.told) == ([], ["warning link_file.failed"])


async def test_a_link_file_is_not_rewritten_where_the_path_has_a_newer_version(world: World) -> None:
    world.newer = {"file_id": "newer"}
    assert not await world.finisher.rewrite_link_file(linked(b"a", State.FINISHED))


async def test_a_version_that_is_not_finished_has_no_link_file_to_rewrite(world: World) -> None:
    world.faults = [fault("disk_full")]
    assert await world.finisher.rewrite_link_file(linked(b"a"))
    assert len(world.faults) == 1, "nothing was written"


def test_a_file_that_was_gone_is_looked_at_again() -> None:
    job = module._Job(Item(linked(b"a")), needs_link_file=False, pause=0.0, left_out=True)
    assert job.candidate == b"a"
