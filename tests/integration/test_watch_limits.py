"""Limits of events and scans: files are found all the same, and the limit is logged once."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import watchfiles
from watchfiles import Change, awatch

from presignd.errors import fault
from presignd.pipeline.files.folder import Folder
from presignd.pipeline.watch import scan
from presignd.pipeline.watch import watcher as watch
from presignd.pipeline.watch.inotify import inotify_source
from presignd.pipeline.watch.source import Hints, SourceEnded
from presignd.pipeline.watch.watcher import Pauses
from tests.watching import watching

SOON_AGAIN = Pauses(scan_retry=0.05)


async def test_while_a_limit_forbids_events_scans_go_on_and_then_events_are_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = [OSError("OS file watch limit reached.")]

    async def limited(*paths: str, **options: Any) -> AsyncGenerator[set[tuple[Change, str]], None]:
        if refusals:
            raise refusals.pop()
        async for changes in awatch(*paths, **options):
            yield changes

    monkeypatch.setattr(watchfiles, "awatch", limited)
    async with watching(tmp_path, pauses=Pauses(without_inotify=0.5), poll_interval=1, events="watchfiles") as drop:
        await drop.until(lambda: len(drop.events("watch.started")) == 2)
        assert [entry["events"] for entry in drop.events("watch.started")] == ["polling", "watchfiles"]
        [overflow] = drop.events("watch.overflow")
        assert "raise fs.inotify.max_user_watches (now " in overflow["fix"]


@pytest.mark.parametrize("from_the_start", [True, False])
async def test_a_source_that_cannot_start_is_told_once_and_scans_go_on_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, from_the_start: bool
) -> None:
    """No limit that somebody could raise: it is tried again and again, and meanwhile the folder is polled."""
    started, refused = asyncio.Event(), [from_the_start]

    async def refusing(*arguments: Any) -> AsyncGenerator[Hints, None]:
        async with aclosing(inotify_source(*arguments)) as batches:
            async for hints in batches:
                if refused[0]:
                    raise SourceEnded("no memory is left")
                started.set()
                yield hints

    monkeypatch.setattr(watch, "inotify_source", refusing)
    pauses = Pauses(source_last=0.05)
    async with watching(tmp_path, pauses=pauses, poll_interval=1, events="inotify", rescan="1h") as drop:
        await drop.scanned()
        assert drop.watcher.watching.is_set(), "the daemon is ready, however long this takes"
        refused[0] = True
        (drop.root / "meanwhile").write_bytes(b"content")
        await drop.has("meanwhile")
        await drop.until(lambda: len(drop.events("watch.overflow")) > 3)
        assert [told["log_level"] for told in drop.events("watch.overflow")][:3] == ["warning", "debug", "debug"]
        assert not drop.watcher.scanner.events
        started.clear()
        refused[0] = False
        await started.wait()
        (drop.root / "after").write_bytes(b"content")
        await drop.has("after")
        assert drop.watcher.scanner.events


async def test_while_watches_are_short_it_is_told_once_and_all_are_registered_anew_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [False]
    monkeypatch.setattr(scan, "watches_left", lambda _root: left[0])
    async with watching(tmp_path) as drop:
        await drop.scanned()
        await drop.rescan()
        [overflow] = drop.events("watch.overflow")
        assert overflow["fix"].endswith("; this watch has 1 directories)")
        left[0] = True
        await drop.rescan()
        await drop.until(lambda: any(entry["reason"] == "restart" for entry in drop.events("scan.finished")))


async def test_scans_that_change_nothing_are_told_of_at_debug_and_problems_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(folder: Folder, path: bytes) -> int:
        if path == b"closed":
            raise fault("unreadable", "Permission denied")
        return opened(folder, path)

    opened = Folder.open_directory
    monkeypatch.setattr(Folder, "open_directory", refusing)
    monkeypatch.setattr(scan, "rescan_interval", lambda *_, **__: 0.02)
    async with watching(tmp_path) as drop:
        await drop.scanned(3)
        (drop.root / "closed").mkdir()
        await drop.until(lambda: any("problems" in entry for entry in drop.events("scan.finished")))
        await drop.scanned(len(drop.events("scan.finished")) + 3)
        timed = [entry for entry in drop.events("scan.finished") if entry["reason"] == "timer"]
        assert {entry["log_level"] for entry in timed if "problems" not in entry} == {"debug"}
        levels = [entry["log_level"] for entry in timed if "problems" in entry]
        assert levels == ["warning", *["debug"] * (len(levels) - 1)]


async def test_a_scan_that_can_open_no_more_is_told_once_and_comes_again_until_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, refusals = Folder.open_directory, [fault("too_many_files")] * 2

    def refusing(self: Folder, path: bytes) -> int:
        if path and refusals:
            raise refusals.pop()
        return opened(self, path)

    (tmp_path / "drop" / "below").mkdir(parents=True)
    (tmp_path / "drop" / "below" / "a").touch()
    monkeypatch.setattr(Folder, "open_directory", refusing)
    async with watching(tmp_path, pauses=SOON_AGAIN, polling="always", poll_interval=3600) as drop:
        await drop.has("below/a")
        [told] = drop.events("scan.cut_short")
        assert told["error_code"] == "too_many_files"


class Refusals:
    """Answers for a method of ``Folder``: too many files are open, so often, once they are asked for a path."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, path: bytes, **times: int) -> None:
        self.left = times
        for method in times:
            monkeypatch.setattr(Folder, method, self._refusing(method, path, getattr(Folder, method)))

    def _refusing(self, method: str, path: bytes, real: Callable[..., Any]) -> Callable[..., Any]:
        def refusing(folder: Folder, at: bytes) -> Any:
            if at == path and self.left[method]:
                self.left[method] -= 1
                raise fault("too_many_files")
            return real(folder, at)

        return refusing


