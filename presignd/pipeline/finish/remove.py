"""linked → finished: keep, move or delete the file, and leave its link beside it.

Nothing is deleted or moved on trust (contract §6.6). The file is renamed aside in its own directory, so
that nobody finds it by its name any more; then it is compared with the verified version, content
included, and looked at for a writer; only then does it go. Whatever differs is put back. Each step looks
first how far an earlier run came, so a crash at any point is gone on from by the next call.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
import time
from contextlib import ExitStack, suppress
from itertools import takewhile
from typing import TYPE_CHECKING, Protocol

from presignd.errors import PresigndError, fault, passing, reason_of
from presignd.model import Fingerprint
from presignd.pipeline.files.folder import Gone, NotRegular
from presignd.pipeline.files.hash import fingerprint_of
from presignd.pipeline.files.rename import numbered, rename_to_free
from presignd.pipeline.finish.copy import content_checksum, copy_file
from presignd.pipeline.finish.decide import Finished, Look, Outcome, Verdict, judge, recognise, takes_away
from presignd.pipeline.finish.target import target_of
from presignd.runtime.crash_points import passed
from presignd.system.durable import sync
from presignd.system.filesystem import close_quietly

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from presignd.config import WatchConfig
    from presignd.model import FileVersion

    HasWriter = Callable[[int], bool | None]

COARSE_CLOCK = 0.02
"""Seconds after which another change surely has another timestamp (coarse before Linux 6.13)."""
COARSEST_MTIME_NS = 2_000_000_000
"""What a copy's mtime may differ by: FAT keeps two seconds."""


class Folder(Protocol):
    """What is needed of ``presignd.pipeline.files.folder.Folder``; paths are below the watch's root."""

    def open(self, path: bytes) -> int:
        """Open a regular file for reading."""
        ...

    def dir_fd(self, path: bytes) -> AbstractContextManager[int]:
        """Lend the directory that holds ``path``."""
        ...


def finish(folder: Folder, watch: WatchConfig, version: FileVersion, has_writer: HasWriter) -> Finished:
    """Do what ``watch.after`` asks with the file of a linked version. Blocking.

    May be called again after a crash or failure at any point. A put from elsewhere is never touched.
    Raises ``fault("finish_failed")`` with the file back under its name (or a free one beside it).
    """
    if not takes_away(watch, version):
        return Finished(Outcome.KEPT)
    if not version.checksum:
        raise fault("finish_failed", "no checksum of it is known to compare with")
    try:
        return _run(folder, watch, version, has_writer)
    except (OSError, PresigndError) as error:
        if problem := passing(error):
            return Finished(Outcome.BUSY, version.path, problem)
        raise fault("finish_failed", _reason(error)) from None


def _run(folder: Folder, watch: WatchConfig, version: FileVersion, has_writer: HasWriter) -> Finished:
    try:
        with folder.dir_fd(version.path) as directory:
            done = _Finish(folder, directory, watch, version, has_writer).run()
            if done.outcome is Outcome.GONE:
                sync(directory)
    except (Gone, NotRegular):
        done = Finished(Outcome.GONE)
    if done.outcome is Outcome.GONE:
        _settle_target(folder, watch, version)
    return done


def _settle_target(folder: Folder, watch: WatchConfig, version: FileVersion) -> None:
    """Make durable what an earlier run moved before its sync failed, and remove half a copy that a crash left.

    The file itself is gone: moved by that run, or by somebody else, maybe with its folder.
    """
    if watch.after != "move":
        return
    with ExitStack() as opened:
        try:
            target = opened.enter_context(target_of(folder, watch, posixpath.dirname(version.path), make=False))
        except OSError as error:
            if passing(error):
                raise
            return  # there is no such folder, so nothing of ours is in it
        with suppress(FileNotFoundError):
            os.unlink(_aside_name(version) + b".copy", dir_fd=target)
        sync(target)


def _aside_name(version: FileVersion) -> bytes:
    return b".presignd-" + version.file_id.encode()


class _UnsafeError(Exception):
    """The file must not go."""

    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict


