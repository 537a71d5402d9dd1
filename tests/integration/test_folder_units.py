"""A folder that gets one link as a whole: once, complete, and with no file of it before."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import subprocess
import threading
from typing import TYPE_CHECKING, Any

import pytest

from presignd.control.peer import Peer
from presignd.control.requests import Responder
from presignd.errors import Refused, TimedOut
from presignd.model import Listed, Source, State
from presignd.pipeline.intake import UPLOAD_PRIORITIES
from presignd.pipeline.unit import folders as unit_folders
from presignd.pipeline.unit import gather
from presignd.pipeline.watch.scan import Scan
from tests.faulty_s3 import FaultyS3
from tests.folder_units import SHOOT, fill, folders, linked, manifest_of, mark, rows, stored
from tests.running import Running, config, running, watch

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from presignd.ledger.units import Marker


async def settled(daemon: Running, path: bytes, state: State) -> None:
    """Wait until the version of a path is in a state."""
    for _ in range(2000):
        found = await daemon.ledger.by_path("drop", path)
        if found is not None and found.state is state:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{path!r} is not {state}")


async def none_open(daemon: Running) -> None:
    """Wait until each unit is finished."""
    for _ in range(2000):
        if not await daemon.ledger.units.open("drop"):
            return
        await asyncio.sleep(0.01)
    raise AssertionError("a unit is open")


async def waits(daemon: Running, why: str) -> None:
    """Wait until ``status`` tells that something waits for this."""
    await daemon.until(lambda: any(why in one.why for one in daemon.view.settling()), why)


def checked(sums: bytes, folder: Path) -> int:
    """Return how ``sha256sum`` ends that checks a folder by a list of sums."""
    return subprocess.run(["sha256sum", "-c", "--strict"], input=sums, cwd=folder, check=False).returncode


def why(daemon: Running) -> list[str]:
    return [one.why for one in daemon.view.settling()]


async def test_a_folder_gets_one_link_and_its_manifest_names_all_files(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    async with running(config(tmp_path, faulty_s3, folders(tmp_path))) as daemon:
        fill(tmp_path / "drop", "shoot", SHOOT)
        (line,) = await linked(daemon)
        ends = daemon.events("file.done")
    assert (line["path"], line["key"]) == (str(tmp_path / "drop/shoot"), "shoot/MANIFEST.json")
    assert line["content_type"] == "application/json"
    manifest, objects = manifest_of(faulty_s3, "shoot"), stored(faulty_s3, "shoot/")
    assert manifest["unit"] == "shoot"
    assert [(file["path"], file["key"], file["size"]) for file in manifest["files"]] == [
        (path, f"shoot/{path}", len(SHOOT[path])) for path in sorted(SHOOT)
    ]
    assert all(file["checksum"].startswith("md5:") for file in manifest["files"])
    assert {path: objects[path] for path in SHOOT} == SHOOT
    assert {*list(objects)[-2:]} == {"MANIFEST.json", "SHA256SUMS"}, "they are uploaded last"
    assert sorted(end["status"] for end in ends) == ["linked"] * 5
    assert ends[-1]["path"] == str(tmp_path / "drop/shoot")


async def test_sha256sum_accepts_the_list_of_sums(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    files = {**SHOOT, "with space and ü.txt": b"x"}
    async with running(config(tmp_path, faulty_s3, folders(tmp_path))) as daemon:
        shoot = fill(tmp_path / "drop", "shoot", files)
        await linked(daemon)
    sums = stored(faulty_s3, "shoot/")["SHA256SUMS"]
    assert len(sums.splitlines()) == len(files)
    assert checked(sums, shoot) == 0


async def test_nothing_goes_before_the_marker_and_no_link_before_the_last_file(
    faulty_s3: FaultyS3, tmp_path: Path
) -> None:
    """A marker that overtakes a file that is still being written: the writer check holds the folder back."""
    async with running(config(tmp_path, faulty_s3, folders(tmp_path))) as daemon:
        shoot = fill(tmp_path / "drop", "shoot", SHOOT, ready=False)
        await waits(daemon, "waits for shoot.ok")
        assert not stored(faulty_s3, "shoot/")
        with (shoot / "big.bin").open("wb") as writing:
            writing.write(b"half")
            writing.flush()
            mark(tmp_path / "drop", "shoot")
            await waits(daemon, "as a whole: 1 of its 4 files are not uploaded yet: the first is shoot/big.bin")
            assert daemon.view.settling_at("drop", b"shoot") in daemon.view.settling(), "status of the folder tells it"
            await settled(daemon, b"shoot/a.jpg", State.VERIFIED)
            assert not rows(tmp_path)
            writing.write(b"whole")
        (line,) = await linked(daemon)
    assert line["key"] == "shoot/MANIFEST.json"
    assert len(manifest_of(faulty_s3, "shoot")["files"]) == 4
    assert stored(faulty_s3, "shoot/")["big.bin"] == b"halfwhole"


async def test_an_empty_folder_and_files_in_no_folder(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    async with running(config(tmp_path, faulty_s3, folders(tmp_path))) as daemon:
        daemon.drop("alone.txt")
        fill(tmp_path / "drop", "nothing", {})
        (line,) = await linked(daemon)
        await daemon.rescan()
        assert 'unit = "folder"' in daemon.view.ignored("drop", b"alone.txt")
    assert line["key"] == "nothing/MANIFEST.json"
    assert manifest_of(faulty_s3, "nothing")["files"] == []
    assert {key for _, key in faulty_s3.objects} >= {"nothing/SHA256SUMS"}
    assert not stored(faulty_s3, "alone")


async def test_what_changes_after_the_marker_waits_for_it_to_be_written_anew(
    faulty_s3: FaultyS3, tmp_path: Path
) -> None:
    async with running(config(tmp_path, faulty_s3, folders(tmp_path))) as daemon:
        shoot = fill(tmp_path / "drop", "shoot", SHOOT)
        await linked(daemon)
        (shoot / "a.jpg").write_bytes(b"changed")
        (shoot / "new.txt").write_bytes(b"added")
        (shoot / "empty").unlink()
        await daemon.until(lambda: why(daemon) == ["waits for shoot.ok to be written anew"] * 2, "both to wait")
        before = len(faulty_s3.seen("PUT", "shoot/raw/b.raw"))
        mark(tmp_path / "drop", "shoot")
        lines = await linked(daemon, 2)
    assert [line["key"] for line in lines] == ["shoot/MANIFEST.json"] * 2
    assert lines[0]["file_id"] != lines[1]["file_id"]
    files = {file["path"]: file["size"] for file in manifest_of(faulty_s3, "shoot")["files"]}
    assert files == {"a.jpg": 7, "new.txt": 5, "raw/b.raw": 6000}
    assert len(faulty_s3.seen("PUT", "shoot/raw/b.raw")) == before, "what is stored as it is is not sent again"
    assert b"empty" not in stored(faulty_s3, "shoot/")["SHA256SUMS"]


async def test_a_marker_written_anew_alone_makes_another_unit(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    async with running(config(tmp_path, faulty_s3, folders(tmp_path))) as daemon:
        fill(tmp_path / "drop", "shoot", SHOOT)
        await linked(daemon)
        mark(tmp_path / "drop", "shoot")
        assert len(await linked(daemon, 2)) == 2


async def test_a_file_that_changes_or_leaves_before_the_folder_is_complete(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    """The version that waits ends, so that the newer one of its path can go."""
    async with running(config(tmp_path, faulty_s3, folders(tmp_path))) as daemon:
        shoot = fill(tmp_path / "drop", "shoot", SHOOT, ready=False)
        with (shoot / "late").open("wb"):
            mark(tmp_path / "drop", "shoot")
            await settled(daemon, b"shoot/a.jpg", State.VERIFIED)
            await settled(daemon, b"shoot/empty", State.VERIFIED)
            (shoot / "a.jpg").write_bytes(b"second thoughts")
            (shoot / "empty").unlink()
            await daemon.until(lambda: len(daemon.events("file.done")) >= 2, "two ends")
            assert sorted(end["status"] for end in daemon.events("file.done")) == ["superseded", "vanished"]
            await daemon.until(lambda: stored(faulty_s3, "shoot/").get("a.jpg") == b"second thoughts", "the newer")
            assert not rows(tmp_path)
        await linked(daemon)
    files = {file["path"]: file["size"] for file in manifest_of(faulty_s3, "shoot")["files"]}
    assert files == {"a.jpg": 15, "late": 0, "raw/b.raw": 6000}


async def test_a_quarantined_file_holds_its_folder_and_retry_goes_on(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    async with running(config(tmp_path, faulty_s3, folders(tmp_path, max_size=5000))) as daemon:
        fill(tmp_path / "drop", "shoot", SHOOT)
        await waits(daemon, "1 of its 3 files are not uploaded yet: shoot/raw/b.raw is quarantined")
        assert not rows(tmp_path)
        (tmp_path / "drop/shoot/raw/b.raw").unlink()
        await linked(daemon)
    assert [file["path"] for file in manifest_of(faulty_s3, "shoot")["files"]] == ["a.jpg", "empty"]


@pytest.mark.parametrize("after", ["delete", "move"])
async def test_files_are_moved_or_deleted_once_the_folder_is_linked(
    faulty_s3: FaultyS3, tmp_path: Path, after: str
) -> None:
    """What is no member stays, with its folder; the rest goes, with folders that are empty then."""
    more = {"move_to": tmp_path / "done"} if after == "move" else {}
    drop = tmp_path / "drop"
    async with running(config(tmp_path, faulty_s3, folders(tmp_path, after=after, **more))) as daemon:
        many = {f"many/{number}": b"%d" % number for number in range(150)}
        fill(drop, "shoot", SHOOT | many)
        fill(drop, "kept", {"a": b"a", "sub/.hidden": b"not a member"})
        await linked(daemon, 2)
    assert sorted(path.name for path in drop.iterdir()) == ["kept", "kept.ok", "shoot.ok"]
    assert {path.name for path in drop.rglob("*") if path.is_file()} == {"kept.ok", "shoot.ok", ".hidden"}
    if after == "move":
        assert {path: (tmp_path / "done/shoot" / path).read_bytes() for path in SHOOT} == SHOOT
    assert len(manifest_of(faulty_s3, "shoot")["files"]) == 153


async def test_the_folders_link_file_stands_beside_it_and_no_file_has_one(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    async with running(config(tmp_path, faulty_s3, folders(tmp_path, link_file="{name}.link.txt"))) as daemon:
        fill(tmp_path / "drop", "shoot", SHOOT)
        (line,) = await linked(daemon)
    assert [path.name for path in (tmp_path / "drop").rglob("*.link.txt")] == ["shoot.link.txt"]
    assert (tmp_path / "drop/shoot.link.txt").read_text() == line["url"] + "\n"


async def test_own_files_of_these_names_are_members_and_the_units_get_other_keys(
    faulty_s3: FaultyS3, tmp_path: Path
) -> None:
    theirs = {"MANIFEST.json": b"theirs", "SHA256SUMS": b"theirs too", "sub/MANIFEST.json": b"below"}
    async with running(config(tmp_path, faulty_s3, folders(tmp_path))) as daemon:
        fill(tmp_path / "drop", "shoot", theirs)
        (line,) = await linked(daemon)
    objects = stored(faulty_s3, "shoot/")
    assert {path: objects[path] for path in theirs} == theirs
    assert line["key"] == "shoot/MANIFEST~2.json"
    assert hashlib.sha256(b"theirs").hexdigest().encode() in objects["SHA256SUMS~2"]


async def test_a_put_of_a_file_in_a_folder_has_a_link_of_its_own(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    async with running(config(tmp_path, faulty_s3, folders(tmp_path))) as daemon:
        shoot = fill(tmp_path / "drop", "shoot", SHOOT, ready=False)
        fd = os.open(shoot / "a.jpg", os.O_RDONLY)
        link = await daemon.view.put(
            fd, b"shoot/a.jpg", "drop", key=None, expires=None, by_uid=0, progress=lambda _: None
        )
        os.close(fd)
        assert link.key == "shoot/a.jpg"
        mark(tmp_path / "drop", "shoot")
        lines = await linked(daemon)
        put = await daemon.ledger.by_path("drop", b"shoot/a.jpg")
    assert put is not None
    assert put.priority == UPLOAD_PRIORITIES[Source.PUT]
    assert [line["key"] for line in lines] == ["shoot/a.jpg", "shoot/MANIFEST.json"]
    assert len(manifest_of(faulty_s3, "shoot")["files"]) == 3


async def test_a_folder_that_vanishes_before_it_is_complete_leaves_nothing_waiting(
    faulty_s3: FaultyS3, tmp_path: Path
) -> None:
    async with running(config(tmp_path, faulty_s3, folders(tmp_path))) as daemon:
        shoot = fill(tmp_path / "drop", "shoot", SHOOT, ready=False)
        with (shoot / "late").open("wb"):
            mark(tmp_path / "drop", "shoot")
            await settled(daemon, b"shoot/a.jpg", State.VERIFIED)
            await settled(daemon, b"shoot/raw/b.raw", State.VERIFIED)
            await settled(daemon, b"shoot/empty", State.VERIFIED)
            shutil.rmtree(shoot)
        await daemon.until(lambda: len(daemon.events("file.done")) == 3, "three ends")
        await daemon.until(lambda: not daemon.view.settling(), "nothing to settle")
    assert {end["status"] for end in daemon.events("file.done")} == {"vanished"}
    assert not rows(tmp_path)


async def test_the_next_start_goes_on_and_a_folder_is_linked_once(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    """Stopped while a file is written, then while the store refuses the manifest."""
    made = config(tmp_path, faulty_s3, folders(tmp_path))
    shoot = fill(tmp_path / "drop", "shoot", SHOOT, ready=False)
    async with running(made) as daemon:
        with (shoot / "late").open("wb"):
            mark(tmp_path / "drop", "shoot")
            await settled(daemon, b"shoot/a.jpg", State.VERIFIED)
    order = faulty_s3.fault(method="PUT", key="shoot/MANIFEST.json", times=1000, status=500, code="InternalError")
    async with running(made) as daemon:
        await daemon.until(lambda: faulty_s3.seen("PUT", "shoot/MANIFEST.json"), "a try")
    order.times = 0
    async with running(made) as daemon:
        (line,) = await linked(daemon)
    async with running(made) as daemon:
        await daemon.rescan()
    assert rows(tmp_path) == [line]
    assert len(manifest_of(faulty_s3, "shoot")["files"]) == 4


async def test_a_watch_that_links_files_from_now_on_links_those_that_wait(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    before = config(tmp_path, faulty_s3, folders(tmp_path))
    shoot = fill(tmp_path / "drop", "shoot", SHOOT, ready=False)
    async with running(before) as daemon:
        with (shoot / "late").open("wb"):
            mark(tmp_path / "drop", "shoot")
            await settled(daemon, b"shoot/a.jpg", State.VERIFIED)
    async with running(config(tmp_path, faulty_s3, watch(tmp_path))) as daemon:
        await daemon.until(lambda: len(rows(tmp_path)) >= 5, "links of all files, and of the marker")
    keys: list[Any] = sorted(line["key"] for line in rows(tmp_path))
    assert keys == ["shoot.ok", "shoot/a.jpg", "shoot/empty", "shoot/late", "shoot/raw/b.raw"]


async def asked(daemon: Running, **request: Any) -> list[dict[str, Any]]:
    return [answer async for answer in Responder(daemon.view).answer(request, Peer.me(), ())]


async def test_commands_answer_for_the_folder_and_for_its_files(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    drop = tmp_path / "drop"
    unit, member = str(drop / "shoot"), str(drop / "shoot/a.jpg")
    async with running(config(tmp_path, faulty_s3, folders(tmp_path))) as daemon:
        (missing,) = await asked(daemon, op="wait", paths=[unit], timeout=0)
        assert missing["outcome"] == "missing"
        fill(drop, "shoot", SHOOT, ready=False)
        with pytest.raises(TimedOut):
            await asked(daemon, op="wait", paths=[unit, member], timeout=0)
        with pytest.raises(Refused, match='there is no link to it: unit = "folder" links whole folders'):
            await asked(daemon, op="path", path=[unit])
        mark(drop, "shoot")
        waited = await asked(daemon, op="wait", paths=[unit, member], timeout=20)
        assert [answer["outcome"] for answer in waited] == ["linked", "linked"]
        await asked(daemon, op="wait", paths=[member], timeout=0)
        await daemon.until(lambda: not daemon.view.settling(), "that what is linked waits for no marker")
        (of_unit,), (of_member,) = [await asked(daemon, op="path", path=[path]) for path in (unit, member)]
        assert (of_unit["version"]["key"], of_unit["version"]["link"]) == ("shoot/MANIFEST.json", "presigned")
        assert (of_member["version"]["key"], of_member["version"]["link"]) == ("shoot/a.jpg", "unit")
        links = [(await asked(daemon, op="link", path=[path]))[0]["link"] for path in (unit, member)]
        assert [link["key"] for link in links] == ["shoot/MANIFEST.json", "shoot/a.jpg"]
        await linked(daemon)
        mark(drop, "shoot")
        await asked(daemon, op="wait", paths=[unit], timeout=20)
        assert len(rows(tmp_path)) == 2, "the marker was written anew, so it waited for another link"
        summary = (await asked(daemon, op="verify", all=True))[-1]["summary"]
        assert (summary["equal"], summary["exit"]) == (5, 0)


async def test_a_reload_links_the_files_that_wait_and_takes_those_that_are_linked_as_members(
    faulty_s3: FaultyS3, tmp_path: Path
) -> None:
    whole, each = (config(tmp_path, faulty_s3, made) for made in (folders(tmp_path), watch(tmp_path)))
    found = whole
    shoot = fill(tmp_path / "drop", "shoot", SHOOT, ready=False)
    async with running(whole, load=lambda: found) as daemon:
        with (shoot / "late").open("wb"):
            mark(tmp_path / "drop", "shoot")
            for path in SHOOT:
                await settled(daemon, b"shoot/" + path.encode(), State.VERIFIED)
            found = each
            daemon.reload.set()
            await daemon.until(lambda: len(rows(tmp_path)) >= 4, "links of three files and of the marker")
            found = whole
            daemon.reload.set()
            await daemon.said_by_now("config.reloaded", 2)
        await linked(daemon)
    assert [line["key"] for line in rows(tmp_path)][-1] == "shoot/MANIFEST.json"
    assert len(rows(tmp_path)) == 5
    assert len(manifest_of(faulty_s3, "shoot")["files"]) == 4


async def test_a_large_folder_and_a_small_one_beside_it(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    """More files than a batch, and than what may be at work at once."""
    many = {f"{number // 100}/{number}": b"%d" % number for number in range(600)}
    async with running(config(tmp_path, faulty_s3, folders(tmp_path))) as daemon:
        fill(tmp_path / "drop", "large", many)
        fill(tmp_path / "drop", "small", SHOOT)
        await daemon.until(lambda: len(rows(tmp_path)) == 2, "two links", 120)
        await linked(daemon, 2)
        await daemon.until(lambda: len(daemon.events("file.done")) == 600 + 3 + 4, "all to be done", 120)
        await none_open(daemon)
    assert {file["path"]: file["size"] for file in manifest_of(faulty_s3, "large")["files"]} == {
        path: len(content) for path, content in many.items()
    }


async def test_a_folder_that_can_not_be_listed_waits(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    """A part that can't be read could hold any file."""
    async with running(config(tmp_path, faulty_s3, folders(tmp_path))) as daemon:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(gather, "Scan", Unlisted)
            fill(tmp_path / "drop", "shoot", SHOOT)
            await waits(daemon, "as a whole: shoot/raw: Permission denied")
            assert not rows(tmp_path)
        await linked(daemon)


