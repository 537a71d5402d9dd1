"""A crash leaves a file under presignd's own name, and its folder moves before the next start: its name is restored."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from structlog.testing import capture_logs

from presignd.model import FileVersion, LinksMark
from presignd.pipeline.watch import leftovers
from presignd.pipeline.watch.watcher import Pauses
from presignd.states import Event
from tests.versions import claim, linking
from tests.watching import Drop
from tests.watching import watching as watched

NOW = datetime(2026, 1, 1, tzinfo=UTC)


watching = partial(watched, pauses=Pauses(tick=0.02))


async def linked(drop: Drop, path: str) -> FileVersion:
    """Drop a file, and record it as uploaded and linked."""
    (drop.root / path).parent.mkdir(exist_ok=True)
    (drop.root / path).write_bytes(b"content")
    await drop.has(path)
    (version,) = await claim(drop.ledger, "drop", 1, datetime.now(UTC))
    version = await drop.ledger.apply(version, Event.VERIFY, checksum="md5:c", signed_at=NOW)
    (version,) = await drop.ledger.record_linked([linking(version, expires_at=NOW)], LinksMark(1, 1))
    return version


async def crash_and_move(drop: Drop, version: FileVersion) -> Path:
    """Leave the file aside, as a crash of finish does, and give its folder another name; return where it lies."""
    aside = f".presignd-{version.file_id}"
    (drop.root / "old/a.txt").rename(drop.root / "old" / aside)
    (drop.root / "old").rename(drop.root / "new")
    return drop.root / "new" / aside


async def test_a_file_left_aside_in_a_folder_that_moved_is_a_file_again(tmp_path: Path) -> None:
    async with watching(tmp_path, after="delete") as drop:
        version = await linked(drop, "old/a.txt")
        await drop.ledger.apply(version, Event.FINISH, done_at=NOW)
        await crash_and_move(drop, version)
        await drop.rescan()
        await drop.has("new/a.txt")
        assert [path.name for path in (drop.root / "new").iterdir()] == ["a.txt"]


async def test_a_newer_file_of_that_name_keeps_it(tmp_path: Path) -> None:
    async with watching(tmp_path, after="delete") as drop:
        version = await linked(drop, "old/a.txt")
        await drop.ledger.apply(version, Event.FINISH, done_at=NOW)
        await crash_and_move(drop, version)
        (drop.root / "new/a.txt").write_bytes(b"newer")
        await drop.rescan()
        await drop.has("new/a.txt", "new/a~2.txt")
        assert (drop.root / "new/a.txt").read_bytes() == b"newer"
        assert (drop.root / "new/a~2.txt").read_bytes() == b"content"


async def test_what_is_under_work_is_left_alone_until_it_is_through(tmp_path: Path) -> None:
    async with watching(tmp_path, after="delete") as drop:
        version = await linked(drop, "old/a.txt")
        aside = await crash_and_move(drop, version)
        await drop.rescan()
        await drop.rescan()
        assert aside.exists()
        await drop.ledger.apply(version, Event.FINISH, done_at=NOW)
        await drop.has("new/a.txt")


async def test_half_a_link_file_goes(tmp_path: Path) -> None:
    async with watching(tmp_path, link_file="{name}.link.txt") as drop:
        version = await linked(drop, "old/a.txt")
        await drop.ledger.apply(version, Event.FINISH, done_at=NOW)
        half = drop.root / "old" / f".presignd-{version.file_id}.link"
        half.write_text("https://")
        await drop.rescan()
        await drop.until(lambda: not half.exists())


async def test_names_that_nobody_remembers_stay(tmp_path: Path) -> None:
    async with watching(tmp_path) as drop:
        unknown = drop.root / ".presignd-another-one"
        unknown.write_bytes(b"content")
        version = await linked(drop, "old/a.txt")
        await drop.ledger.apply(version, Event.FINISH, done_at=NOW)
        known = drop.root / f".presignd-{version.file_id}"
        known.write_bytes(b"content")
        await drop.rescan()
        await drop.until(lambda: not known.exists())
        assert unknown.exists()


async def test_what_went_meanwhile_is_looked_for_no_more(tmp_path: Path) -> None:
    """Its version may be under work for long, or through: nothing is there to be offered."""
    async with watching(tmp_path) as drop:
        version = await linked(drop, "old/a.txt")
        looked_after = leftovers.Leftovers(drop.watcher.lane, drop.folder, drop.ledger, 1)
        for through in (False, True):
            if through:
                await drop.ledger.apply(version, Event.FINISH, done_at=NOW)
            looked_after.add([b"old/.presignd-" + version.file_id.encode()])
            await looked_after.turn()
            assert (looked_after._paths, drop.watcher.lane.snapshot()) == (set(), [])


async def test_a_name_that_nobody_knows_is_told_of_once_however_often_scans_find_it(tmp_path: Path) -> None:
    async with watching(tmp_path) as drop:
        looked_after = leftovers.Leftovers(drop.watcher.lane, drop.folder, drop.ledger, 1.0)
        with capture_logs() as told:
            for _ in range(3):
                looked_after.add([b".presignd-another-one"])
                await looked_after.turn()
        assert [entry["event"] for entry in told] == ["file.left_aside"]
