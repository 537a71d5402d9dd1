"""Every file, however it came (guarantee 2), on a real filesystem with real inotify and a real ledger."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Literal

import pytest

from presignd.config import WatchConfig
from presignd.errors import fault
from presignd.model import Listed, State
from presignd.pipeline.files.folder import Folder
from presignd.pipeline.files.ignore import Ignore, Unfinished
from presignd.pipeline.watch.source import Hints
from presignd.pipeline.watch.watcher import Findings, look_at
from tests.mounts import short_queue
from tests.unprivileged import without_rights, world_readable
from tests.watching import EVENTS, watching

Events = Literal["inotify", "watchfiles"]


@pytest.fixture(autouse=True, params=["inotify", "watchfiles"])
def events(request: pytest.FixtureRequest) -> Iterator[Events]:
    """Every promise holds whoever gives the hints."""
    token = EVENTS.set(request.param)
    yield request.param
    EVENTS.reset(token)


async def test_a_file_dropped_while_watching_is_queued_once(tmp_path: Path) -> None:
    async with watching(tmp_path) as drop:
        await drop.scanned()
        (drop.root / "hi.txt").write_text("hi")
        await drop.has("hi.txt")
        await drop.rescan()
        await drop.through()
        assert drop.paths() == [b"hi.txt"]


async def test_files_there_before_the_start_are_queued(tmp_path: Path) -> None:
    (tmp_path / "drop" / "a" / "b").mkdir(parents=True)
    (tmp_path / "drop" / "a" / "b" / "old").write_text("old")
    async with watching(tmp_path) as drop:
        await drop.has("a/b/old")


async def test_a_file_made_a_microsecond_after_its_directory_is_never_missed(tmp_path: Path) -> None:
    """The library alone misses one in five of these, more when nested (platform notes, §7)."""
    async with watching(tmp_path, rescan="1h") as drop:
        await drop.scanned()
        for number in range(200):
            directory = drop.root / f"d{number}" / "e"
            directory.mkdir(parents=True)
            (directory / "f").write_text("x")
            await asyncio.sleep(0)
        await drop.has(*(f"d{number}/e/f" for number in range(200)))
        assert Counter(drop.paths()).most_common(1)[0][1] == 1


async def test_files_in_a_directory_that_is_moved_in_are_queued(tmp_path: Path) -> None:
    (tmp_path / "outside" / "deep").mkdir(parents=True)
    (tmp_path / "outside" / "deep" / "file").write_text("x")
    async with watching(tmp_path, rescan="1h") as drop:
        await drop.scanned()
        (tmp_path / "outside").rename(drop.root / "inside")
        await drop.has("inside/deep/file")
        (drop.root / "inside" / "deep" / "later").write_text("y")
        await drop.has("inside/deep/later")


async def test_a_name_that_is_no_utf8_loses_nothing(tmp_path: Path, events: Events) -> None:
    """Watchfiles raises on such a name and ends: it is started again, and a scan finds the file."""
    async with watching(tmp_path, rescan="1h") as drop:
        await drop.scanned()
        (drop.root / os.fsdecode(b"\xff\xfe")).write_bytes(b"x")
        await drop.has(b"\xff\xfe")
        assert bool(drop.events("watch.overflow")) is (events == "watchfiles")
        (drop.root / "after").write_text("y")
        await drop.has("after")


async def test_a_burst_of_5000_files_is_queued_whole_and_once_each(tmp_path: Path, events: Events) -> None:
    async with watching(tmp_path) as drop:
        await drop.scanned()
        for number in range(5000):
            os.close(os.open(drop.root / f"{number:05}", os.O_CREAT | os.O_WRONLY))
        await drop.until(lambda: len(drop.versions) >= 5000)
        await drop.through()
        assert len(set(drop.paths())) == len(drop.versions) == 5000
        assert {entry["reason"] for entry in drop.events("scan.finished")} >= {
            "start",
            *(["burst"] if events == "watchfiles" else []),
        }


MAKE = """
import os, sys
for number in range(int(sys.argv[2]), int(sys.argv[3])):
    os.close(os.open(f"{sys.argv[1]}/{number:05}", os.O_CREAT | os.O_WRONLY))
