"""``move_to`` where other users can write (guarantee 11): their symlinks never redirect the daemon."""

from __future__ import annotations

import os
import shutil
import stat
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest

from presignd.errors import Fault
from presignd.pipeline.finish.remove import FinishOutcome
from tests.finishing import CONTENT, NOBODY, Place, far, leases, place, verified
from tests.needs import need
from tests.running import config, running, watch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.faulty_s3 import FaultyS3

__all__ = ["far", "leases"]

ROUNDS = 150
"""Files that are moved while somebody swaps their target."""


@pytest.fixture
def vault(tmp_path: Path) -> Path:
    """Make the folder that only the daemon may write, and where nothing of a folder's users may come."""
    folder = tmp_path / "vault"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture(params=["inside", "in a shared folder", "in another user's folder", "in a sticky folder"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Move to a folder that others can swap: inside the watch, or in another folder where they may write."""
    around = tmp_path / ("drop" if request.param == "inside" else "share")
    around.mkdir()
    if request.param == "in another user's folder":
        need("root")
        os.chown(around, NOBODY, NOBODY)
    else:
        around.chmod(0o1777 if "sticky" in request.param else 0o777)
    with place(tmp_path, "move", around / "done") as here:
        yield here


def foreign(link: Path) -> Path:
    """Give a symlink to another user, as far as this user may."""
    if os.geteuid() == 0:
        os.chown(link, NOBODY, NOBODY, follow_symlinks=False)
    elif stat.S_IMODE(link.parent.stat().st_mode) & stat.S_ISVTX:
        need("root")
    return link


@pytest.mark.parametrize("path", ["a.txt", "sub/a.txt"])
def test_a_symlink_that_others_put_in_place_of_move_to_is_not_followed(shared: Place, vault: Path, path: str) -> None:
    """The file keeps its name and its link, and a person is told why."""
    shared.done.symlink_to(vault)
    foreign(shared.done)
    shared.version = verified(shared.file.parent.parent, path)
    with pytest.raises(Fault, match="could not be moved") as refused:
        shared.finish()
    assert refused.value.code == "finish_failed"
    assert "done" in refused.value.message
    assert "symlink" in refused.value.message
    assert list(vault.iterdir()) == []
    assert shared.tree[f"drop/{path}"] == CONTENT


def test_a_symlink_is_not_followed_to_another_filesystem(shared: Place, far: Path) -> None:
    """Nor is a copy made there."""
    far.mkdir()
    shared.done.symlink_to(far)
    foreign(shared.done)
    with pytest.raises(Fault, match="could not be moved"):
        shared.finish()
    assert list(far.iterdir()) == []


def test_half_a_copy_is_not_looked_for_behind_a_symlink(shared: Place, vault: Path) -> None:
    """What a crash left is removed in move_to alone: another's file may have that name elsewhere."""
    other = vault / "sub" / ".presignd-id-1.copy"
    other.parent.mkdir()
    other.write_bytes(b"another's")
    shared.done.symlink_to(vault)
    foreign(shared.done)
    shutil.rmtree(shared.file.parent)
    assert shared.finish().outcome is FinishOutcome.GONE
    assert other.read_bytes() == b"another's"


def test_a_shared_folder_is_moved_to_where_nobody_swaps_it(shared: Place) -> None:
    """It is made, too, where it is missing."""
    assert shared.finish().outcome is FinishOutcome.MOVED
    assert (shared.done / "sub/a.txt").read_bytes() == CONTENT


def test_an_administrators_own_symlink_is_followed(tmp_path: Path, vault: Path) -> None:
    """Nobody else could have put it there."""
    (tmp_path / "done").symlink_to("by-year")
    (tmp_path / "by-year").symlink_to(vault)
    with place(tmp_path, "move", tmp_path / "done" / ".." / "vault" / "new") as here:
        assert here.finish().outcome is FinishOutcome.MOVED
    assert (vault / "new/sub/a.txt").read_bytes() == CONTENT


def test_an_administrators_symlink_into_the_watch_leads_to_what_others_can_swap(tmp_path: Path, vault: Path) -> None:
    """However the configuration spells it."""
    (tmp_path / "drop").mkdir()
    (tmp_path / "drop").chmod(0o777)
    (tmp_path / "link").symlink_to("drop")
    (tmp_path / "drop/done").symlink_to(vault)
    with place(tmp_path, "move", tmp_path / "link" / "done") as here, pytest.raises(Fault, match="symlink"):
        here.finish()
    assert list(vault.iterdir()) == []


class Swapping:
    """Somebody who swaps a folder for a symlink and back as fast as they can."""

    def __init__(self, folder: Path, target: Path) -> None:
        self._folder, self._link = folder, folder.with_name(".link")
        folder.mkdir(exist_ok=True)
        self._link.symlink_to(target)
        foreign(self._link)
        self._over = threading.Event()
        self.swaps = 0
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        away = self._folder.with_name(".away")
        while not self._over.is_set():
            for old, new in ((self._folder, away), (self._link, self._folder)):
                with suppress(OSError):
                    old.rename(new)
            self.swaps += 1
            for old, new in ((self._folder, self._link), (away, self._folder)):
                with suppress(OSError):
                    old.rename(new)


@pytest.mark.parametrize("where", ["move_to", "below"])
def test_no_swap_in_any_moment_leads_a_moved_file_elsewhere(shared: Place, vault: Path, where: str) -> None:
    """Each file is moved into a folder that has the name, or stays; none is lost."""
    shared.done.mkdir()
    outcomes = []
    with Swapping(shared.done if where == "move_to" else shared.done / "sub", vault) as swapping:
        for number in range(ROUNDS):
            shared.version = verified(shared.file.parent.parent, f"sub/{number}")
            with suppress(Fault):
                outcomes.append(shared.finish().outcome)
    assert swapping.swaps
    assert list(vault.iterdir()) == []
    files = [path for path in shared.file.parent.parent.parent.rglob("*") if path.is_file()]
    assert len(files) == ROUNDS + 1, "each once, and the one that was there"


async def test_a_whole_daemon_is_led_nowhere_by_move_to(faulty_s3: FaultyS3, tmp_path: Path, vault: Path) -> None:
    """It links the file, and says why it lies where it was."""
    moving = watch(tmp_path, after="move", move_to=tmp_path / "drop" / "done")
    (tmp_path / "drop" / "done").symlink_to(vault)
    async with running(config(tmp_path, faulty_s3, moving)) as daemon:
        daemon.drop("web.token", b"0123456789abcdef")
        (told,) = await daemon.said_by_now("file.quarantined")
        assert told["error_code"] == "finish_failed"
        assert daemon.links() == ["web.token"]
    assert [*os.scandir(vault)] == []
    assert (tmp_path / "drop" / "web.token").read_bytes() == b"0123456789abcdef"
