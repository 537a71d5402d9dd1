"""The link file of a file whose folder is away just when it is written: it is that of no other version, ever."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from presignd.config import WatchConfig
from presignd.model import FileVersion
from presignd.pipeline.finish import finisher
from presignd.pipeline.finish.link_file import write_link_file
from tests.faulty_s3 import FaultyS3
from tests.links import whole_lines
from tests.running import Running, config, running, watch
from tests.system.harness import Presignd, config_for

PATH = b"sub/a"


class Held:
    """Holds the second link file that is written: ``before`` and ``after`` it are called in its thread."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, before: Callable[[], object]) -> None:
        self.written, self.go_on = asyncio.Event(), threading.Event()
        self.after: Callable[[], object] = lambda: None
        self._before, self._calls, self._loop = before, iter(range(2)), asyncio.get_running_loop()
        monkeypatch.setattr(finisher, "write_link_file", self._write)

    def _write(self, *args: Any) -> bool:
        if next(self._calls, None) != 1:
            return write_link_file(*args)
        self._before()
        written = write_link_file(*args)
        self.after()
        self._loop.call_soon_threadsafe(self.written.set)
        assert self.go_on.wait(60)
        return written


def linking(tmp_path: Path, **more: Any) -> WatchConfig:
    """Configure a watch where each content has a link of its own, though both are signed in one second."""
    return watch(tmp_path, link_file="{name}.link.txt", key="{path}/{sha256}", **more)


def folder(tmp_path: Path) -> Path:
    sub = tmp_path / "drop" / "sub"
    sub.mkdir(parents=True)
    return sub


def away(tmp_path: Path) -> Callable[[], object]:
    return lambda: (tmp_path / "drop" / "sub").rename(tmp_path / "away")


def back(tmp_path: Path) -> Callable[[], object]:
    return lambda: (tmp_path / "away").rename(tmp_path / "drop" / "sub")


def newest_url(daemon: Running, name: str = "a") -> str:
    links = [json.loads(line) for line in whole_lines(daemon.folder / "links.jsonl")]
    return str([link["url"] for link in links if link["path"].endswith(f"/{name}")][-1])


async def version(daemon: Running, true: Callable[[FileVersion], object]) -> FileVersion:
    """Wait until the current version of the path is as wanted."""
    async with asyncio.timeout(20):
        while (found := await daemon.ledger.by_path("drop", PATH)) is None or not true(found):  # noqa: ASYNC110 - the ledger tells nobody
            await asyncio.sleep(0.01)
    return found


async def own_link_is_beside(daemon: Running, *links: int) -> None:
    """Wait for the file's own link file, and see that a whole scan brings nothing more."""
    beside = daemon.folder / "drop" / "sub" / "a.link.txt"
    await daemon.until(
        lambda: beside.exists() and beside.read_text() == newest_url(daemon) + "\n", "link file of the newest version"
    )
    await version(daemon, lambda found: found.state == "finished" and found.gone_at is None)
    await daemon.rescan()
    await daemon.until(lambda: not daemon.view.settling(), "an end of settling")
    assert beside.read_text() == newest_url(daemon) + "\n"
    assert len(daemon.links()) in links


