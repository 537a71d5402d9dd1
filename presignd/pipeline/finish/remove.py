"""Delete or move the file of a linked version, once it is surely the content that was verified. Blocking.

The file is renamed aside in its own directory, so that no program can open it by its name any more (guarantee 6,
docs/guarantees.md). Then it is compared with the verified version, content included, and checked for a writer; only
then is it removed. A file that differs gets its name back. Each step first checks how far an earlier run got, so the
next call continues after a crash at any point.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from enum import StrEnum
from itertools import takewhile
from typing import TYPE_CHECKING, NamedTuple

from presignd.errors import PresigndError, fault, passing, reason_of
from presignd.model import Fingerprint
from presignd.pipeline.files.folder import Gone, NotRegular, numbered_names, rename_to_free
from presignd.pipeline.files.hash import READ, checksum_like, fingerprint_of
from presignd.pipeline.files.ignore import OWN_PREFIX
from presignd.pipeline.files.lease import has_writer
from presignd.pipeline.finish.target import target_of
from presignd.runtime.crash_points import passed
from presignd.runtime.heartbeat import beat
from presignd.system.durable import sync, write_all
from presignd.system.filesystem import reading

if TYPE_CHECKING:
    from presignd.config import WatchConfig
    from presignd.errors import Fault
    from presignd.model import FileVersion
    from presignd.pipeline.files.folder import Folder

COARSE_CLOCK = 0.02
"""Seconds after which a change surely gets another timestamp (coarse before Linux 6.13)."""
SYNC_SECONDS = 600.0
"""How long one fsync of a large copy may take, in seconds: the thread can't beat its heartbeat during it."""
COARSEST_MTIME_NS = 2_000_000_000
"""How far a copy's mtime may differ, in nanoseconds: FAT stores steps of two seconds."""


# --- may it be removed? (pure) ----------------------------------------------------------------------
class FinishOutcome(StrEnum):
    """How ``keep_move_or_delete`` ended."""

    KEPT = "kept"
    DELETED = "deleted"
    MOVED = "moved"
    GONE = "gone"
    CHANGED = "changed"
    BUSY = "busy"


@dataclass(frozen=True, slots=True)
class Finished:
    """What happened to the file.

    ``path`` is where it is now: absolute when moved; below the watch's root when changed or busy, where it may be
    ``name~2.ext`` because a new file took its name meanwhile; else empty. ``problem`` is the fault for which a busy
    file waits, None where it waits for a writer.
    """

    outcome: FinishOutcome
    path: bytes = b""
    problem: Fault | None = None

    @property
    def changed(self) -> bool:
        """Whether the file has other content now: the version is finished, and ``path`` is a candidate again."""
        return self.outcome is FinishOutcome.CHANGED

    @property
    def busy(self) -> bool:
        """Whether the file is open for writing, or can't be read now: call ``keep_move_or_delete`` again later."""
        return self.outcome is FinishOutcome.BUSY


class Observation(NamedTuple):
    """The file at one moment: its fingerprint, and whether it has a writer (None: the kernel can't tell)."""

    fingerprint: Fingerprint
    writer: bool | None


def check_fingerprint(version: FileVersion, seen: Observation) -> FinishOutcome | None:
    """Return None for the verified inode, size and mtime without a writer, else CHANGED or BUSY.

    The ctime may differ, as after a rename.
    """
    verified, now = version.fingerprint, seen.fingerprint
    if now.ino != verified.ino or not now.same_data(verified):
        return FinishOutcome.CHANGED
    return FinishOutcome.BUSY if seen.writer else None


def check_content(version: FileVersion, before: Observation, checksum: str, after: Observation) -> FinishOutcome | None:
    """Return None if what was read between the observations is the verified bytes, unchanged, without a writer."""
    if checksum != version.checksum or after.fingerprint != before.fingerprint:
        return FinishOutcome.CHANGED
    return check_fingerprint(version, before) or check_fingerprint(version, after)


def moves_or_deletes(watch: WatchConfig, version: FileVersion) -> bool:
    """Return whether the file is to be moved or deleted; one that ``put`` handed over from outside never is."""
    return watch.after != "keep" and not (version.path.startswith(b"/") or version.is_made)


# --- removing it ------------------------------------------------------------------------------------
def keep_move_or_delete(folder: Folder, watch: WatchConfig, version: FileVersion) -> Finished:
    """Keep, move or delete the file of a linked version, as ``watch.after`` says.

    May be called again after a crash or failure at any point. A file that ``put`` handed over from outside the watch
    is never touched. Raises ``fault("finish_failed")``, with the file back under its name (or a free one beside it).
    """
    if not moves_or_deletes(watch, version):
        return Finished(FinishOutcome.KEPT)
    if not version.checksum:
        raise fault("finish_failed", "no checksum of it is known to compare with")
    try:
        return _run(folder, watch, version)
    except (OSError, PresigndError) as error:
        if problem := passing(error):
            return Finished(FinishOutcome.BUSY, version.path, problem)
        raise fault("finish_failed", _reason(error)) from None


