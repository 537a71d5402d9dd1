"""What a unit reads on disk and makes of the ledger, where files change, vanish or can't be read meanwhile."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from presignd.errors import fault
from presignd.ledger import Ledger, LostUpdate, open_ledger
from presignd.ledger.units import Unit, UnitRecords
from presignd.model import NO_FILE, Fingerprint, State
from presignd.pipeline.faults import Vanished
from presignd.pipeline.files.folder import Folder, Gone
from presignd.pipeline.files.ignore import Ignore
from presignd.pipeline.files.lease import ignore_sigio
from presignd.pipeline.unit import folders as unit_folders
from presignd.pipeline.unit import gather
from presignd.pipeline.unit.folders import UnitLook, WatchMarkers, look_at_unit, marked_folders, remove_empty, sha256_of
from presignd.pipeline.unit.gather import Gatherer
from presignd.pipeline.unit.manifest import open_made
from tests.faulty_s3 import FaultyS3
from tests.folder_units import SHOOT, fill, folders, linked
from tests.running import Running, config, running
from tests.versions import PRINT, in_state

if TYPE_CHECKING:
    from presignd.config import WatchConfig
    from presignd.ledger.units import Marker
    from presignd.model import FileVersion


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[tuple[WatchConfig, Folder]]:
    made = folders(tmp_path)
    folder = Folder(made)
    yield made, folder
    folder.close()


def version_of(drop: Path, path: str, **more: Any) -> FileVersion:
    print_ = Fingerprint.of((drop / path).stat())
    return in_state(State.VERIFIED, path.encode(), fingerprint=print_, **{"checksum": "md5:aa", **more})


def test_only_folders_with_their_markers_that_no_rule_ignores_are_marked(
    tmp_path: Path, watched: tuple[WatchConfig, Folder]
) -> None:
    made, folder = watched
    for name in ("b", ".hidden", "a"):
        fill(tmp_path / "drop", name, {})
    fill(tmp_path / "drop", "unmarked", {}, ready=False)
    (tmp_path / "drop/file").touch()
    (tmp_path / "drop/file.ok").touch()
    assert [name for name, _ in marked_folders(folder, made, Ignore(made))] == [b"a", b"b"]


def test_while_the_root_is_away_nothing_is_marked(watched: tuple[WatchConfig, Folder]) -> None:
    class Away:
        def open_directory(self, _: bytes) -> int:
            raise Gone("away")

    assert marked_folders(cast("Folder", Away()), watched[0], Ignore(watched[0])) == []


def test_a_look_at_a_folder_tells_whether_it_is_there_and_marked_anew(
    tmp_path: Path, watched: tuple[WatchConfig, Folder]
) -> None:
    made, folder = watched
    markers = WatchMarkers()
    markers.load({})
    fill(tmp_path / "drop", "shoot", {})
    fill(tmp_path / "drop", "unmarked", {}, ready=False)
    (tmp_path / "drop/file").touch()
    looks = {name: look_at_unit(folder, made, markers, name) for name in (b"shoot", b"unmarked", b"file", b"none")}
    assert looks == {
        b"shoot": UnitLook(there=True, anew=True),
        b"unmarked": UnitLook(there=True, anew=False),
        b"file": UnitLook(there=False, anew=False),
        b"none": UnitLook(there=False, anew=False),
    }


def test_a_sum_is_that_of_the_version_or_none(
    tmp_path: Path, watched: tuple[WatchConfig, Folder], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = watched
    ignore_sigio()
    drop, stop = tmp_path / "drop", threading.Event()
    fill(drop, "shoot", {"a": b"content"})
    version = version_of(drop, "shoot/a")
    assert sha256_of(folder, version, stop) == hashlib.sha256(b"content").hexdigest()
    assert sha256_of(folder, version._replace(checksum="sha256:ff"), stop) == "ff", "the upload has computed it"
    assert sha256_of(folder, version._replace(path=b"shoot/none"), stop) == ""
    assert sha256_of(folder, version._replace(fingerprint=PRINT), stop) == ""
    with monkeypatch.context() as patched:
        patched.setattr(unit_folders, "checksum_like", lambda *_, **__: _raise(fault("read_error")))
        assert sha256_of(folder, version, stop) == ""
    stop.set()
    assert sha256_of(folder, version, stop) == ""


def _raise(error: Exception) -> str:
    raise error


def test_only_empty_folders_are_removed_and_no_symlink_is_followed(
    tmp_path: Path, watched: tuple[WatchConfig, Folder]
) -> None:
    drop = tmp_path / "drop"
    (drop / "shoot/empty/below").mkdir(parents=True)
    (drop / "shoot/kept").mkdir()
    (drop / "shoot/kept/file").touch()
    (tmp_path / "elsewhere/empty").mkdir(parents=True)
    (drop / "link").symlink_to(tmp_path / "elsewhere")
    for path in (b"shoot", b"link", b"none", b"shoot/kept/file"):
        remove_empty(watched[1], path)
    assert sorted(str(path.relative_to(drop)) for path in drop.rglob("*")) == [
        "link",
        "shoot",
        "shoot/kept",
        "shoot/kept/file",
    ]
    assert (tmp_path / "elsewhere/empty").is_dir()


async def test_an_own_file_that_no_unit_has_is_gone(tmp_path: Path) -> None:
    ledger = await open_ledger(tmp_path / "ledger")
    try:
        with pytest.raises(Vanished):
            await open_made(ledger, in_state(State.UPLOADING, b"shoot", fingerprint=PRINT._replace(ino=NO_FILE)))
    finally:
        await ledger.close(clean=True)


# --- what happens between the looks and the commit ----------------------------------------------------


def gatherer_of(daemon: Running) -> Gatherer:
    return daemon.work.units._gatherers["drop"]


async def test_what_changes_between_the_look_and_the_commit_is_looked_at_again(
    faulty_s3: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it is while the presigner, which tells the prefix, is away."""
    complete, problems = Gatherer._complete, [LostUpdate("meanwhile"), fault("presigner_unreachable")]

    async def failing(self: Gatherer, name: bytes, marker: Marker, members: Sequence[str]) -> None:
        if problems:
            raise problems.pop(0)
        await complete(self, name, marker, members)

    monkeypatch.setattr(Gatherer, "_complete", failing)
    async with running(config(tmp_path, faulty_s3, folders(tmp_path))) as daemon:
        fill(tmp_path / "drop", "shoot", SHOOT)
        assert len(await linked(daemon)) == 1
    assert not problems