class Unlisted(Scan):
    """A scan that met a directory it may not read."""

    async def in_thread(self) -> AsyncGenerator[list[Listed], None]:
        async for batch in super().in_thread():
            yield [each for each in batch if b"/raw/" not in each[0]]
        self.problems.append("shoot/raw: Permission denied")


async def test_a_file_that_is_opened_for_writing_after_its_upload_holds_the_folder(
    faulty_s3: FaultyS3, tmp_path: Path
) -> None:
    """Its sum is not computed before the writer is gone."""
    order = faulty_s3.fault(method="PUT", key="shoot/z", times=1000, status=500, code="InternalError")
    async with running(config(tmp_path, faulty_s3, folders(tmp_path))) as daemon:
        shoot = fill(tmp_path / "drop", "shoot", {**SHOOT, "z": b"last"})
        await settled(daemon, b"shoot/a.jpg", State.VERIFIED)
        with (shoot / "a.jpg").open("r+b"):
            order.times = 0
            await waits(daemon, "as a whole: SHA-256 sums of its files are computed")
            assert not rows(tmp_path)
        await linked(daemon)


async def test_a_folder_whose_sums_are_being_computed_is_not_listed_again(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    held, real_look, real_sum = threading.Event(), gather.Gatherer._look, unit_folders.sha256_of
    looks = list[bytes]()

    async def look(self: gather.Gatherer, name: bytes, marker: Marker, tasks: asyncio.TaskGroup) -> str:
        looks.append(name)
        return await real_look(self, name, marker, tasks)

    def sum_once_held(*given: Any) -> Any:
        held.wait(60)
        return real_sum(*given)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(gather.Gatherer, "_look", look)
        patched.setattr(gather, "sha256_of", sum_once_held)
        async with running(config(tmp_path, faulty_s3, folders(tmp_path))) as daemon:
            fill(tmp_path / "drop", "shoot", SHOOT)
            await waits(daemon, "as a whole: SHA-256 sums of its files are computed")
            looks.clear()
            await daemon.until(lambda: len(looks) > 1, "two looks more")
            assert why(daemon) == ["as a whole: SHA-256 sums of its files are computed"]
            held.set()
            await linked(daemon)


async def test_sums_that_the_upload_computed_are_not_computed_again(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    made = config(tmp_path, faulty_s3, folders(tmp_path), upload={"checksum": "sha256"})
    async with running(made) as daemon:
        shoot = fill(tmp_path / "drop", "shoot", SHOOT)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(unit_folders, "checksum_like", _fail)
            await linked(daemon)
    assert checked(stored(faulty_s3, "shoot/")["SHA256SUMS"], shoot) == 0


def _fail(*_: Any, **__: Any) -> str:
    raise AssertionError("it is read again")