def _run(folder: Folder, watch: WatchConfig, version: FileVersion) -> Finished:
    try:
        with folder.dir_fd(version.path) as directory:
            done = _Removal(folder, directory, watch, version).run()
            if done.outcome is FinishOutcome.GONE:
                sync(directory)
    except (Gone, NotRegular):
        done = Finished(FinishOutcome.GONE)
    if done.outcome is FinishOutcome.GONE:
        # An earlier run moved it, or another program did, maybe with its folder.
        _clean_up_target(folder, watch, version)
    return done


def _clean_up_target(folder: Folder, watch: WatchConfig, version: FileVersion) -> None:
    """Sync what an earlier run moved before its sync failed, and remove a partial copy that a crash left."""
    if watch.after != "move":
        return
    with ExitStack() as opened:
        try:
            target = opened.enter_context(target_of(folder, watch, posixpath.dirname(version.path), make=False))
        except OSError as error:
            if passing(error):
                raise
            return  # there is no such folder, so there is no partial copy in it
        with suppress(FileNotFoundError):
            os.unlink(_aside_name(version) + b".copy", dir_fd=target)
        sync(target)


def _aside_name(version: FileVersion) -> bytes:
    return OWN_PREFIX + version.file_id.encode()


class _UnsafeError(Exception):
    """The file must not be removed: it has changed, or is busy."""

    def __init__(self, outcome: FinishOutcome) -> None:
        self.outcome = outcome


class _Removal:
    """The steps for one file; ``directory`` is the descriptor of the directory that holds it."""

    def __init__(self, folder: Folder, directory: int, watch: WatchConfig, version: FileVersion) -> None:
        self._folder, self._directory, self._watch, self._version = folder, directory, watch, version
        self._parent, self._name = posixpath.split(version.path)
        self._aside = _aside_name(version)
        self._copy_name = self._aside + b".copy"

    def run(self) -> Finished:
        if _exists(self._directory, self._aside):
            with suppress(OSError):  # a crash may have left a partial copy, and this run may not copy at all
                _clean_up_target(self._folder, self._watch, self._version)
        elif early := self._set_aside():
            return early
        return self._remove_or_put_back()

    def _set_aside(self) -> Finished | None:
        """Rename the file aside; return the outcome if it is gone, busy or changed already, else None."""
        try:
            with reading(self._folder.open(self._version.path)) as fd:
                if outcome := check_fingerprint(self._version, self._observe(fd)):
                    return Finished(outcome, self._version.path)
            # A plain rename: no other program creates such a name, so it can't replace anything.
            passed("finish.aside.before")
            os.rename(self._name, self._aside, src_dir_fd=self._directory, dst_dir_fd=self._directory)
            passed("finish.aside.after")
        except (FileNotFoundError, Gone, NotRegular):
            return Finished(FinishOutcome.GONE)
        return None

    def _remove_or_put_back(self) -> Finished:
        """Compare the file that is aside, then delete or move it; put it back if it differs or if that fails."""
        try:
            with reading(self._folder.open(posixpath.join(self._parent, self._aside))) as fd:
                before = self._compare(fd)
                passed("finish.compared")
                return self._delete() if self._watch.after == "delete" else self._move(fd, before)
        except _UnsafeError as unsafe:
            return Finished(unsafe.outcome, self._put_back())
        except (OSError, PresigndError) as error:
            if _exists(self._directory, self._aside):  # else it was deleted or moved already
                self._put_back(_reason(error))
            raise

    def _observe(self, fd: int) -> Observation:
        return Observation(fingerprint_of(fd), has_writer(fd))

    def _compare(self, fd: int) -> Observation:
        """Return the observation that all later ones must equal; raise ``_UnsafeError`` for any difference."""
        before = self._observe(fd)
        if before.writer is None:
            # Only the ctime can show a write after this: wait until a new ctime would differ from our rename's.
            time.sleep(COARSE_CLOCK)
            before = self._observe(fd)
        if outcome := check_fingerprint(self._version, before):
            raise _UnsafeError(outcome)
        self._require_content(fd, before, content_checksum(fd, self._version))
        return before

    def _require_content(self, fd: int, before: Observation, checksum: str) -> None:
        """Look again, at the name aside: what is removed must be the file that was read."""
        st = os.stat(self._aside, dir_fd=self._directory, follow_symlinks=False)
        if outcome := check_content(self._version, before, checksum, Observation(Fingerprint.of(st), has_writer(fd))):
            raise _UnsafeError(outcome)

    def _delete(self) -> Finished:
        passed("finish.unlink.before")
        os.unlink(self._aside, dir_fd=self._directory)
        passed("finish.unlink.after")
        sync(self._directory)
        return Finished(FinishOutcome.DELETED)

    def _move(self, fd: int, before: Observation) -> Finished:
        with target_of(self._folder, self._watch, self._parent) as target:
            try:
                passed("finish.move.before")
                name = rename_to_free(self._directory, self._aside, target, self._name)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                name = self._move_across(fd, before, target)
            else:
                sync(target)
        passed("finish.move.after")
        sync(self._directory)
        assert self._watch.move_to is not None
        return Finished(FinishOutcome.MOVED, posixpath.join(os.fsencode(self._watch.move_to), self._parent, name))

    def _move_across(self, fd: int, before: Observation, target: int) -> bytes:
        """Copy to the other filesystem (or the other bind mount of this one), then remove the original.

        A crash before the removal leaves both: the next run finds the finished copy and only removes the original.
        """
        name = self._finished_copy(target) or self._publish_copy(fd, before, target)
        passed("finish.copy.published")
        sync(target)  # this may take long, and a write during it is in no copy: compare once more
        self._require_content(fd, before, self._version.checksum)
        os.unlink(self._aside, dir_fd=self._directory)
        return name

    def _publish_copy(self, fd: int, before: Observation, target: int) -> bytes:
        """Copy under a temporary name, compare, and rename the copy; return its name."""
        try:
            checksum = self._copy(fd, target)
            passed("finish.copy.written")
            self._require_content(fd, before, checksum)
            return rename_to_free(target, self._copy_name, target, self._name)
        except (OSError, PresigndError, _UnsafeError):
            with suppress(OSError):
                os.unlink(self._copy_name, dir_fd=target)
            raise

    def _finished_copy(self, target: int) -> bytes | None:
        """Return the name of an earlier run's finished copy, None when there is none."""
        taken = takewhile(lambda name: _exists(target, name), numbered_names(self._name))
        return next((name for name in taken if self._may_be_copy(target, name) and self._is_copy(target, name)), None)

    def _may_be_copy(self, target: int, name: bytes) -> bool:
        verified, st = self._version.fingerprint, os.stat(name, dir_fd=target, follow_symlinks=False)
        same_time = abs(st.st_mtime_ns - verified.mtime_ns) <= COARSEST_MTIME_NS
        return stat.S_ISREG(st.st_mode) and st.st_size == verified.size and same_time

    def _is_copy(self, target: int, name: bytes) -> bool:
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=target)
        except PermissionError:
            return False
        with reading(fd):
            return content_checksum(fd, self._version) == self._version.checksum

    def _copy(self, fd: int, target: int) -> str:
        """Write a durable copy under the temporary name; return the checksum of what was written."""
        with suppress(FileNotFoundError):
            os.unlink(self._copy_name, dir_fd=target)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        copy = os.open(self._copy_name, flags, 0o600, dir_fd=target)
        try:
            copy_file(fd, copy, self._version.size)
            return content_checksum(copy, self._version)
        finally:
            os.close(copy)

    def _put_back(self, why: str = "") -> bytes:
        """Give the file its name back, or a free name if a newer file has that one; return its path."""
        try:
            passed("finish.put_back.before")
            name = rename_to_free(self._directory, self._aside, self._directory, self._name)
            passed("finish.put_back.after")
            sync(self._directory)
        except OSError as error:
            if passing(error):
                raise
            where = f"it lies as {os.fsdecode(self._aside)}: {_reason(error)}"
            raise fault("finish_failed", f"{why}; {where}" if why else where) from None
        return posixpath.join(self._parent, name)


