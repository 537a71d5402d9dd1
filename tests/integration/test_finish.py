"""Finish on a real filesystem: nothing is overwritten, lost or deleted unverified, whatever happens in between."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import shutil
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from presignd.errors import Fault, fault
from presignd.model import Fingerprint
from presignd.pipeline.files.lease import has_writer
from presignd.pipeline.finish import remove as finish_module
from presignd.pipeline.finish.remove import Finished, FinishOutcome
from presignd.system import syscalls

if TYPE_CHECKING:
    from collections.abc import Callable

from tests.finishing import (
    ASIDE,
    CONTENT,
    Place,
    deleting,
    during,
    either,
    failing,
    far,
    leases,
    moving,
    only,
    place,
    rewrite,
    verified,
)

__all__ = ["deleting", "either", "far", "leases", "moving"]


# --- what is asked for ---------------------------------------------------------------------------


def test_keep_touches_nothing(tmp_path: Path) -> None:
    with place(tmp_path, "keep") as here:
        before = Fingerprint.of(here.file.stat())
        assert here.finish() == Finished(FinishOutcome.KEPT)
        assert Fingerprint.of(here.file.stat()) == before


def test_delete_removes_the_verified_file_and_nothing_else(deleting: Place) -> None:
    other = deleting.file.with_name("other")
    other.write_bytes(b"o")
    assert deleting.finish() == Finished(FinishOutcome.DELETED)
    assert deleting.tree == {"drop/sub/other": b"o"}


def test_move_takes_the_file_to_its_relative_path_below_move_to(moving: Place) -> None:
    outcome = moving.finish()
    assert outcome == Finished(FinishOutcome.MOVED, os.fsencode(moving.done / "sub/a.txt"))
    assert moving.tree == {"done/sub/a.txt": CONTENT}


def test_a_put_from_elsewhere_is_never_touched(deleting: Place) -> None:
    """Its path is absolute: the file is its owner's, not the watch's."""
    deleting.version = deleting.version._replace(path=os.fsencode(deleting.file))
    assert deleting.finish().outcome is FinishOutcome.KEPT
    assert deleting.file.exists()


def test_a_target_that_exists_is_not_overwritten(moving: Place) -> None:
    target = moving.done / "sub"
    target.mkdir(parents=True)
    (target / "a.txt").write_bytes(b"older")
    (target / "a~2.txt").mkdir()
    assert moving.finish().path == os.fsencode(target / "a~3.txt")
    assert moving.tree == {"done/sub/a.txt": b"older", "done/sub/a~3.txt": CONTENT}


def test_across_filesystems_the_file_is_copied_with_its_mode_and_time(tmp_path: Path, far: Path) -> None:
    with place(tmp_path, "move", far) as here:
        here.file.chmod(0o640)
        before = here.file.stat()
        assert here.finish() == Finished(FinishOutcome.MOVED, os.fsencode(far / "sub/a.txt"))
        assert here.tree == {str(far / "sub/a.txt"): CONTENT}
        st = (far / "sub/a.txt").stat()
        assert (st.st_mtime_ns, st.st_mode, st.st_uid) == (before.st_mtime_ns, before.st_mode, before.st_uid)


def test_across_filesystems_a_target_that_exists_is_not_overwritten(tmp_path: Path, far: Path) -> None:
    """Nor taken for our own copy when its content differs, though size and time are the same."""
    (far / "sub").mkdir(parents=True)
    with place(tmp_path, "move", far) as here:
        twin = far / "sub/a.txt"
        twin.write_bytes(CONTENT[::-1])
        mtime = here.file.stat().st_mtime_ns
        os.utime(twin, ns=(mtime, mtime))
        assert here.finish().path == os.fsencode(far / "sub/a~2.txt")
        assert here.tree == {str(twin): CONTENT[::-1], str(far / "sub/a~2.txt"): CONTENT}


@pytest.mark.parametrize("checksum", ["sha256", "parts"])
def test_every_form_of_checksum_is_compared(deleting: Place, checksum: str) -> None:
    if checksum == "sha256":
        deleting.version = deleting.version._replace(checksum="sha256:" + hashlib.sha256(CONTENT).hexdigest())
    else:
        parts = b"".join(hashlib.md5(CONTENT[at : at + 8]).digest() for at in range(0, len(CONTENT), 8))
        deleting.version = deleting.version._replace(checksum=f"md5:{hashlib.md5(parts).hexdigest()}-3", part_size=8)
    kind, _, digest = deleting.version.checksum.partition(":")
    wrong = deleting.version._replace(checksum=f"{kind}:{'1' if digest[0] == '0' else '0'}{digest[1:]}")
    right, deleting.version = deleting.version, wrong
    assert deleting.finish().changed
    deleting.version = right
    assert deleting.finish().outcome is FinishOutcome.DELETED


@pytest.mark.parametrize("content", [b"", b"x" * (3 << 20)])
def test_empty_and_large_files_go_too(tmp_path: Path, far: Path, content: bytes) -> None:
    with place(tmp_path, "move", far) as here:
        here.version = verified(tmp_path / "drop", "sub/a.txt", content)
        assert here.finish().outcome is FinishOutcome.MOVED
        assert here.tree == {str(far / "sub/a.txt"): content}


def test_names_that_are_no_utf_8_and_the_longest_there_are_go_too(tmp_path: Path) -> None:
    for name in (os.fsdecode(b"\xff\xfe.bin"), "n" * 255, "line\nfeed"):
        with place(tmp_path, "move", path=name) as here:
            assert here.finish().path == os.fsencode(here.done / name)
        with place(tmp_path, "move", path=name) as here:
            assert here.finish().outcome is FinishOutcome.MOVED
    assert len(list((tmp_path / "done").iterdir())) == 6


# --- what differs stays --------------------------------------------------------------------------


def test_a_file_that_is_gone_needs_nothing_more(either: Place) -> None:
    either.file.unlink()
    assert either.finish() == Finished(FinishOutcome.GONE)
    either.file.parent.rmdir()
    assert either.finish() == Finished(FinishOutcome.GONE)


@pytest.mark.parametrize("swap", ["symlink", "fifo", "directory"])
def test_what_is_no_regular_file_any_more_is_left_alone(either: Place, swap: str, tmp_path: Path) -> None:
    treasure = tmp_path / "treasure"
    either.file.rename(treasure)
    {"symlink": lambda f: f.symlink_to(treasure), "fifo": os.mkfifo, "directory": os.mkdir}[swap](either.file)
    assert either.finish() == Finished(FinishOutcome.GONE)
    assert treasure.read_bytes() == CONTENT
    assert os.path.lexists(either.file)


def test_a_folder_swapped_for_a_symlink_is_not_followed(either: Place, tmp_path: Path) -> None:
    either.file.parent.rename(tmp_path / "elsewhere")
    either.file.parent.symlink_to(tmp_path / "elsewhere")
    assert either.finish() == Finished(FinishOutcome.GONE)
    assert (tmp_path / "elsewhere/a.txt").read_bytes() == CONTENT


def test_newer_content_stays_and_is_offered_again(either: Place) -> None:
    rewrite(either.file, b"newer")
    assert either.finish() == Finished(FinishOutcome.CHANGED, b"sub/a.txt")
    assert either.tree == {"drop/sub/a.txt": b"newer"}


def test_newer_content_that_hides_behind_the_old_time_stays(either: Place) -> None:
    """Rsync -t and cp -p set times; the content is what counts."""
    rewrite(either.file, CONTENT[::-1], hide=True)
    outcome = either.finish()
    assert outcome.changed
    assert not outcome.busy
    assert either.tree == {"drop/sub/a.txt": CONTENT[::-1]}


def test_a_file_that_is_open_for_writing_stays_under_its_name(either: Place) -> None:
    with either.file.open("ab") as writer:
        outcome = either.finish()
        assert outcome == Finished(FinishOutcome.BUSY, b"sub/a.txt")
        assert outcome.busy
        assert not outcome.changed
        writer.write(b" and more")
    assert either.finish().changed
    assert either.tree == {"drop/sub/a.txt": CONTENT + b" and more"}


def test_a_writer_that_closes_without_a_change_only_delays(either: Place) -> None:
    with either.file.open("ab"):
        assert either.finish().busy
    assert either.finish().outcome in {FinishOutcome.DELETED, FinishOutcome.MOVED}


@pytest.mark.parametrize("then", [False, True])
@pytest.mark.parametrize("hide", [False, True])
@pytest.mark.parametrize("check", [has_writer, lambda _fd: None])
def test_a_write_at_the_worst_moment_is_never_lost(
    either: Place,
    monkeypatch: pytest.MonkeyPatch,
    then: bool,
    hide: bool,
    check: Callable[[int], bool | None],
) -> None:
    """Before and after the content is read, by a writer that is gone at the next look and sets the old time."""
    aside = either.file.with_name(ASIDE)
    newer = CONTENT[::-1]
    during(monkeypatch, "content_checksum", lambda: rewrite(aside, newer, hide=hide), then=then)
    outcome = either.finish(check)
    assert outcome == Finished(FinishOutcome.CHANGED, b"sub/a.txt")
    assert either.tree == {"drop/sub/a.txt": newer}


@pytest.mark.parametrize("then", [False, True])
def test_a_writer_that_opens_at_the_worst_moment_keeps_the_file(
    either: Place,
    monkeypatch: pytest.MonkeyPatch,
    then: bool,
) -> None:
    aside = either.file.with_name(ASIDE)
    fds: list[int] = []
    during(monkeypatch, "content_checksum", lambda: fds.append(os.open(aside, os.O_WRONLY)), then=then)
    assert either.finish() == Finished(FinishOutcome.BUSY, b"sub/a.txt")
    os.close(fds.pop())
    assert either.tree == {"drop/sub/a.txt": CONTENT}


@pytest.mark.parametrize("then", [False, True])
def test_a_write_during_a_copy_to_another_filesystem_is_never_lost(
    tmp_path: Path,
    far: Path,
    monkeypatch: pytest.MonkeyPatch,
    then: bool,
) -> None:
    with place(tmp_path, "move", far) as here:
        aside = here.file.with_name(ASIDE)
        during(monkeypatch, "copy_file", lambda: rewrite(aside, CONTENT[::-1], hide=True), then=then)
        assert here.finish().changed
        assert here.tree == {"drop/sub/a.txt": CONTENT[::-1]}


def test_a_write_while_the_copy_goes_to_the_disk_is_never_lost(
    tmp_path: Path, far: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy has its name already, and is what was verified; what was written since stays, too."""
    with place(tmp_path, "move", far) as here:
        (far / "sub").mkdir(parents=True)
        aside = here.file.with_name(ASIDE)
        during(monkeypatch, "sync", lambda: rewrite(aside, CONTENT[::-1], hide=True), then=True)
        assert here.finish() == Finished(FinishOutcome.CHANGED, b"sub/a.txt")
        assert here.tree == {"drop/sub/a.txt": CONTENT[::-1], str(far / "sub/a.txt"): CONTENT}