class _Finish:
    """One file on its way out; ``directory`` holds it."""

    def __init__(
        self, folder: Folder, directory: int, watch: WatchConfig, version: FileVersion, has_writer: HasWriter
    ) -> None:
        self._folder, self._directory, self._watch = folder, directory, watch
        self._version, self._has_writer = version, has_writer
        self._parent, self._name = posixpath.split(version.path)
        self._aside = _aside_name(version)
        self._copy_name = self._aside + b".copy"

    def run(self) -> Finished:
        if _is_there(self._directory, self._aside):
            self._forget_half_a_copy()
        else:
            early = self._set_aside()
            if early is not None:
                return early
        return self._let_go()

    def _set_aside(self) -> Finished | None:
        """Take the name away from the file, unless a first look says already that it isn't to go."""
        try:
            verdict = self._look_by_name()
            if verdict is Verdict.SAFE:
                # Plain: nobody else makes a name of ours, and only one call takes whatever has the name now.
                passed("finish.aside.before")
                os.rename(self._name, self._aside, src_dir_fd=self._directory, dst_dir_fd=self._directory)
                passed("finish.aside.after")
                return None
        except (FileNotFoundError, Gone, NotRegular):
            return Finished(Outcome.GONE)
        return Finished(Outcome(verdict.value), self._version.path)

    def _look_by_name(self) -> Verdict:
        fd = self._folder.open(self._version.path)
        try:
            return recognise(self._version, self._look(fd))
        finally:
            close_quietly(fd)

    def _let_go(self) -> Finished:
        """Compare what is aside, then delete or move it; put it back when it differs or that fails."""
        try:
            fd = self._folder.open(posixpath.join(self._parent, self._aside))
            try:
                before = self._compare(fd)
                passed("finish.compared")
                return self._delete() if self._watch.after == "delete" else self._move(fd, before)
            finally:
                close_quietly(fd)
        except _UnsafeError as unsafe:
            return Finished(Outcome(unsafe.verdict.value), self._put_back())
        except (OSError, PresigndError) as error:
            if _is_there(self._directory, self._aside):  # else it is where it belongs already
                self._put_back(_reason(error))
            raise

    def _look(self, fd: int) -> Look:
        return Look(fingerprint_of(fd), self._has_writer(fd))

    def _look_again(self, fd: int) -> Look:
        """Look by the name, so that what goes is surely what was read."""
        st = os.stat(self._aside, dir_fd=self._directory, follow_symlinks=False)
        return Look(Fingerprint.of(st), self._has_writer(fd))

    def _compare(self, fd: int) -> Look:
        """Return the look that all later ones must equal; raise ``_UnsafeError`` for any difference."""
        before = self._look(fd)
        if before.writer is None:
            # Only the fingerprint can tell of a writer: our rename's ctime must lie a tick behind us.
            time.sleep(COARSE_CLOCK)
            before = self._look(fd)
        _require_safe(recognise(self._version, before))
        checksum = content_checksum(fd, self._version)
        _require_safe(judge(self._version, before, checksum, self._look_again(fd)))
        return before

    def _delete(self) -> Finished:
        passed("finish.unlink.before")
        os.unlink(self._aside, dir_fd=self._directory)
        passed("finish.unlink.after")
        sync(self._directory)
        return Finished(Outcome.DELETED)

    def _move(self, fd: int, before: Look) -> Finished:
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
        return Finished(Outcome.MOVED, posixpath.join(os.fsencode(self._watch.move_to), self._parent, name))

    def _move_across(self, fd: int, before: Look, target: int) -> bytes:
        """Copy to the other filesystem (or the other bind mount of this one), then remove the original.

        A crash before the removal leaves both: the next run finds the finished copy and only removes.
        """
        name = self._finished_copy(target) or self._publish_copy(fd, before, target)
        passed("finish.copy.published")
        sync(target)  # may take its time: what was written since is no copy's
        _require_safe(judge(self._version, before, self._version.checksum, self._look_again(fd)))
        os.unlink(self._aside, dir_fd=self._directory)
        return name

    def _publish_copy(self, fd: int, before: Look, target: int) -> bytes:
        """Copy under a name of our own, compare, and give the copy its name; return that."""
        try:
            checksum = self._copy(fd, target)
            passed("finish.copy.written")
            _require_safe(judge(self._version, before, checksum, self._look_again(fd)))
            return rename_to_free(target, self._copy_name, target, self._name)
        except (OSError, PresigndError, _UnsafeError):
            with suppress(OSError):
                os.unlink(self._copy_name, dir_fd=target)
            raise

    def _finished_copy(self, target: int) -> bytes | None:
        """Return the name under which an earlier run's copy stands, None when there is none."""
        taken = takewhile(lambda name: _is_there(target, name), numbered(self._name))
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
        try:
            return content_checksum(fd, self._version) == self._version.checksum
        finally:
            close_quietly(fd)

    def _copy(self, fd: int, target: int) -> str:
        """Write a durable copy under our own name and return the checksum of what is there."""
        with suppress(FileNotFoundError):
            os.unlink(self._copy_name, dir_fd=target)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        copy = os.open(self._copy_name, flags, 0o600, dir_fd=target)
        try:
            copy_file(fd, copy, self._version.size)
            return content_checksum(copy, self._version)
        finally:
            os.close(copy)

    def _forget_half_a_copy(self) -> None:
        """Remove what a crash in the middle of a copy left: it may not come to copying again."""
        if self._watch.after == "move":
            with suppress(OSError), target_of(self._folder, self._watch, self._parent, make=False) as target:
                os.unlink(self._copy_name, dir_fd=target)

    def _put_back(self, why: str = "") -> bytes:
        """Give the file its name back, or a free one beside a newer file of that name; return its path."""
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


def _is_there(directory: int, name: bytes) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _require_safe(verdict: Verdict) -> None:
    if verdict is not Verdict.SAFE:
        raise _UnsafeError(verdict)


def _reason(error: OSError | PresigndError) -> str:
    if isinstance(error, PresigndError):
        return getattr(error, "detail", "") or error.message
    return reason_of(error)
