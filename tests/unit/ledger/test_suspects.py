"""What the ledger remembers of unclean exits: which versions were in flight, and which was alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from presignd.ledger import Ledger, open_ledger
from presignd.ledger.changes import Claim
from presignd.ledger.queries import LONGEST
from presignd.model import FileVersion
from presignd.states import UNCLEAN_LIMIT, Event
from tests.versions import LATER, NOW, claim, new


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    opened = await open_ledger(tmp_path / "ledger")
    yield opened
    await opened.close(clean=True)


async def queued(ledger: Ledger, path: bytes = b"a.txt", **given: Any) -> FileVersion:
    (recorded,) = await ledger.enqueue([new(path, **given)])
    return recorded.version


async def test_an_exit_counts_against_no_version_that_was_not_alone(ledger: Ledger) -> None:
    for number in range(3):
        await queued(ledger, b"%d" % number)
    for _ in range(3 * UNCLEAN_LIMIT):
        assert len(await claim(ledger, "drop", 3, NOW)) == 3
        assert await ledger.release(unclean=True) == []
    assert len(await claim(ledger, "drop", 3, NOW)) == 3


async def test_one_that_kills_among_others_is_quarantined_by_the_exits_at_which_it_was_alone(ledger: Ledger) -> None:
    versions = [await queued(ledger, b"%d" % number) for number in range(3)]
    await claim(ledger, "drop", 3, NOW)
    assert await ledger.release(unclean=True) == []
    assert await ledger.suspects() == [version.file_id for version in versions]
    for exits in range(1, UNCLEAN_LIMIT + 1):
        await claim(ledger, "drop", 1, NOW)
        stopped = await ledger.release(unclean=True)
        assert [version.file_id for version in stopped] == [versions[0].file_id] * (exits == UNCLEAN_LIMIT)
    assert "alone" in stopped[0].error
    assert await ledger.suspects() == [version.file_id for version in versions[1:]]


async def test_a_clean_end_makes_no_suspect_and_clears_none(ledger: Ledger) -> None:
    version = await queued(ledger)
    await claim(ledger, "drop", 1, NOW)
    await ledger.release(unclean=False)
    assert await ledger.suspects() == []
    for unclean in (True, False):
        await claim(ledger, "drop", 1, NOW)
        await ledger.release(unclean=unclean)
        assert await ledger.suspects() == [version.file_id]


async def test_suspects_that_were_alone_less_often_come_first_then_by_priority_and_age(ledger: Ledger) -> None:
    paths = {b"alone": 0, b"backlog": 1, b"older": 0, b"newer": 0, b"none": 0}
    versions = {path: await queued(ledger, path, priority=priority) for path, priority in paths.items()}
    for path, unclean in ((b"alone", 2), (b"backlog", 1), (b"older", 1), (b"newer", 1)):
        await ledger.update(versions[path], unclean=unclean)
    expected = [versions[path].file_id for path in (b"older", b"newer", b"backlog", b"alone")]
    assert await ledger.suspects() == expected


async def suspect(ledger: Ledger, path: bytes = b"a.txt") -> FileVersion:
    """Return a claimed version that was in flight at an unclean exit."""
    await queued(ledger, path)
    await claim(ledger, "drop", 1, LATER)
    await ledger.release(unclean=True)
    (claimed,) = await claim(ledger, "drop", 1, LATER)
    return claimed


async def is_suspect(ledger: Ledger, version: FileVersion) -> bool:
    left, _ = await ledger.suspects_left([version.file_id], LATER)
    return [one.version.file_id for one in left] == [version.file_id]


async def test_a_suspect_is_cleared_once_it_is_verified(ledger: Ledger) -> None:
    version = await suspect(ledger)
    assert await is_suspect(ledger, version)
    moved = await ledger.apply(version, Event.VERIFY)
    assert moved == await ledger.by_id(version.file_id)
    assert moved.unclean == 0
    assert not await is_suspect(ledger, version)


async def test_neither_a_retry_nor_another_key_clears_a_suspect(ledger: Ledger) -> None:
    version = await suspect(ledger)
    named = await ledger.assign_key(version, "other", fresh=False, next_key=True)
    assert named is not None
    assert await is_suspect(ledger, version)
    await ledger.apply(named, Event.RETRY, not_before=None)
    assert await is_suspect(ledger, version)


@pytest.mark.parametrize("event", [Event.VANISH, Event.SUPERSEDE, Event.QUARANTINE])
async def test_a_version_that_ended_or_stopped_is_no_suspect(ledger: Ledger, event: Event) -> None:
    version = await suspect(ledger)
    await ledger.apply(version, event)
    assert not await is_suspect(ledger, version)
    assert await ledger.suspects() == []


async def test_suspects_are_told_with_whether_they_are_due_and_how_many_upload(ledger: Ledger) -> None:
    names = (b"due", b"later", b"backlog", b"uploading", b"innocent")
    versions = {name: await queued(ledger, name, priority=name == b"backlog") for name in names}
    (claimed,) = await ledger.claim([Claim(versions[b"uploading"])])
    assert claimed is not None
    versions[b"uploading"] = claimed.version
    for name in names[:-1]:
        versions[name] = await ledger.update(versions[name], unclean=1)
    await ledger.update(versions[b"later"], not_before=LATER)
    ids = [version.file_id for version in versions.values()]

    async def due(now: datetime, max_priority: int | None = None) -> dict[bytes, bool]:
        left, uploading = await ledger.suspects_left(ids, now, max_priority=max_priority)
        assert uploading == 1
        return {one.version.path: one.due for one in left}

    assert await due(NOW) == {b"due": True, b"later": False, b"backlog": True, b"uploading": False}
    assert (await due(LATER))[b"later"]
    assert (await due(NOW - LONGEST))[b"later"], "the clock was set back"
    assert not (await due(NOW, max_priority=0))[b"backlog"]
    assert await ledger.suspects_left([ids[-1]], NOW) == ([], 1)