def test_a_new_file_that_took_the_name_meanwhile_is_not_overwritten(
    either: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    aside = either.file.with_name(ASIDE)

    def swap() -> None:
        rewrite(aside, b"changed under way")
        either.file.write_bytes(b"newest")

    during(monkeypatch, "content_checksum", swap, then=True)
    assert either.finish() == Finished(FinishOutcome.CHANGED, b"sub/a~2.txt")
    assert either.tree == {"drop/sub/a.txt": b"newest", "drop/sub/a~2.txt": b"changed under way"}


def test_a_file_replaced_just_before_it_is_set_aside_is_put_back(
    either: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    during(monkeypatch, "check_fingerprint", lambda: replace_by(either.file, b"newest"), then=True)
    assert either.finish() == Finished(FinishOutcome.CHANGED, b"sub/a.txt")
    assert either.tree == {"drop/sub/a.txt": b"newest"}


def replace_by(file: Path, content: bytes) -> None:
    fresh = file.with_name("fresh")
    fresh.write_bytes(content)
    fresh.rename(file)


def test_a_newer_file_of_that_name_is_no_business_of_the_old_ones_end(moving: Place) -> None:
    """A crash left the verified file aside, and a new one was dropped since."""
    moving.file.rename(moving.file.with_name(ASIDE))
    moving.file.write_bytes(b"newer")
    assert moving.finish().outcome is FinishOutcome.MOVED
    assert moving.tree == {"drop/sub/a.txt": b"newer", "done/sub/a.txt": CONTENT}


# --- failures ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS])
def test_a_copy_that_fails_leaves_the_file_under_its_name_and_nothing_half(
    tmp_path: Path, far: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with place(tmp_path, "move", far) as here:
        with monkeypatch.context() as patched:
            patched.setattr(os, "utime", failing(number))
            with pytest.raises(Fault, match=os.strerror(number)) as caught:
                here.finish()
        assert caught.value.code == "finish_failed"
        assert here.tree == {"drop/sub/a.txt": CONTENT}
        assert here.finish().outcome is FinishOutcome.MOVED


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["pwrite", "fsync"])
def test_a_full_disk_that_a_copy_goes_to_is_waited_for(
    tmp_path: Path, far: Path, monkeypatch: pytest.MonkeyPatch, number: int, call: str
) -> None:
    with place(tmp_path, "move", far) as here:
        with monkeypatch.context() as patched:
            patched.setattr(os, call, failing(number))
            done = here.finish()
        assert (done.outcome, done.problem and done.problem.code) == (FinishOutcome.BUSY, "disk_full")
        assert here.tree == {"drop/sub/a.txt": CONTENT}
        assert here.finish().outcome is FinishOutcome.MOVED


def test_a_disk_without_room_for_a_copy_is_written_nothing(
    tmp_path: Path, far: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried every few seconds, and others need what room there is."""
    with place(tmp_path, "move", far) as here, monkeypatch.context() as patched:
        no_room = SimpleNamespace(f_bavail=0, f_bfree=0, f_frsize=4096, f_blocks=100)
        patched.setattr(os, "fstatvfs", lambda _: no_room)
        patched.setattr(os, "pwrite", failing(errno.EIO))
        assert here.finish().outcome is FinishOutcome.BUSY
        no_room.f_blocks = 0  # a filesystem that doesn't know
        with pytest.raises(Fault, match=os.strerror(errno.EIO)):
            here.finish()


def test_a_copy_that_can_not_be_read_again_leaves_nothing_half_either(
    tmp_path: Path, far: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(*_: object) -> str:
        raise fault("read_error", "the disk says no")

    with place(tmp_path, "move", far) as here:
        with monkeypatch.context() as patched:
            patched.setattr(
                finish_module, "copy_file", lambda *_: patched.setattr(finish_module, "content_checksum", unreadable)
            )
            with pytest.raises(Fault, match="the disk says no") as caught:
                here.finish()
        assert caught.value.code == "finish_failed"
        assert here.tree == {"drop/sub/a.txt": CONTENT}


@pytest.mark.parametrize("before", range(24))
@pytest.mark.parametrize("shortage", [1, 1000])
def test_too_many_open_files_are_waited_for(
    either: Place, monkeypatch: pytest.MonkeyPatch, before: int, shortage: int
) -> None:
    """No person can do anything about that file: it has its name again, or has gone already, and is gone on with."""
    real, opens = os.open, itertools.count()

    def once(*arguments: Any, **how: Any) -> int:
        if before <= next(opens) < before + shortage:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(*arguments, **how)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", once)
        first = either.finish()
    assert first.outcome in {FinishOutcome.BUSY, FinishOutcome.DELETED, FinishOutcome.MOVED}
    assert not [path for path in either.tree if ".presignd-" in path]
    assert either.finish().outcome in {FinishOutcome.DELETED, FinishOutcome.MOVED, FinishOutcome.GONE}
    assert "drop/sub/a.txt" not in either.tree


@pytest.mark.parametrize("before", range(24))
def test_a_handle_gone_stale_says_nothing_of_the_file(
    either: Place, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    """NFS (ESTALE): it is neither gone nor a person's business, and is looked at again."""
    real, opens = os.open, itertools.count()

    def stale(*arguments: Any, **how: Any) -> int:
        if next(opens) >= before:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return real(*arguments, **how)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", stale)
        first = either.finish()
    assert first.outcome in {FinishOutcome.BUSY, FinishOutcome.DELETED, FinishOutcome.MOVED}
    if first.busy:
        assert first.problem is not None
        assert first.problem.code == "read_error"
    assert not [path for path in either.tree if ".presignd-" in path]
    assert either.finish().outcome in {FinishOutcome.DELETED, FinishOutcome.MOVED, FinishOutcome.GONE}
    assert "drop/sub/a.txt" not in either.tree


def test_what_waits_for_descriptors_says_so(either: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", failing(errno.EMFILE))
        waits = either.finish()
    assert waits.busy
    assert waits.problem is not None
    assert waits.problem.code == "too_many_files"


@pytest.mark.parametrize("failures", [1, 2, 3])
def test_a_folder_whose_sync_failed_is_synced_by_the_next_try(
    either: Place, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    """The file has moved (or gone) by then; only what is on disk counts as done."""
    real, left, synced = os.fsync, iter(range(failures)), []

    def fsync(fd: int) -> None:
        if next(left, None) is not None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(fd)
        synced.append(Path(f"/proc/self/fd/{fd}").readlink())

    done = either.done / "sub"
    done.mkdir(parents=True)  # made before: these are not what is to be synced
    monkeypatch.setattr(os, "fsync", fsync)
    for _ in range(failures):
        with pytest.raises(Fault, match="Input/output error"):
            either.finish()
    assert either.finish().outcome in {FinishOutcome.GONE, FinishOutcome.DELETED, FinishOutcome.MOVED}
    assert set(synced) >= ({done} if either.watch.after == "move" else set()) | {either.file.parent}


def test_a_move_to_that_can_not_be_used_leaves_the_file_under_its_name(moving: Place) -> None:
    moving.done.write_bytes(b"a file")
    with pytest.raises(Fault, match="Not a directory") as caught:
        moving.finish()
    assert caught.value.code == "finish_failed"
    assert moving.tree == {"drop/sub/a.txt": CONTENT, "done": b"a file"}


def test_a_symlink_below_move_to_is_not_followed(moving: Place, tmp_path: Path) -> None:
    moving.done.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (moving.done / "sub").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Fault, match="could not be moved"):
        moving.finish()
    assert moving.tree == {"drop/sub/a.txt": CONTENT}


def test_a_file_that_can_not_be_put_back_is_told_of_with_its_name(
    either: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the next try goes on from there."""
    with monkeypatch.context() as patched:
        during(
            patched,
            "content_checksum",
            lambda: patched.setattr(syscalls, "renameat2_noreplace", failing(errno.EROFS)),
            then=True,
        )
        patched.setattr(os, "unlink", failing(errno.EROFS))
        with pytest.raises(Fault, match=rf"it lies as {ASIDE}: Read-only file system"):
            either.finish()
    assert either.tree == {f"drop/sub/{ASIDE}": CONTENT}
    assert either.finish().outcome in {FinishOutcome.DELETED, FinishOutcome.MOVED}


def test_a_file_that_went_is_not_looked_for_when_its_folder_can_not_be_synced(
    deleting: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The delete stands; that it may not be durable is told."""
    monkeypatch.setattr(finish_module, "sync", failing(errno.EIO))
    with pytest.raises(Fault, match="Input/output error"):
        deleting.finish()
    assert deleting.tree == {}


def test_a_file_in_the_way_that_can_not_be_read_is_no_copy_of_ours(
    tmp_path: Path, far: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the size and the time of ours; only what can be compared may stand for the original."""
    with place(tmp_path, "move", far) as here:
        (far / "sub").mkdir(parents=True)
        shutil.copy2(here.file, far / "sub/a.txt")
        opened = os.open

        def refusing(path: str | bytes, flags: int, *args: int, dir_fd: int | None = None) -> int:
            if path == b"a.txt" and flags & os.O_NONBLOCK:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return opened(path, flags, *args, dir_fd=dir_fd)

        monkeypatch.setattr(os, "open", refusing)
        assert here.finish().path == os.fsencode(far / "sub/a~2.txt")
        assert here.tree == {str(far / "sub/a.txt"): CONTENT, str(far / "sub/a~2.txt"): CONTENT}


def test_a_version_without_a_checksum_is_never_deleted(deleting: Place) -> None:
    deleting.version = deleting.version._replace(checksum="")
    with pytest.raises(Fault, match="no checksum"):
        deleting.finish()
    assert deleting.tree == {"drop/sub/a.txt": CONTENT}


def test_modes_of_a_copy_are_no_wider_than_the_files(tmp_path: Path, far: Path) -> None:
    with place(tmp_path, "move", far) as here:
        here.file.chmod(0o4700)
        here.finish()
        assert stat.S_IMODE((far / "sub/a.txt").stat().st_mode) == 0o700


def test_what_is_written_into_a_name_that_was_only_reserved_stays(
    moving: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without RENAME_NOREPLACE and hard links the name is taken by an empty file first: others see that one."""
    only("names", monkeypatch)
    (moving.done / "sub").mkdir(parents=True)
    target, real = moving.done / "sub/a.txt", os.open

    def opened(path: Any, flags: int, *args: Any, **more: Any) -> int:
        fd = real(path, flags, *args, **more)
        if path == b"a.txt" and flags & os.O_EXCL:
            target.write_bytes(b"another's")
        return fd

    monkeypatch.setattr(os, "open", opened)
    assert moving.finish().outcome is FinishOutcome.MOVED
    assert moving.tree == {"done/sub/a.txt": b"another's", "done/sub/a~2.txt": CONTENT}


def test_a_file_in_the_place_of_a_folder_below_move_to_is_named(moving: Place) -> None:
    moving.done.mkdir()
    (moving.done / "sub").write_bytes(b"in the way")
    with pytest.raises(Fault) as caught:
        moving.finish()
    assert (caught.value.code, "Not a directory" in caught.value.message) == ("finish_failed", True)
    assert moving.file.read_bytes() == CONTENT


@pytest.mark.parametrize("prepare", [lambda _: None, lambda parent: parent.write_bytes(b"")], ids=["gone", "a file"])
def test_a_way_to_move_to_inside_the_watch_that_is_no_folder_fails_the_move_alone(
    tmp_path: Path, prepare: Callable[[Path], object]
) -> None:
    with place(tmp_path, "move", tmp_path / "drop" / "way" / "done") as here:
        prepare(tmp_path / "drop" / "way")
        with pytest.raises(Fault) as caught:
            here.finish()
        assert caught.value.code == "finish_failed"
        assert here.file.read_bytes() == CONTENT


def test_what_a_file_that_is_gone_left_in_move_to_is_looked_for_again_while_move_to_is_stale(
    moving: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    moving.done.mkdir()
    shutil.rmtree(moving.file.parent)
    with monkeypatch.context() as patched:
        patched.setattr(finish_module, "target_of", failing(errno.ESTALE))
        waits = moving.finish()
    assert (waits.outcome, waits.problem and waits.problem.code) == (FinishOutcome.BUSY, "read_error")
    assert moving.finish().outcome is FinishOutcome.GONE
