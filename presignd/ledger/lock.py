"""The ledger's folder: private, on a filesystem where locks hold, and held by one daemon.

The lock is flock(2)'s, which the kernel releases with the process. Watched folders are locked in the same way.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

from presignd.errors import Unavailable, UsageError
from presignd.system import filesystem
from presignd.system.durable import make_folder
from presignd.system.trust import WalkedFolder, require_owner, walked


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
                f"the ledger in {folder} is in use by {_named(lock_holder(self._fd) or _written(self._fd))}",
                fix="stop that one, or give this one a ledger.path of its own",
            )
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
            f"the folder {_path(fd)} is watched by {_named(lock_holder(fd))}",
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
    """Lock what ``fd`` refers to, until it is closed; return False when another process has it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _written(fd: int) -> int | None:
    """Return the pid in the lock file, for where ``/proc/locks`` does not show the holder."""
    text = os.pread(fd, 32, 0).strip()
    return int(text) if text.isdigit() else None


def _named(pid: int | None) -> str:
    return f"another presignd (pid {pid})" if pid else "another process (its pid can't be seen from here)"


def _path(fd: int) -> str:
    try:
        return str(Path(f"/proc/self/fd/{fd}").readlink())
    except OSError:
        return "(unknown)"


# --- the folder and its files ----------------------------------------------------------------------


def prepare(folder: Path) -> None:
    """Make ``folder`` (0700, whatever the umask) where it is missing, and refuse one that is unfit.

    Raises ``UsageError`` for one that can't be made, or that lies on a network filesystem: SQLite's WAL
    needs memory that every opener shares (sqlite.org/wal.html), and locks there hold one host at most.
    """
    try:
        make_folder(folder, 0o700)
        name = filesystem.kind(folder) if filesystem.is_network(folder) else ""
    except OSError as error:
        raise UsageError(
            f"ledger.path: {folder} can't be used: {_reason(error)}",
            fix="make that folder for the daemon's user, or set ledger.path to another one",
        ) from None
    if name:
        raise UsageError(
            f"ledger.path: {folder} lies on {name}, where neither locks nor SQLite's WAL can be trusted",
            fix="set ledger.path to a folder on a local filesystem",
        )


def make_private(path: Path) -> None:
    """Make the file ``path`` (0600, whatever the umask) where it is missing; raises ``OSError``.

    Another user's is refused, as is one beside it that SQLite would take for a part of it (sqlite.org/tempfiles.html).
    """
    with walked(path.parent) as place:
        for beside in ("-wal", "-shm", "-journal"):
            with suppress(FileNotFoundError):
                _require_ours(place, path.with_name(path.name + beside))
        try:
            fd = os.open(path.name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=place.fd)
        except FileExistsError:
            _require_ours(place, path)
            return
    try:
        os.fchmod(fd, 0o600)
    finally:
        os.close(fd)


def _require_ours(place: WalkedFolder, path: Path) -> None:
    """Refuse another user's file, and a symlink to one."""
    for follow in (False, True):
        require_owner(os.stat(path.name, dir_fd=place.fd, follow_symlinks=follow), path)


def _reason(error: OSError) -> str | None:
    return "a file is in the way" if isinstance(error, (FileExistsError, NotADirectoryError)) else error.strerror
