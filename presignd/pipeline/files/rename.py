"""Moving a file to a name without ever replacing one, by directory descriptor. Blocking.

Names are bytes, one component each; ``OSError`` comes as the system raises it.
"""

from __future__ import annotations

import errno
import os
import posixpath
from contextlib import suppress
from itertools import chain, count
from typing import TYPE_CHECKING

from presignd.system import syscalls

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME_MAX = 255
"""Bytes in one name on every filesystem that counts (limits.h)."""

_INSIDE_A_CHARACTER = range(0x80, 0xC0)
"""UTF-8 bytes that go on with a character: a name isn't cut before one."""

_UNSUPPORTED = frozenset({errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP})
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
_NO_SYNC = frozenset({errno.EACCES, errno.EINVAL, errno.EOPNOTSUPP})


def rename_noreplace(from_dir: int, name: bytes, to_dir: int, to_name: bytes) -> None:
    """Rename, or raise ``FileExistsError`` when ``to_name`` is taken; EXDEV as rename does.

    renameat2 where kernel and filesystem have it; else a hard link and the removal of the old name; else
    the new name is reserved by an empty file of ours, which the rename then replaces.
    """
    try:
        syscalls.renameat2_noreplace(from_dir, name, to_dir, to_name)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    else:
        return
    try:
        _link_over(from_dir, name, to_dir, to_name)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _reserve_and_rename(from_dir, name, to_dir, to_name)


def _link_over(from_dir: int, name: bytes, to_dir: int, to_name: bytes) -> None:
    os.link(name, to_name, src_dir_fd=from_dir, dst_dir_fd=to_dir, follow_symlinks=False)
    # A crash here leaves both names; ``place`` takes that for done.
    try:
        os.unlink(name, dir_fd=from_dir)
    except OSError:
        os.unlink(to_name, dir_fd=to_dir)
        raise


def _reserve_and_rename(from_dir: int, name: bytes, to_dir: int, to_name: bytes) -> None:
    reserved = os.open(to_name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=to_dir)
    try:
        taken = os.fstat(reserved).st_size > 0  # somebody saw a file there, and wrote into it: it is his now
        if not taken:
            os.rename(name, to_name, src_dir_fd=from_dir, dst_dir_fd=to_dir)
    except OSError:
        os.unlink(to_name, dir_fd=to_dir)
        raise
    finally:
        os.close(reserved)
    if taken:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))


def place(from_dir: int, name: bytes, to_dir: int, wanted: bytes) -> bytes:
    """Move to the first free of ``wanted``, ``wanted~2`` …; return the name it got.

    A name that is this same file already (a crash between link and unlink) is taken as the place.
    """
    candidates = names(wanted)
    while True:
        candidate = next(candidates)
        try:
            rename_noreplace(from_dir, name, to_dir, candidate)
        except FileExistsError:
            if not _is_same(from_dir, name, to_dir, candidate):
                continue
            os.unlink(name, dir_fd=from_dir)
        return candidate


def _is_same(from_dir: int, name: bytes, to_dir: int, other: bytes) -> bool:
    with suppress(FileNotFoundError):
        one = os.stat(name, dir_fd=from_dir, follow_symlinks=False)
        return os.path.samestat(one, os.stat(other, dir_fd=to_dir, follow_symlinks=False))
    return False


def names(name: bytes) -> Iterator[bytes]:
    """Yield ``name.ext``, ``name~2.ext``, ``name~3.ext`` …, each within 255 bytes."""
    stem, suffix = posixpath.splitext(name)
    return chain([name], (_numbered(stem, suffix, number) for number in count(2)))


def _numbered(stem: bytes, suffix: bytes, number: int) -> bytes:
    mark = b"~%d" % number
    suffix = suffix[: NAME_MAX - len(mark) - 1]
    room = NAME_MAX - len(mark) - len(suffix)
    if len(stem) > room:
        while room > 1 and stem[room] in _INSIDE_A_CHARACTER:
            room -= 1
        stem = stem[:room]
    return stem + mark + suffix


def sync(directory: int) -> None:
    """Make the names in ``directory`` (an ``O_PATH`` descriptor will do) durable, where that can be done."""
    try:
        fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    except PermissionError:
        return  # a folder we may write to but not list
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(fd)
