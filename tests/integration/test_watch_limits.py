"""Where events are short or a scan meets what it can't read: found all the same, and told once."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from watchfiles import Change, awatch

from presignd.errors import fault
from presignd.pipeline import events, watch
from presignd.pipeline.folder import Folder
from tests.watching import watching


async def test_while_a_limit_forbids_events_scans_go_on_and_then_events_are_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = [OSError("OS file watch limit reached.")]

    async def limited(*paths: str, **options: Any) -> AsyncGenerator[set[tuple[Change, str]], None]:
        if refusals:
            raise refusals.pop()
        async for changes in awatch(*paths, **options):
            yield changes

    monkeypatch.setattr(events, "awatch", limited)
    monkeypatch.setattr(watch, "_WITHOUT_EVENTS", 0.5)
    async with watching(tmp_path, poll_interval=1, events="watchfiles") as drop:
        await drop.until(lambda: len(drop.events("watch.started")) == 2)
        assert [entry["events"] for entry in drop.events("watch.started")] == ["polling", "watchfiles"]
        [overflow] = drop.events("watch.overflow")
        assert "raise fs.inotify.max_user_watches (now " in overflow["fix"]


async def test_while_watches_are_short_it_is_told_once_and_all_are_registered_anew_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [False]
    monkeypatch.setattr(watch, "watches_left", lambda _root: left[0])
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
    monkeypatch.setattr(watch, "rescan_interval", lambda *_, **__: 0.02)
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
    monkeypatch.setattr(watch, "_AGAIN", 0.05)
    async with watching(tmp_path, polling="always", poll_interval=3600) as drop:
        await drop.has("below/a")
        [told] = drop.events("scan.cut_short")
        assert told["error_code"] == "too_many_files"
