"""One ``file.done`` for each version, after its commit, with the contract's fields."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, cast

import pytest

from presignd.config import LogConfig
from presignd.ledger import Ledger
from presignd.model import FileVersion, Fingerprint, State
from presignd.pipeline.announce import Announcer, shown_path
from presignd.telemetry import log
from tests.links import link
from tests.versions import NOW, in_state

Lines = Callable[[], list[dict[str, Any]]]

DONE = in_state(
    State.FINISHED,
    b"a/caf\xe9.txt",
    file_id="id-1",
    key="a.txt",
    fingerprint=Fingerprint(1, 0, 1, 1),
    attempt=2,
    checksum="md5:00",
    etag="e",
    done_at=NOW + timedelta(seconds=1.5),
    expires_at=NOW + timedelta(hours=1),
)


class World:
    def __init__(self, *unsaid: FileVersion) -> None:
        self.unsaid, self.recorded, self.ended = list(unsaid), list[str](), list[str]()
        self.announcer = Announcer(cast("Ledger", self), {"drop": b"/srv/drop"}, self.hear)

    def hear(self, versions: Sequence[FileVersion]) -> None:
        self.ended += [version.file_id for version in versions]

    async def unannounced(self) -> list[FileVersion]:
        return self.unsaid

    async def record_announced(self, file_ids: Sequence[str]) -> None:
        self.recorded += file_ids


@pytest.fixture(autouse=True)
def lines() -> Lines:
    """Set the log up as a daemon does; return its events."""
    stream = io.StringIO()
    log.setup(LogConfig(format="json"), stream=stream)
    return lambda: [json.loads(line) for line in stream.getvalue().splitlines()]


def said(version: FileVersion, lines: Lines) -> dict[str, Any]:
    World().announcer.done([version])
    [event] = lines()
    return event


def test_the_fields_are_the_contract_s_in_its_order(lines: Lines) -> None:
    event = said(DONE, lines)
    assert event.pop("time").endswith("Z")
    assert list(event.items()) == list(
        {
            "level": "info",
            "event": "file.done",
            "file_id": "id-1",
            "watch": "drop",
            "path": "/srv/drop/a/caf\\xe9.txt",
            "bucket": "bucket",
            "key": "a.txt",
            "size": 0,
            "checksum": "md5:00",
            "etag": "e",
            "attempt": 2,
            "duration_ms": 1500,
            "status": "linked",
            "expires_at": "2026-03-04T06:06:07.891011Z",
        }.items()
    )


@pytest.mark.parametrize(
    ("version", "status"),
    [
        (DONE, "linked"),
        (DONE._replace(adopted=True), "adopted"),
        (DONE._replace(state=State.VANISHED, expires_at=None), "vanished"),
        (DONE._replace(state=State.SUPERSEDED, expires_at=None), "superseded"),
    ],
)
def test_the_status_says_how_it_ended(version: FileVersion, status: str, lines: Lines) -> None:
    assert said(version, lines)["status"] == status


def test_a_clock_that_was_set_back_makes_no_negative_duration(lines: Lines) -> None:
    assert said(DONE._replace(done_at=NOW - timedelta(hours=1)), lines)["duration_ms"] == 0


async def test_what_ended_since_the_start_is_not_said_again(lines: Lines) -> None:
    """A command's file may end before the start has looked for what the last run left."""
    before = DONE._replace(file_id="id-0")
    world = World(before, DONE)
    world.announcer.done([DONE])
    await world.announcer.replay()
    assert [(line["file_id"], "replayed" in line) for line in lines()] == [("id-1", False), ("id-0", True)]
    assert sorted(world.recorded) == ["id-0", "id-1"]


class SlowWorld(World):
    async def record_announced(self, file_ids: Sequence[str]) -> None:
        await asyncio.sleep(0)
        await super().record_announced(file_ids)


async def test_what_is_said_while_others_are_recorded_is_recorded_too() -> None:
    world = SlowWorld()
    world.announcer.done([DONE])
    both = [asyncio.ensure_future(world.announcer.flush()) for _ in range(2)]
    await asyncio.sleep(0)
    world.announcer.done([DONE._replace(file_id="id-2")])
    await asyncio.gather(*both)
    await world.announcer.flush()
    assert {*world.recorded} == {"id-1", "id-2"}


async def test_what_was_said_is_recorded_many_at_a_time_and_once() -> None:
    world = World()
    recording = asyncio.create_task(world.announcer.run())
    world.announcer.done([DONE, DONE._replace(file_id="id-2")])
    while len(world.recorded) < 2:  # noqa: ASYNC110 - turns of the loop, no time
        await asyncio.sleep(0)
    recording.cancel()
    await asyncio.gather(recording, return_exceptions=True)
    await world.announcer.flush()
    assert world.recorded == world.ended == ["id-1", "id-2"]


