"""A reloaded configuration: what it changes, what it keeps, and when it is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from presignd.config import Config, LinksConfig
from presignd.errors import UsageError
from presignd.model import State
from tests.faulty_s3 import FOREVER, FaultyS3
from tests.running import Running, config, running, watch

SLOW = {"max_rate": 100_000, "multipart_threshold": "5GiB"}
"""An upload of 300 kB takes some three seconds by this."""


class Reloadable:
    """A daemon, and the configuration that it finds when it reads it again."""

    def __init__(self, first: Config) -> None:
        self.found: Config | Exception = first
        self.daemon: Running

    def load(self) -> Config:
        if isinstance(self.found, Exception):
            raise self.found
        return self.found

    async def reload(self, found: Config | Exception, said: str = "config.reloaded") -> dict[str, Any]:
        """Reload ``found``; return the event that reports it."""
        before = len(self.daemon.events(said))
        self.found = found
        self.daemon.reload.set()
        return (await self.daemon.said_by_now(said, before + 1))[-1]


@asynccontextmanager
async def reloadable(first: Config) -> AsyncIterator[Reloadable]:
    reloading = Reloadable(first)
    async with running(first, load=reloading.load) as reloading.daemon:
        await reloading.daemon.said_by_now("daemon.ready")
        yield reloading


async def in_flight(daemon: Running) -> None:
    await daemon.until(lambda: any(each.sent for each in daemon.view.in_flight()), "an upload in flight")


async def test_a_new_watch_is_watched_and_the_others_notice_nothing(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    one, two = watch(tmp_path), watch(tmp_path, "two", key="two/{path}")
    async with reloadable(config(tmp_path, faulty_s3, one)) as it:
        it.daemon.drop("before", watch="two")
        said = await it.reload(config(tmp_path, faulty_s3, one, two))
        assert (said["added"], said["removed"], said["changed"]) == (["two"], [], [])
        it.daemon.drop("after", watch="two")
        it.daemon.drop("old")
        await it.daemon.done(3)
        started = [event["watch"] for event in it.daemon.events("watch.started")]
        assert started == ["drop", "two"]
        assert sorted(it.daemon.links()) == ["old", "two/after", "two/before"]


async def test_an_upload_in_flight_goes_on_untouched_while_everything_changes(
    faulty_s3: FaultyS3, tmp_path: Path
) -> None:
    async with reloadable(config(tmp_path, faulty_s3, upload=SLOW)) as it:
        it.daemon.drop("large", b"x" * 300_000)
        await in_flight(it.daemon)
        said = await it.reload(config(tmp_path, faulty_s3, watch(tmp_path, key="new/{path}")))
        assert said["changed"] == ["drop"]
        assert len(it.daemon.pipeline.in_effect.works[1:]) == 1
        it.daemon.drop("small")
        await it.daemon.done(2)
        assert sorted(it.daemon.links()) == ["large", "new/small"]
        assert len(faulty_s3.seen("PUT", "large")) == 1
        await it.daemon.until(lambda: not it.daemon.pipeline.in_effect.works[1:], "an end of the old work")


async def test_a_removed_watch_finishes_what_is_in_flight_and_parks_its_queue(
    faulty_s3: FaultyS3, tmp_path: Path
) -> None:
    one, two = watch(tmp_path), watch(tmp_path, "two", key="two/{path}")
    slow = {**SLOW, "concurrency": 1}
    async with reloadable(config(tmp_path, faulty_s3, one, two, upload=slow)) as it:
        it.daemon.drop("large", b"x" * 300_000, watch="two")
        await in_flight(it.daemon)
        it.daemon.drop("parked", bytes(100_000), watch="two")  # not so small that it is claimed ahead
        await it.daemon.said_by_now("file.queued", 2)
        assert (await it.reload(config(tmp_path, faulty_s3, one)))["removed"] == ["two"]
        it.daemon.drop("unseen", watch="two")
        it.daemon.drop("seen")
        await it.daemon.done(2)
        await it.daemon.until(lambda: not it.daemon.pipeline.in_effect.works[1:], "an end of the old work")
        assert sorted(it.daemon.links()) == ["seen", "two/large"]
        (waiting,) = await it.daemon.ledger.in_state(State.QUEUED)
        assert waiting.path == b"parked"
        await it.reload(config(tmp_path, faulty_s3, one, two))
        await it.daemon.done(4)
        assert sorted(it.daemon.links()) == ["seen", "two/large", "two/parked", "two/unseen"]


async def test_a_removed_watchs_folder_is_free_for_another_daemon_once_its_work_is_through(
    faulty_s3: FaultyS3, tmp_path: Path
) -> None:
    from presignd.pipeline.files.folder import Folder  # noqa: PLC0415 - stands for another daemon here

    one, two = watch(tmp_path), watch(tmp_path, "two")
    async with reloadable(config(tmp_path, faulty_s3, one, two)) as it:
        await it.reload(config(tmp_path, faulty_s3, one))
        await it.daemon.until(lambda: not it.daemon.pipeline.in_effect.works[1:], "an end of the old work")
        other = Folder(two)
        other.lock()
        refused = await it.reload(config(tmp_path, faulty_s3, one, two), "config.refused")
        assert "another presignd" in refused["error"]
        other.close()
        await it.reload(config(tmp_path, faulty_s3, one, two))


async def test_queued_versions_go_to_the_bucket_and_key_they_were_queued_for(
    faulty_s3: FaultyS3, tmp_path: Path
) -> None:
    """Their receipts and links name it; only what comes after goes by the new template."""
    faulty_s3.buckets.add("other-bucket")
    store_away = faulty_s3.fault(key="old", times=FOREVER, status=503, code="InternalError")
    async with reloadable(config(tmp_path, faulty_s3)) as it:
        it.daemon.drop("old")
        await it.daemon.said_by_now("upload.retry")
        await it.reload(config(tmp_path, faulty_s3, watch(tmp_path, bucket="other-bucket", key="new/{path}")))
        store_away.times = 0
        it.daemon.drop("young")
        await it.daemon.done(2)
        stored = {where for where in faulty_s3.objects if not where[1].startswith(".")}
        assert {("test-bucket", "old"), ("other-bucket", "new/young")} <= stored
        assert ("other-bucket", "old") not in stored
        assert {(event["bucket"], event["key"]) for event in it.daemon.events("file.done")} <= stored


async def test_new_keys_are_used_from_the_next_request_on(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    async with reloadable(config(tmp_path, faulty_s3)) as it:
        await it.reload(config(tmp_path, faulty_s3, access_key="rotated-access"))
        it.daemon.drop("a")
        await it.daemon.done()
        (put,) = faulty_s3.seen("PUT", "a")
        assert put.query["X-Amz-Credential"].startswith("rotated-access/")


@pytest.mark.parametrize("broken", ["unreadable", "no folder", "no certificate"])
async def test_a_broken_configuration_is_refused_whole_and_the_old_one_stays(
    faulty_s3: FaultyS3, tmp_path: Path, broken: str
) -> None:
    found: Config | Exception = UsageError("it has a problem", problems=("watch.drop.afer: is no option",))
    if broken == "no folder":
        away = watch(tmp_path, "away")
        away.path.rmdir()
        found = config(tmp_path, faulty_s3, watch(tmp_path, key="new/{path}"), away)
    elif broken == "no certificate":
        (tmp_path / "ca").write_text("none")
        presign: dict[str, Any] = {"endpoint": "https://127.0.0.1:1", "ca_file": tmp_path / "ca"}
        found = config(tmp_path, faulty_s3, watch(tmp_path, "two"), **presign)
    async with reloadable(config(tmp_path, faulty_s3)) as it:
        said = await it.reload(found, "config.refused")
        assert said["level"] == "error"
        assert said["error"] or said["problems"]
        it.daemon.drop("a")
        await it.daemon.done()
        assert it.daemon.links() == ["a"]
        assert it.daemon.events("config.reloaded", "watch.lost") == []
        await it.reload(config(tmp_path, faulty_s3))


async def test_a_bug_in_reading_it_ends_nothing(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    async with reloadable(config(tmp_path, faulty_s3)) as it:
        said = await it.reload(RuntimeError("a bug"), "config.refused")
        assert "RuntimeError: a bug" in said["exception"]
        it.daemon.drop("a")
        await it.daemon.done()


async def test_what_takes_a_restart_is_named_and_left_as_it_was(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    first = config(tmp_path, faulty_s3)
    other = first.model_copy(update={"links": LinksConfig(file=tmp_path / "other.jsonl")})
    async with reloadable(first) as it:
        said = await it.reload(other)
        assert (said["level"], said["restart_needed"]) == ("warning", ["links.file"])
        it.daemon.drop("a")
        await it.daemon.done()
        assert it.daemon.links() == ["a"]
        assert not (tmp_path / "other.jsonl").exists()


async def test_many_reloads_in_a_row_lose_nothing(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    async with reloadable(config(tmp_path, faulty_s3)) as it:
        for number in range(20):
            it.daemon.drop(f"{number}")
            await asyncio.sleep(0.01)
            changed = watch(tmp_path, content_type=f"text/x-{number}")
            await it.reload(config(tmp_path, faulty_s3, changed))
        await it.daemon.done(20)
        assert sorted(it.daemon.links(), key=int) == [str(number) for number in range(20)]
        ended = it.daemon.events("file.done")
        assert len({event["file_id"] for event in ended}) == len(ended)
        await it.daemon.until(lambda: not it.daemon.pipeline.in_effect.works[1:], "an end of the old works")


async def test_old_and_new_work_together_stay_within_concurrency(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    """And so within ``memory``, which bounds each body by it; another number holds as bodies end."""

    def at_most(slots: int) -> Config:
        return config(tmp_path, faulty_s3, upload={**SLOW, "concurrency": slots})

    async with reloadable(at_most(3)) as it:
        for number in range(3):
            it.daemon.drop(f"first-{number}", b"x" * 90_000)
        await it.daemon.until(lambda: faulty_s3.busy == 3, "three bodies in flight")
        await it.reload(at_most(2))
        for number in range(3):
            it.daemon.drop(f"second-{number}", b"x" * 70_000)
        await it.daemon.until(lambda: len(it.daemon.view.in_flight()) == 5, "two of the new work claimed")
        assert len(it.daemon.pipeline.in_effect.works[1:]) == 1
        await it.daemon.done(4)
        assert faulty_s3.busiest == 3
        faulty_s3.busiest = 0
        await it.daemon.done(6)
        assert faulty_s3.busiest <= 2
        await it.reload(at_most(4))
        for number in range(4):
            it.daemon.drop(f"third-{number}", b"x" * 70_000)
        await it.daemon.until(lambda: faulty_s3.busy == 4, "four bodies in flight")
