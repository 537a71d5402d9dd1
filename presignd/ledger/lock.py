"""The ledger's folder: private, on a local filesystem, and locked by one daemon.

The lock is flock(2)'s (``system/file_lock.py``), which the kernel releases with the process.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import Self

from presignd.errors import Unavailable, UsageError
from presignd.system.durable import make_folder
from presignd.system.file_lock import flock, lock_holder, process_text
from presignd.system.sqlite import require_local
from presignd.system.trust import make_private

WRITABLE = "mount it so that it can be written, or set ledger.path to another folder"
"""What to do about a ledger on a read-only filesystem."""


class DaemonLock:
    """The lock on a ledger's folder: taken by the constructor, held until ``close``; a context manager.

    Raises ``Unavailable`` with the holder's pid when another process has it, ``UsageError`` for a folder
    that can't hold a ledger.
    """

    def __init__(self, folder: Path) -> None:
        prepare(folder)
        self._fd = _open(folder / "lock")
        try:
            self._take(folder)
        except BaseException:
            self.close()
            raise

    def _take(self, folder: Path) -> None:
        if not flock(self._fd):
            raise Unavailable(
                f"the ledger in {folder} is in use by {process_text(lock_holder(self._fd) or _pid_in_file(self._fd))}",
                fix="stop that one, or give this one a ledger.path of its own",
            )
        with contextlib.suppress(OSError):  # a full disk: the pid is only for messages, and the ledger reports the disk
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, b"%d\n" % os.getpid(), 0)

    def close(self) -> None:
        """Release the lock; the file stays, since another process may already have opened it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def _open(path: Path) -> int:
    try:
        make_private(path)
        return os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except OSError as error:
        is_read_only = error.errno == errno.EROFS
        raise UsageError(
            f"ledger.path: {path} can't be opened: {error.strerror}",
            fix=WRITABLE if is_read_only else "give the ledger's folder to the daemon's user",
        ) from None


def _pid_in_file(fd: int) -> int | None:
    """Return the pid in the lock file, for where ``/proc/locks`` does not show the holder."""
    text = os.pread(fd, 32, 0).strip()
    return int(text) if text.isdigit() else None


# --- the folder and its files ----------------------------------------------------------------------


def prepare(folder: Path) -> None:
    """Make ``folder`` (0700, whatever the umask) where it is missing, and refuse one that is unfit.

    Raises ``UsageError`` for one that can't be made, or that lies on a network filesystem.
    """
    try:
        make_folder(folder, 0o700)
        require_local(folder, f"ledger.path: {folder}", "set ledger.path to a folder on a local filesystem")
    except OSError as error:
        raise UsageError(
            f"ledger.path: {folder} can't be used: {_reason(error)}",
            fix="make that folder for the daemon's user, or set ledger.path to another one",
        ) from None


def _reason(error: OSError) -> str | None:
    return "a file is in the way" if isinstance(error, (FileExistsError, NotADirectoryError)) else error.strerror