@pytest.mark.parametrize("after", ["keep", "delete"])
async def test_a_folder_whose_link_is_made_while_the_ledger_answers_is_linked_once(
    faulty_s3: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    """The answer says that it has no link yet, and no stage has it any more when the answer comes."""
    open_units, record_linked = UnitRecords.open, Ledger.record_linked
    linking, asked, recorded = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def late(self: UnitRecords, watch: str) -> list[Unit]:
        found = await open_units(self, watch)
        if linking.is_set():
            asked.set()
            await recorded.wait()
        return found

    async def after_a_query(self: Ledger, *args: Any) -> Any:
        linking.set()
        daemon.work.units.wake()
        await asked.wait()
        done = await record_linked(self, *args)
        asyncio.get_running_loop().call_later(0.05, recorded.set)
        return done

    monkeypatch.setattr(UnitRecords, "open", late)
    monkeypatch.setattr(Ledger, "record_linked", after_a_query)
    async with running(config(tmp_path, faulty_s3, folders(tmp_path, after=after))) as daemon:
        fill(tmp_path / "drop", "shoot", SHOOT)
        assert len(await linked(daemon)) == 1


async def test_a_folder_that_vanished_is_not_an_empty_one(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    async with running(config(tmp_path, faulty_s3, folders(tmp_path))) as daemon:
        assert (await gatherer_of(daemon)._gather(b"none"))[1] == "it is away"


async def test_sums_of_large_files_are_recorded_one_by_one_and_a_change_ends_them(
    faulty_s3: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is recorded is not read again; the next look finds out what changed."""
    results = ["", ""]

    def computed(folder: Folder, version: FileVersion, stop: threading.Event) -> str:
        if version.path.endswith(b"raw/b.raw") and results:
            return results.pop()
        return sha256_of(folder, version, stop)

    monkeypatch.setattr(gather, "SUMS_BYTES", 1)
    monkeypatch.setattr(gather, "sha256_of", computed)
    async with running(config(tmp_path, faulty_s3, folders(tmp_path))) as daemon:
        fill(tmp_path / "drop", "shoot", SHOOT)
        assert len(await linked(daemon)) == 1
    assert not results
