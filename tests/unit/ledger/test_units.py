"""The ledger's promises about folders that are linked as a whole."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from presignd.ledger import Ledger, LostUpdate, open_ledger
from presignd.ledger.changes import Claim
from presignd.ledger.units import Marker, Member, NewUnit
from presignd.model import NO_FILE, FileVersion, State
from presignd.states import Event
from tests.versions import LATER, MARK, NOW, PRINT, claim, linking, new

OWN = PRINT._replace(ino=NO_FILE)
FIRST, SECOND = Marker(0, 1 << 64), Marker(0, 2)


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    opened = await open_ledger(tmp_path / "ledger")
    yield opened
    await opened.close(clean=True)


async def verified(ledger: Ledger, *paths: bytes) -> list[FileVersion]:
    await ledger.enqueue([new(path, priority=1) for path in paths])
    claimed = await claim(ledger, "drop", len(paths), LATER)
    return [await ledger.apply(one, Event.VERIFY, checksum="md5:aa", signed_at=NOW) for one in claimed]


def unit(members: list[FileVersion], **more: Any) -> NewUnit:
    made: dict[str, Any] = {
        "watch": "drop",
        "folder": b"shoot",
        "marker": FIRST,
        "made": NOW,
        "members": [member.file_id for member in members],
        "manifest": new(b"shoot", key="shoot/MANIFEST.json", priority=1, fingerprint=OWN),
        "sums": new(b"shoot/", key="shoot/SHA256SUMS", priority=1, fingerprint=OWN),
    }
    return NewUnit(**(made | more))


async def finished(ledger: Ledger, version: FileVersion) -> None:
    (claimed,) = await ledger.claim([Claim(version)])
    assert claimed is not None
    done = await ledger.apply(claimed.version, Event.VERIFY, checksum="md5:bb", signed_at=NOW)
    await ledger.record_linked([linking(done, done_at=NOW)], MARK)


async def test_a_complete_folder_queues_its_two_own_files_in_one_commit(ledger: Ledger) -> None:
    members = await verified(ledger, b"shoot/a", b"shoot/b")
    done = await ledger.units.complete(unit(members), NOW)
    assert [(entry.version.path, entry.version.state) for entry in done] == [
        (b"shoot/", State.QUEUED),
        (b"shoot", State.QUEUED),
    ]
    (found,) = await ledger.units.open("drop")
    assert (found.folder, found.made, found.manifest.path, found.sums.path) == (b"shoot", NOW, b"shoot", b"shoot/")
    assert await ledger.units.open("other") == []
    assert await ledger.units.markers("drop") == {b"shoot": FIRST}
    assert await ledger.units.of_made(found.sums) == await ledger.units.of_made(found.manifest) == found
    assert [one.path for one in await ledger.units.in_state(found, State.VERIFIED, 9)] == [b"shoot/a", b"shoot/b"]
    assert len(await ledger.units.in_state(found, State.VERIFIED, 1)) == 1
    assert [one.path for one in await ledger.units.in_state(found, State.QUEUED, 9)] == [b"shoot/"]
    await ledger.units.close(found)
    assert await ledger.units.open("drop") == []


async def test_what_left_before_it_was_complete_ends_and_what_lies_beside_it_does_not(ledger: Ledger) -> None:
    members = await verified(ledger, b"shoot/a")
    (left,) = await verified(ledger, b"shoot/left")
    await verified(ledger, b"shoot2/a")
    done = await ledger.units.complete(unit(members), NOW)
    assert [(one.version.file_id, one.version.state) for one in done[2:]] == [(left.file_id, State.VANISHED)]


async def test_a_member_that_moved_on_makes_no_unit(ledger: Ledger) -> None:
    """It left its path between the look and the commit."""
    members = await verified(ledger, b"shoot/a", b"shoot/b")
    await ledger.apply(members[0], Event.SUPERSEDE, done_at=NOW)
    with pytest.raises(LostUpdate, match="1 members instead of 2"):
        await ledger.units.complete(unit(members), NOW)
    assert await ledger.units.open("drop") == []
    assert await ledger.by_path("drop", b"shoot") is None


async def test_a_folder_whose_unit_before_is_at_work_has_to_wait(ledger: Ledger) -> None:
    members = await verified(ledger, b"shoot/a")
    await ledger.units.complete(unit(members), NOW)
    await claim(ledger, "drop", 2, LATER)
    with pytest.raises(LostUpdate):
        await ledger.units.complete(unit(members, marker=SECOND), NOW)
    assert await ledger.units.markers("drop") == {b"shoot": FIRST}


async def test_the_newest_unit_counts_and_an_own_file_knows_its_unit(ledger: Ledger) -> None:
    members = await verified(ledger, b"shoot/a")
    first = unit(members)
    await ledger.units.complete(first, NOW)
    for own in (first.sums, first.manifest):
        version = await ledger.by_id(own.file_id)
        assert version is not None
        await finished(ledger, version)
    await ledger.units.complete(unit(members, marker=SECOND), NOW)
    assert await ledger.units.markers("drop") == {b"shoot": SECOND}
    old = await ledger.by_id(first.manifest.file_id)
    assert old is not None
    assert await ledger.units.of_made(old) is None, "nothing is to be made of it any more"
    assert await ledger.units.of_made(members[0]) is None


async def test_sums_are_kept_for_later_units_and_members_come_in_order(ledger: Ledger) -> None:
    members = await verified(ledger, b"shoot/b", b"shoot/a")
    ids = [member.file_id for member in members]
    assert [one.path for one in await ledger.units.without_sha256(ids, 9)] == [b"shoot/a", b"shoot/b"]
    await ledger.units.record_sha256([(ids[0], "bb"), (ids[1], "aa")])
    await ledger.units.record_sha256([(ids[0], "cc")])
    assert await ledger.units.without_sha256(ids, 9) == []
    expected = [
        Member(b"shoot/a", "shoot/a", 5, "md5:aa", "aa"),
        Member(b"shoot/b", "shoot/b", 5, "md5:aa", "cc"),
    ]
    assert await ledger.units.members(ids) == expected
    await ledger.units.complete(unit(members), NOW)
    (found,) = await ledger.units.open("drop")
    assert await ledger.units.members_of(found.id) == expected


async def test_members_whose_files_are_gone_are_left_over_unless_a_unit_has_them(ledger: Ledger) -> None:
    (kept,) = await verified(ledger, b"shoot/a")
    await verified(ledger, b"gone/a")
    await ledger.units.complete(unit([kept]), NOW)
    await ledger.record_gone("drop", [b"shoot", b"gone"], LATER)
    assert [one.path for one in await ledger.units.left("drop", 9)] == [b"gone/a"]


async def test_a_unit_is_forgotten_with_its_manifest(ledger: Ledger) -> None:
    members = await verified(ledger, b"shoot/a")
    made = unit(members)
    await ledger.units.complete(made, NOW)
    for own in (made.sums, made.manifest):
        version = await ledger.by_id(own.file_id)
        assert version is not None
        await finished(ledger, version)
    await ledger.record_gone("drop", [b"shoot"], LATER)
    await ledger.record_announced([made.manifest.file_id])
    assert await ledger.prune(LATER + timedelta(days=1)) == 1
    assert await ledger.units.markers("drop") == {}
