"""The ledger's promises about multipart uploads: parts are durable, belong to one upload, and none is lost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from presignd.ledger import Ledger, LostUpdate, open_ledger
from presignd.model import FileVersion, Part
from presignd.states import UNCLEAN_LIMIT, Event
from tests.versions import LATER, NOW, claim, new

PARTS = [Part(number, 5, f"md5-{number}", f"etag-{number}") for number in (2, 1, 3)]


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    opened = await open_ledger(tmp_path / "ledger")
    yield opened
    await opened.close(clean=True)


async def begun(ledger: Ledger, path: bytes = b"a.bin") -> FileVersion:
    await ledger.enqueue([new(path)])
    (claimed,) = await claim(ledger, "drop", 1, LATER)
    return await ledger.begin_upload(claimed, "upload-1", 5)


async def test_parts_come_back_by_number(ledger: Ledger) -> None:
    version = await begun(ledger)
    for part in PARTS:
        await ledger.record_part(version, part)
    assert await ledger.parts(version) == sorted(PARTS, key=lambda part: part.number)
    assert (version.upload_id, version.part_size) == ("upload-1", 5)


async def test_parts_survive_a_restart_of_the_upload_s_version(ledger: Ledger) -> None:
    version = await begun(ledger)
    await ledger.record_part(version, PARTS[0])
    await ledger.release(unclean=True)
    (again,) = await claim(ledger, "drop", 1, LATER)
    assert again.upload_id == "upload-1"
    assert await ledger.parts(again) == [PARTS[0]]


async def test_a_large_file_that_gets_on_between_unclean_exits_is_never_quarantined_for_them(ledger: Ledger) -> None:
    await begun(ledger)
    for part in PARTS * 4:
        assert await ledger.release(unclean=True) == []
        (version,) = await claim(ledger, "drop", 1, LATER)
        await ledger.record_part(version, part)
    assert await ledger.suspects_left([version.file_id], LATER) == ([], 1)
    for _ in range(UNCLEAN_LIMIT - 1):
        assert await ledger.release(unclean=True) == []
        await claim(ledger, "drop", 1, LATER)
    assert len(await ledger.release(unclean=True)) == 1


async def test_a_part_sent_again_replaces_its_row(ledger: Ledger) -> None:
    version = await begun(ledger)
    await ledger.record_part(version, PARTS[0])
    newer = Part(2, 5, "other", "other")
    await ledger.record_part(version, newer)
    assert await ledger.parts(version) == [newer]


async def test_a_new_upload_has_no_part_of_the_old_one(ledger: Ledger) -> None:
    version = await begun(ledger)
    await ledger.record_part(version, PARTS[0])
    newer = await ledger.begin_upload(version, "upload-2", 7)
    assert await ledger.parts(newer) == []
    with pytest.raises(LostUpdate):
        await ledger.record_part(version, PARTS[1])


@pytest.mark.parametrize("event", [Event.VERIFY, Event.QUARANTINE, Event.SUPERSEDE, Event.VANISH])
async def test_an_upload_past_uploading_is_left_until_it_is_ended(ledger: Ledger, event: Event) -> None:
    version = await begun(ledger)
    await ledger.record_part(version, PARTS[0])
    assert await ledger.uploads_left() == []
    moved = await ledger.apply(version, event)
    assert [left.file_id for left in await ledger.uploads_left()] == [version.file_id]
    ended = await ledger.end_upload(moved)
    assert await ledger.uploads_left() == []
    assert (ended.upload_id, ended.part_size) == ("", 5)
    assert await ledger.parts(ended) == []


async def test_nothing_is_forgotten_that_still_names_an_upload(ledger: Ledger) -> None:
    version = await begun(ledger)
    moved = await ledger.apply(version, Event.VANISH, done_at=NOW)
    await ledger.record_announced([version.file_id])
    await ledger.record_gone("drop", [version.path], NOW)
    assert await ledger.prune(LATER + timedelta(days=9)) == 0
    await ledger.end_upload(moved)
    assert await ledger.prune(LATER + timedelta(days=9)) == 1
