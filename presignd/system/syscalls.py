"""System calls that the ``os`` module lacks, through the C library.

Each raises ``OSError`` as the calls of ``os`` do, with ENOSYS where the C library has no such call.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from functools import cache
from typing import Any

_RENAME_NOREPLACE = 1  # linux/fs.h
_FALLOC_FL_KEEP_SIZE = 1  # linux/falloc.h

_STATFS_BYTES = 512
"""More than struct statfs has on any architecture (120 on x86-64); its first field is ``f_type``."""


@cache
def libc() -> Any:
    """Return the C library of this process."""
    return ctypes.CDLL(None, use_errno=True)


def inotify_init() -> int:
    """Return a new inotify instance: a descriptor, non-blocking."""
    return _checked("inotify_init1", os.O_CLOEXEC | os.O_NONBLOCK)


def inotify_add_watch(instance: int, path: bytes, events: int) -> int:
    """Watch ``path`` for ``events`` (a mask of inotify(7)); return the watch's number."""
    return _checked("inotify_add_watch", instance, path, events)


def inotify_rm_watch(instance: int, number: int) -> None:
    """Remove a watch."""
    _checked("inotify_rm_watch", instance, number)


def renameat2_noreplace(from_dir: int, name: bytes, to_dir: int, to_name: bytes) -> None:
    """Rename by renameat2(2) with RENAME_NOREPLACE."""
    _checked("renameat2", from_dir, name, to_dir, to_name, _RENAME_NOREPLACE)


def reserve(fd: int, offset: int, length: int) -> None:
    """Reserve disk space for ``length`` bytes from ``offset``; the file's size stays (fallocate(2))."""
    call = "fallocate64" if hasattr(libc(), "fallocate64") else "fallocate"
    _checked(call, fd, _FALLOC_FL_KEEP_SIZE, ctypes.c_int64(offset), ctypes.c_int64(length))


def filesystem_type(target: int | str | bytes | os.PathLike[str]) -> int:
    """Return ``f_type`` of the filesystem that holds ``target``, a descriptor or a path (statfs(2), Linux)."""
    buffer = ctypes.create_string_buffer(_STATFS_BYTES)
    if isinstance(target, int):
        _checked("fstatfs", target, buffer)
    else:
        _checked("statfs", os.fsencode(target), buffer, path=target)
    return _fsword().from_buffer(buffer).value & 0xFFFFFFFF


def _fsword() -> type[ctypes.c_int | ctypes.c_long]:
    """Return C's ``__fsword_t``: a long, but on s390x an int."""
    return ctypes.c_int if platform.machine() == "s390x" else ctypes.c_long


def _checked(name: str, *arguments: object, path: str | bytes | os.PathLike[str] | None = None) -> int:
    """Call ``name`` of the C library; raise ``OSError`` where it returns less than zero."""
    call = getattr(libc(), name, None)
    if call is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    returned = int(call(*arguments))
    if returned < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return returned
