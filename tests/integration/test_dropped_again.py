"""A file that left and came back is uploaded again; a folder that was away and came back uploads nothing again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from presignd.app.upkeep import note_gone
from presignd.config import Config
from presignd.ledger import Ledger, open_ledger
from presignd.model import Fingerprint, State
from presignd.pipeline.files.folder import Folder
from presignd.pipeline.files.hash import TINY
from tests.faulty_s3 import FaultyS3
from tests.mounts import bind
from tests.running import Running, config, running, watch
from tests.system.harness import Presignd, config_for

OLD = 10**9
"""Seconds since the epoch: the time that each copy keeps."""


@pytest.fixture
def original(tmp_path: Path) -> Path:
    path = tmp_path / "original"
    path.write_bytes(b"content")
    os.utime(path, (OLD, OLD))
    return path


async def gone(daemon: Running, name: str) -> None:
    """Wait until the ledger knows that a file is gone."""
    async with asyncio.timeout(20):
        while (version := await daemon.ledger.by_path("drop", os.fsencode(name))) is None or not version.gone_at:  # noqa: ASYNC110 - the ledger tells nobody
            await asyncio.sleep(0.01)


async def stays_as_it_is(daemon: Running, links: int) -> None:
    """See that a whole scan brings nothing to do."""
    await daemon.rescan()
    await daemon.until(lambda: not daemon.view.settling(), "an end of settling")
    assert len(daemon.links()) == links


async def test_a_copy_that_keeps_its_time_is_another_drop_once_the_file_was_gone(
    faulty_s3: FaultyS3, tmp_path: Path, original: Path
) -> None:
    """Its object may be deleted by now; so the file is sent, and linked, again."""
    async with running(config(tmp_path, faulty_s3)) as daemon:
        path = daemon.folder / "drop" / "a"
        shutil.copy2(original, path)
        await daemon.done()
        path.unlink()
        await gone(daemon, "a")
        faulty_s3.objects.clear()
        shutil.copy2(original, path)
        await daemon.done(2)
        assert daemon.links() == ["a", "a"]
        assert [key for _, key in faulty_s3.objects if key == "a"] == ["a"]
        await stays_as_it_is(daemon, 2)


async def test_a_file_moved_away_and_back_is_another_drop(faulty_s3: FaultyS3, tmp_path: Path, original: Path) -> None:
    async with running(config(tmp_path, faulty_s3)) as daemon:
        path = daemon.folder / "drop" / "a"
        shutil.copy2(original, path)
        await daemon.done()
        path.rename(tmp_path / "away")
        await gone(daemon, "a")
        (tmp_path / "away").rename(path)
        await daemon.done(2)


@pytest.mark.parametrize("seen", [True, False])
async def test_what_is_put_back_while_the_daemon_is_down_goes_again_where_it_was_seen_gone(
    faulty_s3: FaultyS3, tmp_path: Path, original: Path, seen: bool
) -> None:
    """Where nobody saw it gone, it can't be told from a restore, and the same content is sent once."""
    configured = config(tmp_path, faulty_s3)
    path = tmp_path / "drop" / "a"
    async with running(configured) as daemon:
        shutil.copy2(original, path)
        await daemon.done()
        if seen:
            path.unlink()
            await gone(daemon, "a")
    path.unlink(missing_ok=True)
    shutil.copy2(original, path)
    async with running(configured) as daemon:
        if seen:
            await daemon.done()
        await stays_as_it_is(daemon, 2 if seen else 1)


async def noted(configured: Config, ledger: Ledger) -> None:
    """Look for what is gone, as upkeep does."""

    def hear(_: object) -> None:
        return

    folder = Folder(configured.watches[0])
    try:
        await note_gone(ledger, "drop", folder, hear)
    finally:
        folder.close()


@pytest.mark.parametrize("mounted", ["drop", "drop/below"])
async def test_a_disk_that_was_unmounted_and_looked_for_in_vain_sends_nothing_again(
    faulty_s3: FaultyS3, tmp_path: Path, original: Path, mounted: str
) -> None:
    """The empty folder below the mount point is all that upkeep sees, and it notes every file as gone."""
    disk = tmp_path / "disk"
    disk.mkdir()
    configured = config(tmp_path, faulty_s3)
    (tmp_path / mounted).mkdir(exist_ok=True)
    with bind(disk, tmp_path / mounted):
        async with running(configured) as daemon:
            shutil.copy2(original, disk / "a")
            await daemon.rescan()
            await daemon.done()
    ledger = await open_ledger(configured.ledger.path)
    await noted(configured, ledger)
    (version,) = (await ledger.known("drop", [b"a", b"below/a"])).values()
    assert version.gone_at is not None
    await ledger.close(clean=True)
    with bind(disk, tmp_path / mounted):
        async with running(configured) as daemon:
            await stays_as_it_is(daemon, 1)
    assert [seen.method for seen in faulty_s3.requests if seen.key.endswith("a")].count("PUT") == 1