@pytest.mark.parametrize("kind", ["file", "directory"])
async def test_an_event_that_could_not_be_looked_into_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Too many files were open: no other event comes for it, so everything is scanned until nothing is refused."""
    refused = Refusals(monkeypatch, b"sub/late", stat=1)
    (tmp_path / "drop" / "sub").mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"content")
    async with watching(tmp_path, pauses=SOON_AGAIN, rescan="1h") as drop:
        await drop.scanned()
        late = drop.root / "sub" / "late"
        if kind == "directory":
            late.mkdir()
            late = late / "file"
        late.hardlink_to(elsewhere)  # a hard link is reported as made, never as closed: the watcher looks at it
        await drop.has(str(late.relative_to(drop.root)))
        assert refused.left == {"stat": 0}
        assert [told["error_code"] for told in drop.events("scan.cut_short")] == ["too_many_files"]


async def test_a_candidate_that_could_not_be_opened_nor_statted_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many files are open: that says nothing of the file, and no other event will come for it."""
    refused = Refusals(monkeypatch, b"sub/late", open_with_stat=2)
    stat = Folder.stat

    def stat_as_open(folder: Folder, path: bytes) -> os.stat_result:
        if refused.left["open_with_stat"] == 1:  # by the look that just met it
            refused.left["open_with_stat"] = 0
            raise fault("too_many_files")
        return stat(folder, path)

    monkeypatch.setattr(Folder, "stat", stat_as_open)
    (tmp_path / "drop" / "sub").mkdir(parents=True)
    async with watching(tmp_path, rescan="1h") as drop:
        await drop.scanned()
        (drop.root / "sub" / "late").write_bytes(b"content")
        await drop.has("sub/late")
        assert refused.left == {"open_with_stat": 0}
        assert not drop.events("scan.cut_short")


async def test_a_directory_that_could_not_be_opened_to_watch_it_is_watched_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = Refusals(monkeypatch, b"sub", open_directory=1)
    async with watching(tmp_path, events="inotify", rescan="1h") as drop:
        await drop.scanned()
        (drop.root / "sub").mkdir()
        await drop.until(lambda: any(entry["reason"] == "restart" for entry in drop.events("scan.finished")))
        assert refused.left == {"open_directory": 0}
        (drop.root / "sub" / "late").write_bytes(b"content")
        await drop.has("sub/late")
        [told] = drop.events("watch.overflow")
        assert "too many files open" in told["reason"]


async def test_an_event_of_what_a_disk_tells_nothing_of_is_settled_once_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = [2]
    stat = Folder.stat

    def failing(folder: Folder, path: bytes) -> os.stat_result:
        if path == b"late" and refused[0]:
            refused[0] -= 1
            raise fault("read_error")
        return stat(folder, path)

    monkeypatch.setattr(Folder, "stat", failing)
    async with watching(tmp_path, rescan="1h") as drop:
        await drop.scanned()
        (drop.root / "late").write_bytes(b"content")
        await drop.has("late")
        assert not drop.events("scan.cut_short")


@pytest.mark.parametrize("where", ["writer_check_of", "choose_source"])
async def test_a_folder_that_does_not_even_say_what_it_is_on_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """FUSE whose server is dead, or an NFS server that is away, at the very start: it ends no daemon."""
    real, refusals = getattr(watch, where), [errno.ENOTCONN]

    def refusing(*arguments: Any) -> Any:
        if refusals:
            raise OSError(refusals.pop(), "not connected")
        return real(*arguments)

    monkeypatch.setattr(watch, where, refusing)
    async with watching(tmp_path, pauses=Pauses(tick=0.05)) as drop:
        (drop.root / "a").write_bytes(b"content")
        await drop.has("a")
        told = {"writer_check_of": "watch.lost", "choose_source": "watch.overflow"}[where]
        assert len(drop.events(told)) == 1
        await drop.until(lambda: len(drop.events("watch.started")) == 1)
        assert not drop.watcher.scanner.lost
