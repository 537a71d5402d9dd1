"""Finish on filesystems without its preferred calls, and after a crash at any step."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from presignd.pipeline.finish.remove import FinishOutcome
from presignd.system import syscalls

if TYPE_CHECKING:
    from collections.abc import Callable

from tests.finishing import (
    ASIDE,
    CONTENT,
    WAYS,
    Place,
    deleting,
    during,
    either,
    far,
    leases,
    moving,
    only,
    place,
    rewrite,
)

__all__ = ["deleting", "either", "far", "leases", "moving"]


# --- filesystems without the calls ---------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_no_filesystem_is_too_poor_to_finish_and_none_overwrites(
    moving: Place, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    only(way, monkeypatch)
    (moving.done / "sub").mkdir(parents=True)
    (moving.done / "sub/a.txt").write_bytes(b"older")
    assert moving.finish().outcome is FinishOutcome.MOVED
    assert moving.tree == {"done/sub/a.txt": b"older", "done/sub/a~2.txt": CONTENT}


@pytest.mark.parametrize("way", WAYS)
def test_no_filesystem_is_too_poor_to_put_back(either: Place, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    only(way, monkeypatch)
    rewrite(either.file, CONTENT[::-1], hide=True)
    assert either.finish().changed
    assert either.tree == {"drop/sub/a.txt": CONTENT[::-1]}


# --- crashes -------------------------------------------------------------------------------------


class CrashError(BaseException):
    """The process is gone: no handler of ours puts anything right."""


EFFECTS = ("rename", "unlink", "link", "mkdir", "fsync", "pwrite", "utime", "fchmod")


def crash_before(step: int, patched: pytest.MonkeyPatch) -> None:
    """Crash before the ``step``-th change to the filesystem."""
    steps = iter(range(1, 10_000))

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def change(*args: Any, **kwargs: Any) -> Any:
            if next(steps) == step:
                raise CrashError
            return real(*args, **kwargs)

        return change

    for name in EFFECTS:
        patched.setattr(os, name, counted(getattr(os, name)))
    patched.setattr(syscalls, "renameat2_noreplace", counted(syscalls.renameat2_noreplace))


def two_filesystems(patched: pytest.MonkeyPatch) -> None:
    """Let no rename or link leave its directory, as between two mounts."""
    renameat2, link = syscalls.renameat2_noreplace, os.link

    def check(from_dir: int, to_dir: int) -> None:
        if not os.path.samestat(os.fstat(from_dir), os.fstat(to_dir)):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    def apart(from_dir: int, name: bytes, to_dir: int, to_name: bytes) -> None:
        check(from_dir, to_dir)
        renameat2(from_dir, name, to_dir, to_name)

    def apart_link(name: Any, to_name: Any, **dirs: Any) -> None:
        check(dirs["src_dir_fd"], dirs["dst_dir_fd"])
        link(name, to_name, **dirs)

    patched.setattr(syscalls, "renameat2_noreplace", apart)
    patched.setattr(os, "link", apart_link)


@pytest.mark.parametrize("way", ["renameat2", "links"])
@pytest.mark.parametrize("after", ["delete", "move", "across"])
def test_a_crash_at_any_step_is_gone_on_from_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: str, way: str
) -> None:
    """SIGKILL before each single change; the next start does the rest, exactly once."""
    for step in range(1, 100):
        base = tmp_path / str(step)
        crashed = False
        with place(base, "delete" if after == "delete" else "move") as here, monkeypatch.context() as patched:
            only(way, patched)
            if after == "across" and way == "renameat2":
                two_filesystems(patched)
            elif after == "across":
                two_filesystems(patched)
                only(way, patched)
            with monkeypatch.context() as crashing:
                crash_before(step, crashing)
                try:
                    here.finish()
                except CrashError:
                    crashed = True
            if after != "delete":
                assert CONTENT in here.tree.values()
            outcome = here.finish().outcome
            assert outcome in {FinishOutcome.DELETED, FinishOutcome.MOVED, FinishOutcome.GONE}
            assert here.tree == ({} if after == "delete" else {"done/sub/a.txt": CONTENT})
        if not crashed:
            break
    assert step > (3 if after == "delete" else 6)


def test_half_a_copy_goes_though_the_file_s_folder_moved_after_the_crash(
    moving: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash() -> None:
        raise CrashError

    two_filesystems(monkeypatch)
    with monkeypatch.context() as crashing:
        during(crashing, "copy_file", crash, then=True)
        with pytest.raises(CrashError):
            moving.finish()
    assert any(name.endswith(".copy") for name in moving.tree)
    moving.file.parent.rename(moving.file.parent.with_name("other"))
    assert moving.finish().outcome is FinishOutcome.GONE
    assert [name for name in moving.tree if name.endswith(".copy")] == []


@pytest.mark.parametrize("way", ["renameat2", "links"])
@pytest.mark.parametrize("after", ["delete", "across"])
def test_a_crash_at_any_step_of_putting_back_loses_no_newer_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: str, way: str
) -> None:
    newer = CONTENT[::-1]
    for step in range(1, 100):
        base = tmp_path / str(step)
        crashed = False
        with place(base, "delete" if after == "delete" else "move") as here, monkeypatch.context() as patched:
            two_filesystems(patched)
            only(way, patched)
            moment = "copy_file" if after == "across" else "content_checksum"
            with monkeypatch.context() as crashing:
                during(crashing, moment, lambda: rewrite(here.file.with_name(ASIDE), newer, hide=True), then=True)
                crash_before(step, crashing)
                try:
                    assert here.finish().changed
                except CrashError:
                    crashed = True
            outcome = here.finish().outcome
            assert newer in here.tree.values() or outcome in {FinishOutcome.MOVED, FinishOutcome.DELETED}
            if outcome is FinishOutcome.CHANGED:
                assert here.tree == {"drop/sub/a.txt": newer}
        if not crashed:
            break
    assert step > 3
