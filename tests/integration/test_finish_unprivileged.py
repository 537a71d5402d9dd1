"""Finish as a user who owns none of the files; as root these faults would not occur."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

from tests.finishing import CONTENT, Place, deleting, either, far, leases, moving, place
from tests.needs import need

__all__ = ["deleting", "either", "far", "leases", "moving"]


# --- unprivileged --------------------------------------------------------------------------------

NOBODY = 65534

CHILD = """
import os, sys
from datetime import datetime, UTC
from pathlib import Path
from presignd.config import WatchConfig
from presignd.errors import Fault
from presignd.model import FileVersion, Fingerprint, State
from presignd.pipeline.finish.remove import keep_move_or_delete
from presignd.pipeline.files.folder import Folder
from presignd.pipeline.files.lease import ignore_sigio
ignore_sigio()
drop, after, checksum = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
watch = WatchConfig(name="drop", path=drop, bucket="bucket", after=after,
    move_to=(Path(sys.argv[4]) if sys.argv[4:] else drop.parent / "done") if after == "move" else None)
version = FileVersion(
    file_id="id-1", watch="drop", path=b"sub/a.txt", fingerprint=Fingerprint.of(os.stat(drop / "sub/a.txt")),
    state=State.LINKED, bucket="bucket", base_key="k", key="k", content_type="", priority=0,
    queued_at=datetime.now(UTC), checksum=checksum)
try:
    print(keep_move_or_delete(Folder(watch), watch, version).outcome)
except Fault as problem:
    print(problem.code, problem.message)
"""


@pytest.fixture
def public() -> Iterator[Path]:
    """Make a base folder that another user can reach; its files are root's."""
    need("another user")
    base = Path("/var/tmp") / f"presignd-finish-{os.getpid()}"
    base.mkdir(mode=0o755)
    yield base
    shutil.rmtree(base)


def as_nobody(code: str, *args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, args)]
    who: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    repository = Path(__file__).parents[2]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=repository, **who)


def open_to_all(base: Path, after: str) -> Place:
    with place(base, after) as here:
        for folder in (base, here.file.parent.parent, here.file.parent):
            folder.chmod(0o777)
        here.file.chmod(0o644)
    return here


@pytest.mark.parametrize("after", ["delete", "move"])
def test_another_users_files_are_finished_where_the_folder_allows_it(public: Path, after: str) -> None:
    """No lease on them: the fingerprint and the content decide."""
    here = open_to_all(public, after)
    done = as_nobody(CHILD, public / "drop", after, here.version.checksum)
    assert done.stdout.split() == ["deleted" if after == "delete" else "moved"], done.stderr
    assert here.tree == ({} if after == "delete" else {"done/sub/a.txt": CONTENT})


@pytest.mark.parametrize(("path", "mode"), [("drop/sub", 0o755), ("drop/sub", 0o1777), ("done", 0o755)])
def test_a_folder_without_permission_fails_with_the_file_in_its_place(public: Path, path: str, mode: int) -> None:
    """Read-only, sticky (another user's file), and a move_to that can't be written to."""
    here = open_to_all(public, "move")
    here.done.mkdir()
    here.done.chmod(0o777)
    (public / path).chmod(mode)
    done = as_nobody(CHILD, public / "drop", "move", here.version.checksum)
    assert done.stdout.startswith("finish_failed"), done.stderr
    assert here.tree == {"drop/sub/a.txt": CONTENT}


@pytest.mark.parametrize("where", ["drop/done", "drop/sub/done", "share/done"])
@pytest.mark.parametrize("owner", [0, NOBODY, NOBODY - 1])
def test_a_service_is_led_nowhere_that_only_it_may_write(public: Path, where: str, owner: int) -> None:
    """As its state folder is, where a web.token of somebody else's would log in to the page. Whoever made the link."""
    here = open_to_all(public, "move")
    state, link = public / "state", public / where
    state.mkdir(mode=0o700)
    os.chown(state, NOBODY, NOBODY)
    link.parent.mkdir(exist_ok=True)
    link.parent.chmod(0o777)
    link.symlink_to(state)
    os.chown(link, owner, owner, follow_symlinks=False)
    done = as_nobody(CHILD, public / "drop", "move", here.version.checksum, link)
    assert done.stdout.startswith("finish_failed"), done.stderr
    assert "is a symlink" in done.stdout
    assert list(state.iterdir()) == []
    assert here.file.read_bytes() == CONTENT


def test_a_service_follows_a_symlink_of_roots(public: Path) -> None:
    """Where only root can write; what lies below its target may be anybody's."""
    here = open_to_all(public, "move")
    (public / "state").mkdir()
    os.chown(public / "state", NOBODY, NOBODY)
    link = public / "config" / "done"
    link.parent.mkdir(mode=0o755)
    link.symlink_to(public / "state")
    public.chmod(0o755)
    done = as_nobody(CHILD, public / "drop", "move", here.version.checksum, link)
    assert done.stdout.split() == ["moved"], done.stderr
    assert (public / "state" / "sub" / "a.txt").read_bytes() == CONTENT