async def test_what_an_earlier_run_may_not_have_said_is_said_again_as_such(lines: Lines) -> None:
    """Its duration would count the time that nothing ran."""
    world = World(DONE)
    await world.announcer.replay()
    await world.announcer.flush()
    [event] = lines()
    assert event["replayed"] is True
    assert event["file_id"] == "id-1"
    assert "duration_ms" not in event
    assert world.recorded == ["id-1"]


async def test_what_the_log_has_no_room_for_or_has_not_passed_on_is_not_recorded_as_said() -> None:
    """The next start says it again: a log that was stuck has kept it from everyone."""
    reader, writer = os.pipe()
    with os.fdopen(writer, "w", encoding="utf-8") as stream, os.fdopen(reader, "rb") as heard:
        os.set_blocking(writer, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writer, bytes(4096))
        os.set_blocking(writer, True)
        log.setup(LogConfig(format="json"), stream=stream)
        world = World()
        world.announcer.done([DONE])
        assert not await world.announcer.flush(0)
        assert world.recorded == []
        log._outputs[-1].writer._room = 0
        world.announcer.done([DONE._replace(file_id="id-2")])
        heard.read1()
        assert await world.announcer.flush(30)
        assert world.recorded == ["id-1"]


async def test_what_a_full_disk_refused_is_not_recorded_as_said() -> None:
    with open("/dev/full", "w", encoding="utf-8") as stream:  # noqa: PTH123, ASYNC230 - a device
        log.setup(LogConfig(format="json"), stream=stream)
        world = World()
        world.announcer.done([DONE])
        assert await world.announcer.flush(30)
        with open(os.devnull, "wb") as room:  # noqa: PTH123, ASYNC230 - a device
            os.dup2(room.fileno(), stream.fileno())
        world.announcer.done([DONE._replace(file_id="id-2")])
        await world.announcer.flush(30)
        world.announcer.done([DONE._replace(file_id="id-3")])
        await world.announcer.flush(30)
        assert world.recorded == ["id-2", "id-3"]


async def test_below_the_level_of_the_log_what_ended_is_read() -> None:
    log.setup(LogConfig(level="warning"), stream=io.StringIO())
    world = World(DONE)
    await world.announcer.replay()
    assert world.recorded == ["id-1"]


def test_a_quarantined_file_is_told_with_cause_and_fix_and_is_no_end(lines: Lines) -> None:
    world = World()
    stopped = DONE._replace(state=State.QUARANTINED, error_code="too_large", error="too large: 6 GiB")
    world.announcer.quarantined(stopped)
    [event] = lines()
    assert (event["event"], event["level"]) == ("file.quarantined", "error")
    assert (event["error_code"], event["error"]) == ("too_large", "too large: 6 GiB")
    assert event["fix"] == "raise the watch's max_size, or split the file"
    assert world.ended == ["id-1"]
    assert world.recorded == []


def test_a_put_from_elsewhere_is_shown_by_its_own_path() -> None:
    assert shown_path(b"/srv/drop", b"/home/me/a.txt") == "/home/me/a.txt"


async def test_replaying_waits_for_a_stuck_log_once_and_not_for_each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    world, waited = World(*[DONE._replace(file_id=f"id-{number}") for number in range(3000)]), list[float]()

    async def stuck(seconds: float) -> bool:
        waited.append(seconds)
        return False

    monkeypatch.setattr(world.announcer, "flush", stuck)
    await world.announcer.replay()
    assert len(waited) > 1
    assert waited[0] > 0
    assert set(waited[1:]) == {0.0}


def test_a_created_link_is_logged_without_itself_and_with_who_asked_for_it(lines: Lines) -> None:
    World().announcer.linked([link(1), link(2)], disclose=False, by_uid=1000)
    first, second = lines()
    assert [(event["event"], event["file_id"]) for event in (first, second)] == [
        ("link.created", "id-000001"),
        ("link.created", "id-000002"),
    ]
    assert (first["expires_at"], first["by_uid"]) == (second["expires_at"], 1000)
    assert "Signature" not in str([first, second])


def test_a_link_is_in_the_log_only_where_that_is_switched_on(lines: Lines) -> None:
    World().announcer.linked([link(1)], disclose=True)
    [event] = lines()
    assert event["url"] == link(1).url
    assert "by_uid" not in event


def test_a_version_from_before_ends_were_dated_counts_for_no_duration(lines: Lines) -> None:
    event = said(DONE._replace(done_at=None), lines)
    assert "duration_ms" not in event
