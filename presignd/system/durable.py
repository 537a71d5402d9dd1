"""Durable changes to files and folders: write, sync, and rename without replacing. Blocking.

After a power loss, a durable change is there as a whole or not at all. The system's ``OSError`` is raised as it is.
"""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path

from presignd.system import syscalls
from presignd.system.trust import give_at, open_folder, walked

_FOLDER = getattr(os, "O_PATH", 0) | os.O_DIRECTORY | os.O_CLOEXEC
_UNSUPPORTED = frozenset({errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP})
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
_NO_SYNC = frozenset({errno.EACCES, errno.EINVAL, errno.EOPNOTSUPP})


# --- files --------------------------------------------------------------------------------------


def write_file(file: Path, content: bytes, *, replace: bool = True) -> None:
    """Write a private file (0600) durably: readers see the old content or all of the new one.

    Without ``replace``, ``FileExistsError`` is raised where there is one. A crash may leave a temporary file beside it.
    """
    fresh = f".{file.name}.{secrets.token_hex(4)}"
    folder = os.open(file.parent, _FOLDER)
    try:
        write_new(folder, os.fsencode(fresh), content, 0o600)
        try:
            if replace:
                os.rename(fresh, file.name, src_dir_fd=folder, dst_dir_fd=folder)
            else:
                rename_noreplace(folder, os.fsencode(fresh), folder, os.fsencode(file.name))
        except OSError:
            os.unlink(fresh, dir_fd=folder)
            raise
        sync(folder)
    finally:
        os.close(folder)


def write_new(folder: int, name: bytes, content: bytes, mode: int) -> None:
    """Create a file with this content and mode, whatever the umask, and sync it; remove it after a failure.

    Its name is durable only after ``sync(folder)``. Raises ``FileExistsError`` where the name is taken.
    """
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder)
    try:
        os.fchmod(fd, mode)
        write_all(fd, content, 0)
        os.fsync(fd)
    except OSError:
        os.unlink(name, dir_fd=folder)
        raise
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of ``data`` at ``offset``; one pwrite(2) may write less."""
    left = memoryview(data)
    while left:
        written = os.pwrite(fd, left, offset)
        left, offset = left[written:], offset + written


# --- names --------------------------------------------------------------------------------------


def rename_noreplace(from_dir: int, name: bytes, to_dir: int, to_name: bytes) -> None:
    """Rename, or raise ``FileExistsError`` when ``to_name`` is taken; EXDEV as rename does.

    By renameat2(2) where kernel and filesystem have it; else by a hard link and the removal of the old name; else
    an empty file reserves the new name, and the rename replaces it.
    """
    try:
        syscalls.renameat2_noreplace(from_dir, name, to_dir, to_name)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    else:
        return
    try:
        _rename_by_link(from_dir, name, to_dir, to_name)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _rename_to_reserved(from_dir, name, to_dir, to_name)


def _rename_by_link(from_dir: int, name: bytes, to_dir: int, to_name: bytes) -> None:
    os.link(name, to_name, src_dir_fd=from_dir, dst_dir_fd=to_dir, follow_symlinks=False)
    # A crash here leaves both names; ``rename_to_free`` finds that they are one file and goes on.
    try:
        os.unlink(name, dir_fd=from_dir)
    except OSError:
        os.unlink(to_name, dir_fd=to_dir)
        raise


def _rename_to_reserved(from_dir: int, name: bytes, to_dir: int, to_name: bytes) -> None:
    reserved = os.open(to_name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=to_dir)
    try:
        taken = os.fstat(reserved).st_size > 0  # another program saw the empty file and wrote into it
        if not taken:
            os.rename(name, to_name, src_dir_fd=from_dir, dst_dir_fd=to_dir)
    except OSError:
        os.unlink(to_name, dir_fd=to_dir)
        raise
    finally:
        os.close(reserved)
    if taken:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))


# --- folders ------------------------------------------------------------------------------------


def sync(folder: int) -> None:
    """Make the names in ``folder`` (an ``O_PATH`` descriptor will do) durable, where its filesystem can."""
    try:
        fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
    except PermissionError:
        return  # a folder that this user may write to but not list
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(fd)


def sync_name(file: Path) -> None:
    """Make a change of the name of ``file`` durable: that it was made, renamed or removed."""
    folder = os.open(file.parent, _FOLDER)
    try:
        sync(folder)
    finally:
        os.close(folder)


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable; raise ``OSError`` also where its filesystem can't."""
    with open_folder(folder) as fd:
        os.fsync(fd)


def make_folder(folder: Path, mode: int | None = None) -> bool:
    """Make ``folder`` durably (``mode`` whatever the umask), and the missing folders above it.

    Returns False where it existed. Raises ``NotADirectoryError`` where something else has its name, ``OSError``.
    """
    if not folder.name:
        return False
    try:
        with walked(folder.parent) as parent:
            os.mkdir(folder.name, mode or 0o777, dir_fd=parent.fd)
            if mode is not None:
                give_at(parent.fd, folder.name, mode)
    except FileNotFoundError:
        make_folder(folder.parent)
        return make_folder(folder, mode)
    except FileExistsError:
        with walked(folder):
            return False
    sync_folder(folder.parent)
    return True