@pytest.mark.parametrize("moment", ["at once", "seen gone", "once it is finished"])
async def test_a_folder_that_is_away_when_the_link_file_is_due_gets_it_when_it_is_back(
    faulty_s3: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Else the link file of the version before stayed beside the file for ever."""
    file = folder(tmp_path) / "a"
    held = Held(monkeypatch, away(tmp_path))
    if moment == "at once":
        held.after = back(tmp_path)
    async with running(config(tmp_path, faulty_s3, linking(tmp_path))) as daemon:
        file.write_bytes(b"first")
        await daemon.done()
        file.write_bytes(b"second")
        async with asyncio.timeout(20):
            await held.written.wait()
        if moment == "seen gone":
            await version(daemon, lambda found: found.gone_at)
            back(tmp_path)()
            await asyncio.sleep(0.3)  # its look comes before the version is finished
        held.go_on.set()
        await daemon.done(2)
        if moment == "once it is finished":
            await version(daemon, lambda found: found.gone_at)
            back(tmp_path)()
        await own_link_is_beside(daemon, 2)


async def test_a_folder_that_comes_back_while_the_daemon_is_down_gets_its_link_file(
    faulty_s3: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = folder(tmp_path) / "a"
    held = Held(monkeypatch, away(tmp_path))
    configured = config(tmp_path, faulty_s3, linking(tmp_path))
    async with running(configured) as daemon:
        file.write_bytes(b"first")
        await daemon.done()
        file.write_bytes(b"second")
        held.go_on.set()
        await daemon.done(2)
    back(tmp_path)()
    async with running(configured) as daemon:
        await own_link_is_beside(daemon, 2)


@pytest.mark.parametrize("seen", [True, False])
async def test_a_file_that_is_renamed_and_back_has_its_own_link_file(
    faulty_s3: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: bool
) -> None:
    file = folder(tmp_path) / "a"
    held = Held(monkeypatch, lambda: file.rename(tmp_path / "away"))
    if not seen:
        held.after = lambda: (tmp_path / "away").rename(file)
    async with running(config(tmp_path, faulty_s3, linking(tmp_path))) as daemon:
        file.write_bytes(b"first")
        await daemon.done()
        file.write_bytes(b"second")
        async with asyncio.timeout(20):
            await held.written.wait()
        if seen:
            await version(daemon, lambda found: found.gone_at)
            (tmp_path / "away").rename(file)
        held.go_on.set()
        await daemon.done(2)
        if seen:
            await daemon.done(3)
        await own_link_is_beside(daemon, 3, *(() if seen else (2,)))  # the moment may be seen


async def test_a_put_whose_folder_is_away_has_its_own_link_file_when_it_is_back(
    faulty_s3: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = folder(tmp_path) / "a"
    held = Held(monkeypatch, away(tmp_path))
    held.after = back(tmp_path)
    held.go_on.set()
    async with running(config(tmp_path, faulty_s3, linking(tmp_path))) as daemon:
        file.write_bytes(b"content")
        await daemon.done()
        await daemon.rescan()
        with file.open("rb") as opened:
            link = await daemon.view.put(
                opened.fileno(), PATH, "drop", key=None, expires=77, by_uid=0, progress=lambda _: None
            )
        await daemon.done(2)
        assert link.url == newest_url(daemon)
        await own_link_is_beside(daemon, 2)


async def test_a_put_while_a_link_file_is_rewritten_has_its_own_link_file(
    faulty_s3: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else takes a path while its file is looked at."""
    file, rewriting = folder(tmp_path) / "a", asyncio.Event()
    loop, go_on = asyncio.get_running_loop(), threading.Event()

    def hold() -> None:
        loop.call_soon_threadsafe(rewriting.set)
        assert go_on.wait(60)

    held = Held(monkeypatch, hold)
    held.go_on.set()
    async with running(config(tmp_path, faulty_s3, linking(tmp_path))) as daemon:
        file.write_bytes(b"content")
        await daemon.done()
        away(tmp_path)()
        await version(daemon, lambda found: found.gone_at)
        back(tmp_path)()
        async with asyncio.timeout(20):
            await rewriting.wait()
        with file.open("rb") as opened:
            link = await daemon.view.put(
                opened.fileno(), PATH, "drop", key=None, expires=77, by_uid=0, progress=lambda _: None
            )
        await asyncio.sleep(0.2)
        go_on.set()
        await daemon.done(2)
        await daemon.until(lambda: not daemon.view.settling(), "an end of settling")
        assert file.with_name("a.link.txt").read_text() == link.url + "\n"


async def test_another_file_in_its_place_does_not_get_its_link_file(
    faulty_s3: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two folders change places and back, and nobody sees it."""
    one, two = folder(tmp_path), tmp_path / "drop" / "two"
    two.mkdir()

    def swap() -> None:
        one.rename(tmp_path / "away")
        two.rename(one)
        (tmp_path / "away").rename(two)

    async with running(config(tmp_path, faulty_s3, linking(tmp_path))) as daemon:
        (two / "a").write_bytes(b"other")
        await daemon.done()
        other = (two / "a.link.txt").read_text()
        (one / "a").write_bytes(b"first")
        await daemon.done(2)
        held = Held(monkeypatch, swap)
        held._calls = iter([1])
        held.after = swap
        held.go_on.set()
        (one / "a").write_bytes(b"second")
        await daemon.done(3)
        await daemon.rescan()
        await daemon.until(lambda: not daemon.view.settling(), "an end of settling")
        contents = {link["url"]: link["checksum"] for link in map(json.loads, whole_lines(tmp_path / "links.jsonl"))}
        checksums = [contents[(place / "a.link.txt").read_text().strip()] for place in (one, two)]
        assert len(set(checksums)) == 2
        assert checksums[1] == contents[other.strip()]


@pytest.mark.parametrize("gone_again", [False, True])
async def test_a_folder_that_is_away_when_its_file_is_to_be_deleted_is_cleared_when_it_is_back(
    faulty_s3: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone_again: bool
) -> None:
    """And the link file is there in any case: that of an earlier file of the name may still be."""
    file = folder(tmp_path) / "a"
    held = Held(monkeypatch, away(tmp_path))
    if not gone_again:
        held.after = back(tmp_path)
    held.go_on.set()
    deleting = linking(tmp_path, after="delete")
    async with running(config(tmp_path, faulty_s3, deleting)) as daemon:
        file.write_bytes(b"first")
        await daemon.done()
        file.write_bytes(b"second")
        await daemon.done(2)
        if gone_again:
            await version(daemon, lambda found: found.gone_at)
            back(tmp_path)()
        beside = file.with_name("a.link.txt")
        await daemon.until(lambda: not file.exists(), "deletion of the file")
        await daemon.until(lambda: beside.read_text() == newest_url(daemon) + "\n", "link file of the newest version")


async def test_a_folder_that_is_renamed_and_back_has_the_link_files_of_its_own_paths(
    faulty_s3: FaultyS3, tmp_path: Path
) -> None:
    """Under the other name the same files got links to other objects."""
    sub, other = folder(tmp_path), tmp_path / "drop" / "other"
    async with running(config(tmp_path, faulty_s3, linking(tmp_path))) as daemon:
        (sub / "a").write_bytes(b"content")
        await daemon.done()
        beside = (sub / "a.link.txt").read_text()
        sub.rename(other)
        await daemon.done(2)
        assert (other / "a.link.txt").read_text() != beside
        await version(daemon, lambda found: found.gone_at)
        other.rename(sub)
        await daemon.until(lambda: (sub / "a.link.txt").read_text() == beside, "own link file")


@pytest.mark.parametrize("point", ["link_file.written:3", "commit.refingerprint.before", "commit.refingerprint.after"])
def test_a_kill_while_a_link_file_is_rewritten_leaves_it_to_the_next_start(
    faulty_s3: FaultyS3, tmp_path: Path, point: str
) -> None:
    options = 'settle = "0s"\nlink_file = "{name}.link.txt"\nkey = "{path}/{sha256}"'
    daemon = Presignd(
        tmp_path,
        config_for(faulty_s3, tmp_path, faulty_s3.bucket, watch=options),
        secrets=(faulty_s3.secret_key,),
        prefix=("env", f"PRESIGND_CRASH_AT={point}"),
    )
    file = tmp_path / "drop" / "sub" / "a"
    beside = tmp_path / "drop" / "sub" / "a.link.txt"
    file.parent.mkdir(parents=True)
    try:
        daemon.start()
        urls: list[str] = []
        for content in (b"first", b"second"):
            file.write_bytes(content)
            daemon.until(lambda: len(daemon.events("file.done")) > len(urls), "file.done")
            urls.append(beside.read_text())
        away(tmp_path)()
        until_gone(tmp_path / "state" / "ledger.sqlite3")
        (tmp_path / "away" / "a.link.txt").write_text(urls[0])
        back(tmp_path)()
        assert daemon.process
        assert daemon.process.wait(60) == -signal.SIGKILL
        daemon._prefix = []
        daemon.start()
        daemon.until(lambda: beside.read_text() == urls[1], "own link file")
        until_gone(tmp_path / "state" / "ledger.sqlite3", count=0)
        assert len(daemon.links()) == 2
    finally:
        daemon.end()


def until_gone(ledger: Path, count: int = 1) -> None:
    """Wait until another process's ledger has so many current versions as gone."""
    query = "SELECT count(*) FROM version WHERE current = 1 AND gone_at IS NOT NULL"
    with contextlib.closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)) as connection:
        deadline = time.monotonic() + 60
        while connection.execute(query).fetchone()[0] != count:
            assert time.monotonic() < deadline
            time.sleep(0.02)