MOMENTS = ["created", "queued", "claimed", "sent", "verified", "linked"]
"""Where a version of a file may stand when ``cp -p`` sets the file's time, after its close."""


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_copy_whose_time_is_set_at_any_moment_is_sent_and_recorded_as_it_is(
    faulty_s3: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, again: bool
) -> None:
    """With settle = "0s" a look may come between the close and the utime(2) of ``cp -p``; also of a second drop."""
    content = bytes(TINY + 1) if moment == "claimed" else b"content"  # a tiny one may be claimed as it is recorded
    async with running(config(tmp_path, faulty_s3)) as daemon:
        path, before = tmp_path / "drop" / "a", 0
        if again:
            path.write_bytes(content)
            os.utime(path, (OLD, OLD))
            await daemon.done()
            await daemon.rescan()
            await daemon.until(lambda: not daemon.view.settling(), "an end of settling")
            path.unlink()
            await gone(daemon, "a")
            faulty_s3.objects.clear()
            before = len(daemon.links())
        time_is_set = _set_time_at(moment, daemon, faulty_s3, path, monkeypatch)
        with path.open("wb") as file:
            file.write(content)
            if moment == "created":
                await daemon.until(
                    lambda: [one.why for one in daemon.view.settling()] == ["open for writing"], "a look"
                )
        if moment == "created":
            os.utime(path, (OLD, OLD))
        elif moment == "linked":
            await daemon.until(lambda: len(daemon.links()) > before, "a link")
            os.utime(path, (OLD, OLD))
        else:
            async with asyncio.timeout(20):
                await time_is_set.wait()
        await recorded_as_it_is(daemon, path)
        assert len(daemon.links()) > before
        assert [stored.body for (_, key), stored in faulty_s3.objects.items() if key == "a"] == [content]


def _set_time_at(
    moment: str, daemon: Running, faulty_s3: FaultyS3, path: Path, monkeypatch: pytest.MonkeyPatch
) -> asyncio.Event:
    """Set the file's time at the next such moment; return the event that this is done."""
    done, loop = asyncio.Event(), asyncio.get_running_loop()
    times = iter([OLD])

    def set_time(*_: object) -> bool:
        if time_ := next(times, None):
            os.utime(path, (time_, time_))
            loop.call_soon_threadsafe(done.set)
        return False

    name = {"queued": "enqueue", "claimed": "claim", "verified": "record_linked"}.get(moment)
    if moment == "sent":
        faulty_s3.fault("PUT", "a", when=set_time)
    if name is None:
        return done
    method = getattr(daemon.ledger, name)

    async def hooked(*args: Any, **more: Any) -> Any:
        if moment == "verified":
            set_time()
        result = await method(*args, **more)
        if result:
            set_time()
        return result

    monkeypatch.setattr(daemon.ledger, name, hooked)
    return done


async def recorded_as_it_is(daemon: Running, path: Path) -> None:
    """Wait until the ledger has the file as it is now, finished; see that a whole scan brings nothing more."""
    there = Fingerprint.of(os.stat(path))  # noqa: PTH116 - a local disk
    async with asyncio.timeout(20):
        while True:
            version = await daemon.ledger.by_path("drop", os.fsencode(path.name))
            if version and version.state is State.FINISHED and version.fingerprint == there:
                break
            await asyncio.sleep(0.01)
    await stays_as_it_is(daemon, len(daemon.links()))


@pytest.mark.parametrize("point", ["commit.record_gone.after", "commit.enqueue.after:2", "put.before:2", "put.after:2"])
def test_a_kill_in_between_loses_no_second_drop(
    faulty_s3: FaultyS3, tmp_path: Path, original: Path, point: str
) -> None:
    daemon = Presignd(
        tmp_path,
        config_for(faulty_s3, tmp_path, faulty_s3.bucket, watch='settle = "0s"'),
        secrets=(faulty_s3.secret_key,),
        prefix=("env", f"PRESIGND_CRASH_AT={point}"),
    )
    path = tmp_path / "drop" / "a"
    try:
        daemon.start()
        _put(original, path)
        daemon.until(lambda: daemon.events("file.done"), "file.done")
        path.unlink()
        faulty_s3.objects.clear()
        assert daemon.process
        if point == "commit.record_gone.after":
            assert daemon.process.wait(60) == -signal.SIGKILL
            _put(original, path)
        else:
            _until_gone(tmp_path / "state" / "ledger.sqlite3")
            _put(original, path)
            assert daemon.process.wait(60) == -signal.SIGKILL
        daemon._prefix = []
        daemon.start()
        daemon.until(lambda: len(daemon.links()) == 2, "second link")
        assert [event["status"] for event in daemon.events("file.done")][-1] in {"linked", "adopted"}
    finally:
        daemon.end()


def _put(original: Path, path: Path) -> None:
    """Copy with its time, and rename into place: one version, and so one PUT that the crash points can count.

    A look between the close and the utime(2) of ``cp -p`` makes two versions of it, and the first may end as
    superseded before its PUT.
    """
    staged = path.parent.parent / "staged"
    shutil.copy2(original, staged)
    staged.rename(path)


def _until_gone(ledger: Path) -> None:
    """Wait until the ledger of another process knows that a file is gone."""
    with contextlib.closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)) as connection:
        deadline = time.monotonic() + 60
        while not connection.execute(
            "SELECT count(*) FROM version WHERE current = 1 AND gone_at IS NOT NULL"
        ).fetchone()[0]:
            assert time.monotonic() < deadline
            time.sleep(0.02)


async def test_a_quarantined_file_that_is_deleted_goes_from_status_by_the_event_alone(
    faulty_s3: FaultyS3, tmp_path: Path
) -> None:
    async with running(config(tmp_path, faulty_s3, watch(tmp_path, max_size=3, rescan=3600.0))) as daemon:
        path = daemon.drop("large")
        await daemon.said_by_now("file.quarantined")
        path.unlink()
        (done,) = await daemon.said_by_now("file.done")
        assert done["status"] == "vanished"
        assert await daemon.ledger.quarantined() == []
