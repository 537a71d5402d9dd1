"""One daemon a ledger, one daemon a folder: flock, which the kernel lets go with its process."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Self

from presignd.errors import Unavailable, UsageError
from presignd.ledger.folder import make_private, prepare


class DaemonLock:
    """The lock on a ledger's folder, taken when made and held until ``close``; a context manager.

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
                f"the ledger in {folder} is in use by {_named(lock_holder(self._fd) or _written(self._fd))}",
                fix="stop that one, or give this one a ledger.path of its own",
            )
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, b"%d\n" % os.getpid(), 0)

    def close(self) -> None:
        """Let go of the lock; the file stays, since another may already have opened it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def lock_folder(fd: int) -> bool:
    """Lock a watched root by its directory descriptor ``fd`` until that is closed.

    Raises ``Unavailable`` with the holder's pid when another process watches it. False where the
    filesystem has no such locks (NFS refuses them on a directory): then nothing is locked.
    """
    try:
        taken = flock(fd)
    except OSError:
        return False
    if not taken:
        raise Unavailable(
            f"the folder {_path(fd)} is watched by {_named(lock_holder(fd))}",
            fix="stop that one, or watch another folder",
        )
    return True


def lock_holder(fd: int) -> int | None:
    """Return the pid of the process that holds a flock on what ``fd`` refers to, None if it can't be told."""
    st = os.fstat(fd)
    try:
        table = Path("/proc/locks").read_text(encoding="ascii")
    except OSError:
        return None
    return find_holder(table, (os.major(st.st_dev), os.minor(st.st_dev)), st.st_ino)


def find_holder(table: str, device: tuple[int, int], inode: int) -> int | None:
    """Find the flock's holder in the text of ``/proc/locks`` (proc(5)).

    Overlayfs and Btrfs show one device there and another in ``stat``: then an inode that only one
    process has locked still tells.
    """
    rows = [line.split() for line in table.splitlines()]
    # "1: FLOCK ADVISORY WRITE 1234 fd:01:5678 0 EOF"; one that waits has "->" in the second place.
    held = [(row[5], int(row[4])) for row in rows if len(row) > 5 and row[1] == "FLOCK"]  # noqa: PLR2004 - columns
    exact = f"{device[0]:02x}:{device[1]:02x}:{inode}"
    pids = {pid for place, pid in held if place == exact} or _unique(lambda place: place.endswith(f":{inode}"), held)
    return next((pid for pid in pids if pid > 0), None)


def _unique(match: Callable[[str], bool], held: list[tuple[str, int]]) -> set[int]:
    pids = {pid for place, pid in held if match(place)}
    return pids if len(pids) == 1 else set()


def _open(path: Path) -> int:
    try:
        make_private(path)
        return os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except OSError as error:
        raise UsageError(
            f"ledger.path: {path} can't be opened: {error.strerror}",
            fix="give the ledger's folder to the daemon's user",
        ) from None


def flock(fd: int) -> bool:
    """Take the lock on what ``fd`` refers to, until it is closed; False when another has it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _written(fd: int) -> int | None:
    """Return the pid in the lock file: what is left where ``/proc/locks`` does not show the holder."""
    text = os.pread(fd, 32, 0).strip()
    return int(text) if text.isdigit() else None


def _named(pid: int | None) -> str:
    return f"another presignd (pid {pid})" if pid else "another process (its pid can't be seen from here)"


def _path(fd: int) -> str:
    try:
        return str(Path(f"/proc/self/fd/{fd}").readlink())
    except OSError:
        return "(unknown)"
