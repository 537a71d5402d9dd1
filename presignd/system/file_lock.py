"""Locks of one process at a time on a file or folder: flock(2), which the kernel releases with the process."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

from presignd.errors import Unavailable


def flock(fd: int) -> bool:
    """Lock what ``fd`` refers to, until it is closed; return False when another process has it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock_folder(fd: int) -> bool:
    """Lock a watched root by its directory descriptor ``fd`` until that is closed.

    Raises ``Unavailable`` with the holder's pid when another process watches it. Returns False, with nothing locked,
    where the filesystem has no such locks (NFS refuses them on a directory).
    """
    try:
        taken = flock(fd)
    except OSError:
        return False
    if not taken:
        raise Unavailable(
            f"the folder {_path(fd)} is watched by {process_text(lock_holder(fd))}",
            fix="stop that one, or watch another folder",
        )
    return True


def lock_holder(fd: int) -> int | None:
    """Return the pid of the process that holds a flock on what ``fd`` refers to, None where the kernel shows none."""
    st = os.fstat(fd)
    try:
        table = Path("/proc/locks").read_text(encoding="ascii")
    except OSError:
        return None
    return find_holder(table, (os.major(st.st_dev), os.minor(st.st_dev)), st.st_ino)


def find_holder(table: str, device: tuple[int, int], inode: int) -> int | None:
    """Return the flock's holder by the text of ``/proc/locks`` (proc(5)), None where it doesn't show one.

    Overlayfs and Btrfs show one device there and another in ``stat``: then the inode alone decides, if only one
    process has locked a file of that number.
    """
    rows = [line.split() for line in table.splitlines()]
    # "1: FLOCK ADVISORY WRITE 1234 fd:01:5678 0 EOF"; one that waits has "->" in the second place.
    held = [(row[5], int(row[4])) for row in rows if len(row) > 5 and row[1] == "FLOCK"]  # noqa: PLR2004 - columns
    exact = f"{device[0]:02x}:{device[1]:02x}:{inode}"
    pids = {pid for place, pid in held if place == exact} or _unique(lambda place: place.endswith(f":{inode}"), held)
    return next((pid for pid in pids if pid > 0), None)


def process_text(pid: int | None) -> str:
    """Return how a message names the process that holds a lock."""
    return f"another presignd (pid {pid})" if pid else "another process (its pid can't be seen from here)"


def _unique(match: Callable[[str], bool], held: list[tuple[str, int]]) -> set[int]:
    pids = {pid for place, pid in held if match(place)}
    return pids if len(pids) == 1 else set()


def _path(fd: int) -> str:
    try:
        return str(Path(f"/proc/self/fd/{fd}").readlink())
    except OSError:
        return "(unknown)"
