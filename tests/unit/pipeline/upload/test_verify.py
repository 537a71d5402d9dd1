"""What was sent is compared with its file by path; a receipt that can't be recorded stops its version alone."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest

from presignd.config import WatchConfig
from presignd.errors import ChangedFault, Fault, fault
from presignd.ledger import Ledger, LostUpdate
from presignd.ledger.changes import Change
from presignd.model import FileVersion, Fingerprint, State
from presignd.pipeline.faults import UploadFaults
from presignd.pipeline.files.folder import Folder
from presignd.pipeline.put import PutRequests
from presignd.pipeline.stage import Item, Receipt
from presignd.pipeline.upload.verify import Verifier
from tests.versions import NOW, in_state

CONTENT = b"content"


class World:
    """A folder, and a verifier whose ledger refuses some versions; of ``faults`` and ``verified``, what they take."""

    def __init__(self, root: Path) -> None:
        root.mkdir()
        self.root = root
        self.refused: set[bytes] = set()
        self.stopped: list[tuple[bytes, Exception]] = []
        self.done: list[Item] = []
        folder = Folder(WatchConfig(name="drop", path=root, bucket="bucket"))
        self.verifier = Verifier(
            {"drop": folder},
            cast("Ledger", self),
            puts=PutRequests(),
            faults=cast("UploadFaults", self),
            now=lambda: NOW,
            gives_stable_links=self.gives_stable_links,
            verified=self.done.extend,
        )
        self.stable: bool | Fault = False

    # --- the presigner ---
    async def gives_stable_links(self, watch: str) -> bool:
        assert watch == "drop"
        if isinstance(self.stable, Fault):
            raise self.stable
        return self.stable

    # --- the ledger ---
    async def apply_all(self, changes: Sequence[Change]) -> list[FileVersion]:
        if self.refused & {change.version.path for change in changes}:
            raise LostUpdate("it moved on")
        return [change.version._replace(state=State.VERIFIED, **change.fields) for change in changes]

    # --- the faults ---
    async def handle(self, item: Item, problem: Exception) -> None:
        self.stopped.append((item.version.path, problem))

    # --- the test's hand ---
    def sent(self, name: bytes) -> Item:
        """Return an item whose file was written and sent."""
        path = self.root / os.fsdecode(name)
        path.write_bytes(CONTENT)
        fingerprint = Fingerprint.of(path.stat())
        receipt = Receipt(fingerprint, f"md5:{hashlib.md5(CONTENT).hexdigest()}", 0, "etag", "", adopted=False)
        version = in_state(State.UPLOADING, name, file_id=os.fsdecode(name), fingerprint=fingerprint)
        return Item(version, receipt=receipt)

    async def verify(self, *items: Item) -> list[bytes]:
        """Verify items as one list; return the paths of those that were verified."""
        self.verifier.queue.put_all(items)
        running = asyncio.create_task(self.verifier.run())
        async with asyncio.timeout(10):
            while len(self.done) + len(self.stopped) < len(items):  # noqa: ASYNC110 - the stage looks in a thread
                await asyncio.sleep(0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return [item.version.path for item in self.done]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "drop")


async def test_what_is_as_it_was_sent_is_verified_as_one_list(world: World) -> None:
    assert await world.verify(*(world.sent(b"%d" % number) for number in range(5))) == [b"0", b"1", b"2", b"3", b"4"]
    assert {(item.version.state, item.version.signed_at) for item in world.done} == {(State.VERIFIED, NOW)}


async def test_the_id_of_a_stable_link_is_committed_with_the_receipt(world: World) -> None:
    world.stable = True
    await world.verify(world.sent(b"a"), world.sent(b"b"))
    ids = [item.version.link_id for item in world.done]
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{22}", link_id) for link_id in ids)
    assert len({*ids}) == 2


async def test_a_version_whose_link_is_presigned_now_loses_the_id_of_an_earlier_try(world: World) -> None:
    item = world.sent(b"a")
    item.version = item.version._replace(link_id="m" * 22)
    await world.verify(item)
    assert item.version.link_id == ""


async def test_while_nobody_can_tell_the_kind_of_link_a_version_waits_as_for_a_grant(world: World) -> None:
    world.stable = fault("presigner_unreachable")
    assert await world.verify(world.sent(b"a"), world.sent(b"b")) == []
    assert world.stopped == [(b"a", world.stable), (b"b", world.stable)]


async def test_a_file_that_is_gone_leaves_its_object_verified(world: World) -> None:
    item = world.sent(b"a")
    (world.root / "a").unlink()
    assert await world.verify(item) == [b"a"]


async def test_a_chmod_is_no_change_and_its_fingerprint_is_recorded(world: World) -> None:
    item = world.sent(b"a")
    (world.root / "a").chmod(0o600)
    (world.root / "a").chmod(0o640)
    assert await world.verify(item) == [b"a"]
    assert item.version.fingerprint == Fingerprint.of((world.root / "a").stat())


@pytest.mark.parametrize("content", [b"longer content", b"CONTENT"], ids=["another size", "the same size and time"])
async def test_another_content_is_a_changed_file_and_stops_it_alone(world: World, content: bytes) -> None:
    changed, other = world.sent(b"a"), world.sent(b"b")
    path = world.root / "a"
    times = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert await world.verify(changed, other) == [b"b"]
    [(stopped, problem)] = world.stopped
    assert stopped == b"a"
    assert isinstance(problem, ChangedFault)


async def test_a_file_that_goes_between_two_looks_leaves_its_object_verified(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = world.sent(b"a")
    path = world.root / "a"
    path.chmod(0o600)
    stat = Folder.stat

    def then_gone(folder: Folder, name: bytes) -> os.stat_result:
        found = stat(folder, name)
        path.unlink()
        return found

    monkeypatch.setattr(Folder, "stat", then_gone)
    assert await world.verify(item) == [b"a"]


async def test_a_receipt_that_can_not_be_recorded_stops_its_version_alone(world: World) -> None:
    items = [world.sent(name) for name in (b"a", b"b", b"c")]
    world.refused = {b"b"}
    assert await world.verify(*items) == [b"a", b"c"]
    [(stopped, problem)] = world.stopped
    assert (stopped, type(problem)) == (b"b", LostUpdate)


async def test_what_its_sender_compared_is_not_looked_at_again(world: World) -> None:
    item = world.sent(b"a")
    assert item.receipt is not None
    item.receipt = item.receipt._replace(compared=True)
    (world.root / "a").write_bytes(b"changed since: an event tells so")
    assert await world.verify(item) == [b"a"]