def _exists(directory: int, name: bytes) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _reason(error: OSError | PresigndError) -> str:
    if isinstance(error, PresigndError):
        return getattr(error, "detail", "") or error.message
    return reason_of(error)


# --- content ------------------------------------------------------------------------------------


def content_checksum(fd: int, version: FileVersion) -> str:
    """Return the checksum of what ``fd`` holds, in the form of ``version.checksum``.

    Reads no more than the version's size: a longer file shows in its fingerprint.
    """
    return checksum_like(fd, version.checksum, version.size, version.part_size)


def copy_file(fd: int, copy: int, size: int) -> None:
    """Copy ``size`` bytes, mode, mtime and (where permitted) owner from ``fd`` to ``copy``, durably.

    Nothing is written if the disk surely lacks the space: each retry would fill the disk for other programs, too.
    """
    _require_space(copy, size)
    offset = 0
    while offset < size and (piece := os.pread(fd, min(READ, size - offset), offset)):
        beat()
        write_all(copy, piece, offset)
        offset += len(piece)
    st = os.fstat(fd)
    with suppress(PermissionError):
        os.fchown(copy, st.st_uid, st.st_gid)
    with suppress(PermissionError):
        os.fchmod(copy, stat.S_IMODE(st.st_mode) & 0o777)
    os.utime(copy, ns=(st.st_atime_ns, st.st_mtime_ns))
    beat(within=SYNC_SECONDS)
    os.fsync(copy)


def _require_space(fd: int, size: int) -> None:
    """Raise ENOSPC if the filesystem has less than ``size`` bytes free; one that reports no size is not checked."""
    there = os.fstatvfs(fd)
    left = there.f_bavail if os.geteuid() else there.f_bfree
    if there.f_blocks and left * there.f_frsize < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