"""


@pytest.mark.parametrize("count", [20, 300, 2000, pytest.param(20_000, marks=pytest.mark.long)])
async def test_a_burst_that_overflows_the_shortest_queue_is_queued_whole(tmp_path: Path, count: int) -> None:
    """Sixteen events fit. The library says nothing of the others, and no scan but the overflow's own would come."""
    with short_queue(16) as restore:
        async with watching(tmp_path, rescan="1h") as drop:
            await drop.scanned()
            restore()
            parts = [str(count * quarter // 4) for quarter in range(5)]
            makers = [
                await asyncio.create_subprocess_exec(sys.executable, "-c", MAKE, drop.root, begin, end)
                for begin, end in pairwise(parts)
            ]
            assert [await maker.wait() for maker in makers] == [0] * 4
            await drop.until(lambda: len(drop.versions) >= count)
            await drop.through()
            assert len(set(drop.paths())) == len(drop.versions) == count


async def test_a_folder_that_is_replaced_is_followed(tmp_path: Path, events: Events) -> None:
    """Watchfiles reports one deletion and is dead, without an error."""
    async with watching(tmp_path, rescan="1h") as drop:
        await drop.scanned()
        drop.root.rename(tmp_path / "elsewhere")
        await drop.until(lambda: drop.watcher.scanner.lost)
        assert len(drop.events("watch.lost")) == 1
        drop.root.mkdir()
        (drop.root / "new").write_text("x")
        await drop.has("new")
        (drop.root / "newer").write_text("y")
        await drop.has("newer")
        assert not drop.watcher.scanner.lost
        assert [entry["events"] for entry in drop.events("watch.started")] == [events, events]


async def test_a_folder_that_is_deleted_and_made_again_at_once_is_followed(tmp_path: Path) -> None:
    async with watching(tmp_path, rescan="1h") as drop:
        await drop.scanned()
        shutil.rmtree(drop.root)
        drop.root.mkdir()
        (drop.root / "first").write_text("x")
        await drop.has("first")
        (drop.root / "second").write_text("y")
        await drop.has("second")


async def test_a_lost_folder_is_waited_for_without_haste(tmp_path: Path) -> None:
    """A scan that was due before the folder went must not make the loop spin."""
    async with watching(tmp_path, rescan=1) as drop:
        await drop.scanned()
        drop.root.rename(tmp_path / "elsewhere")
        await drop.until(lambda: drop.watcher.scanner.lost)
        await asyncio.sleep(1.2)  # the scan is due by now
        gc.collect()  # none of a whole run's objects below
        before = time.process_time()
        await asyncio.sleep(1.0)
        assert time.process_time() - before < 0.5


async def test_special_files_symlinks_and_what_lies_behind_them_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("x")
    root = tmp_path / "drop"
    root.mkdir()
    os.mkfifo(root / "fifo")
    (root / "link").symlink_to(tmp_path / "outside" / "secret")
    (root / "linked").symlink_to(tmp_path / "outside")  # there at start: watchfiles follows it
    with socket.socket(socket.AF_UNIX) as unix:
        monkeypatch.chdir(root)
        unix.bind("socket")
    async with watching(tmp_path) as drop:
        await drop.scanned()
        (tmp_path / "outside" / "another").write_text("y")
        os.mkfifo(root / "fifo2")
        (root / "link2").symlink_to("fifo")
        (root / "real").write_text("z")
        await drop.has("real")
        await drop.rescan()
        await drop.through()
        assert drop.paths() == [b"real"]


async def test_deleting_a_queued_file_ends_its_version_as_vanished(tmp_path: Path) -> None:
    async with watching(tmp_path) as drop:
        (drop.root / "dir").mkdir()
        (drop.root / "dir" / "a").write_text("x")
        await drop.has("dir/a")
        shutil.rmtree(drop.root / "dir")
        await drop.until(lambda: bool(drop.vanished))
        assert [version.state for version in drop.vanished] == [State.VANISHED]


async def test_a_rename_over_a_queued_file_is_another_version_that_supersedes_it(tmp_path: Path) -> None:
    async with watching(tmp_path) as drop:
        (drop.root / "a").write_text("first")
        await drop.has("a")
        (drop.root / "a.tmp").write_text("second, longer")
        (drop.root / "a.tmp").rename(drop.root / "a")
        await drop.until(lambda: len(drop.versions) == 2)
        assert drop.versions[1].size == len("second, longer")
        first = await drop.ledger.by_id(drop.versions[0].file_id)
        assert first is not None
        assert first.state is State.SUPERSEDED


async def test_each_name_of_a_hard_linked_file_is_a_path_of_its_own(tmp_path: Path) -> None:
    async with watching(tmp_path) as drop:
        (drop.root / "a").write_text("x")
        (drop.root / "b").hardlink_to(drop.root / "a")
        await drop.has("a", "b")


async def test_a_chmod_is_the_same_version_under_another_fingerprint(tmp_path: Path) -> None:
    async with watching(tmp_path) as drop:
        (drop.root / "a").write_text("x")
        await drop.has("a")
        (drop.root / "a").chmod(0o600)
        ctime = (drop.root / "a").stat().st_ctime_ns
        await drop.recorded(b"a", lambda version: version.fingerprint.ctime_ns == ctime)
        assert len(drop.versions) == 1


async def test_existing_files_are_recorded_and_not_sent_where_existing_is_ignore(tmp_path: Path) -> None:
    (tmp_path / "drop").mkdir()
    (tmp_path / "drop" / "old").write_text("x")
    await asyncio.sleep(0.05)  # file times are coarse: the first start must be later beyond doubt
    async with watching(tmp_path, existing="ignore") as drop:
        await drop.scanned()
        (drop.root / "new").write_text("y")
        await drop.has("new")
        await drop.rescan()
        await drop.through()
        assert drop.paths() == [b"new"]
        old = await drop.ledger.by_path("drop", b"old")
        assert old is not None
        assert old.state is State.IGNORED
        (drop.root / "old").write_text("other content")
        await drop.has("old")


async def test_what_a_first_scan_could_not_list_is_existing_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many files were open: ``existing = "ignore"`` holds until a scan was not cut short."""
    opened, refusals = Folder.open_directory, [fault("too_many_files")]

    def refusing(self: Folder, path: bytes) -> int:
        if path == b"sub" and refusals:
            raise refusals.pop()
        return opened(self, path)

    (tmp_path / "drop" / "sub").mkdir(parents=True)
    (tmp_path / "drop" / "sub" / "old").write_text("x")
    await asyncio.sleep(0.05)  # as above
    monkeypatch.setattr(Folder, "open_directory", refusing)
    async with watching(tmp_path, existing="ignore", polling="always", poll_interval=3600) as drop:
        await drop.scanned()
        assert not refusals
        await drop.rescan()
        (drop.root / "new").write_text("y")
        await drop.rescan()
        await drop.has("new")
        assert drop.paths() == [b"new"]


async def test_a_first_scan_that_was_done_is_not_done_again_for_existing_files(tmp_path: Path) -> None:
    async with watching(tmp_path, existing="ignore") as drop:
        await drop.scanned()
    (tmp_path / "drop" / "while down").write_text("x")
    async with watching(tmp_path, existing="ignore") as drop:
        await drop.has("while down")


async def test_without_events_scans_alone_find_files(tmp_path: Path) -> None:
    async with watching(tmp_path, polling="always", poll_interval=1) as drop:
        await drop.scanned()
        assert drop.events("watch.started")[0]["events"] == "polling"
        (drop.root / "a").write_text("x")
        await drop.has("a")


async def test_below_the_top_nothing_is_seen_where_recursive_is_off(tmp_path: Path) -> None:
    async with watching(tmp_path, recursive=False) as drop:
        await drop.scanned()
        (drop.root / "sub").mkdir()
        (drop.root / "sub" / "a").write_text("x")
        (drop.root / "top").write_text("x")
        await drop.has("top")
        await drop.rescan()
        await drop.through()
        assert drop.paths() == [b"top"]


async def test_a_folder_that_is_uploaded_already_costs_no_candidates(tmp_path: Path) -> None:
    async with watching(tmp_path) as drop:
        (drop.root / "a").write_text("x")
        await drop.has("a")
    async with watching(tmp_path) as drop:
        await drop.scanned()
        assert drop.events("scan.finished")[0]["files"] == 1
        assert drop.events("scan.finished")[0]["candidates"] == 0


async def test_the_next_scan_is_told_and_lies_ahead(tmp_path: Path) -> None:
    async with watching(tmp_path) as drop:
        assert drop.watcher.scanner.next_scan_at is None  # the first is due at once
        await drop.scanned()
        await drop.until(lambda: drop.watcher.scanner.next_scan_at is not None)
        assert drop.watcher.scanner.next_scan_at is not None
        assert 50 < (drop.watcher.scanner.next_scan_at - datetime.now(UTC)).total_seconds() <= 60


async def test_a_scan_of_what_is_recorded_asks_the_ledger_once_and_has_no_candidate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A million files take seconds: none costs more than its listing."""
    async with watching(tmp_path, rescan="1h") as drop:
        names = [f"{number}/file" for number in range(20)]
        for name in names:
            (drop.root / name).parent.mkdir()
            (drop.root / name).write_text("x")
        await drop.has(*names)
        await drop.through()
        asked, differing = list[int](), drop.ledger.differing

        async def counted(watch: str, listed: Sequence[Listed]) -> list[Listed]:
            asked.append(len(listed))
            return await differing(watch, listed)

        monkeypatch.setattr(drop.ledger, "differing", counted)
        await drop.rescan()
        assert asked.count(len(names)) == 1  # beside it, a directory that just appeared may be asked for by itself
        scan = drop.events("scan.finished")[-1]
        assert (scan["files"], scan["candidates"]) == (len(names), 0)


async def test_a_dry_run_tells_what_would_go_and_records_nothing(tmp_path: Path) -> None:
    async with watching(tmp_path, existing="ignore", ignore=["*.log"]) as drop:
        await drop.scanned()
        await drop.through()
    (tmp_path / "drop" / "a").write_text("x")
    (tmp_path / "drop" / "b.log").write_text("x")
    async with watching(tmp_path, settle=3600, ignore=["*.log"]) as drop:
        assert [path for path, _ in await drop.watcher.scanner.list_new()] == [b"a"]
        assert drop.versions == []


@pytest.mark.parametrize("ready_marker", ["{name}.ok", "{stem}.ok"])
async def test_a_file_counts_only_once_its_marker_is_there(tmp_path: Path, ready_marker: str) -> None:
    async with watching(tmp_path, ready_marker=ready_marker, rescan="1h") as drop:
        await drop.scanned()
        (drop.root / "scan.pdf").write_text("x")
        await drop.until(lambda: any("waits for" in one.why for one in drop.watcher.lane.snapshot()))
        marker = ready_marker.format(name="scan.pdf", stem="scan")
        assert drop.watcher.lane.snapshot()[0].why == f"waits for {marker}"
        (drop.root / marker).touch()
        await drop.has("scan.pdf")
        await drop.rescan()
        await drop.through()
        assert drop.paths() == [b"scan.pdf"]


@pytest.mark.needs("user namespaces")
def test_without_inotify_watches_left_scans_go_on_and_the_limit_is_named(tmp_path: Path, events: Events) -> None:
    """In a user namespace of its own, where the limit can be set low without touching the machine's."""
    script = """
import asyncio, sys
from pathlib import Path
from tests.watching import watching

async def main(tmp_path, events):
    (tmp_path / "drop" / "a" / "b").mkdir(parents=True)
    Path("/proc/sys/user/max_inotify_watches").write_text("2")
    async with watching(tmp_path, events=events, poll_interval=1) as drop:
        await drop.scanned()
        (drop.root / "a" / "b" / "file").write_text("x")
        await drop.has("a/b/file")
        print(drop.events("watch.overflow")[0]["fix"])
        Path("/proc/sys/user/max_inotify_watches").write_text("100")
        await drop.until(lambda: any(entry["reason"] == "restart" for entry in drop.events("scan.finished")))

asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
"""
    command = ["unshare", "--user", "--map-root-user", sys.executable, "-c", script, os.fspath(tmp_path), events]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("raise fs.inotify.max_user_watches (now ")
    assert done.stdout.endswith("; this watch has 3 directories)\n")


def test_what_lies_deeper_than_it_is_watched_is_no_news(tmp_path: Path) -> None:
    config = WatchConfig(name="drop", path=tmp_path, bucket="test-bucket", recursive=False)
    (tmp_path / "sub").mkdir()
    folder = Folder(config)
    hints = Hints({b"sub/a", b"sub"})
    assert look_at(config, folder, Ignore(config), Unfinished(), hints) == Findings()
    folder.close()


def test_a_file_that_was_just_closed_is_looked_at_by_settling_alone(tmp_path: Path) -> None:
    config = WatchConfig(name="drop", path=tmp_path, bucket="test-bucket", ignore=["*.log"])
    folder = Folder(config)
    hints = Hints({b"other"}, {b"closed", b"closed.log"})
    found = look_at(config, folder, Ignore(config), Unfinished(), hints)
    assert found == Findings(files={b"closed"}, gone={b"other"}), "neither file is there, but only one was looked at"
    folder.close()


def test_what_a_sick_disk_tells_nothing_of_is_settled_and_scanned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(_: Folder, __: bytes) -> os.stat_result:
        raise fault("read_error")

    config = WatchConfig(name="drop", path=tmp_path, bucket="test-bucket")
    folder = Folder(config)
    monkeypatch.setattr(Folder, "stat", refusing)
    found = look_at(config, folder, Ignore(config), Unfinished(), Hints({b"a"}))
    assert found == Findings(files={b"a"}, directories={b"a": True})
    folder.close()


def test_what_can_not_be_looked_at_is_not_taken_for_gone() -> None:
    """Its version would end as vanished; the next scan names what it can't read."""
    with world_readable() as root:
        (root / "closed").mkdir()
        (root / "closed").chmod(0)
        config = WatchConfig(name="drop", path=root, bucket="test-bucket")
        folder = Folder(config)
        with without_rights():
            assert look_at(config, folder, Ignore(config), Unfinished(), Hints({b"closed/a"})) == Findings()
        (root / "closed").chmod(0o700)
        folder.close()
