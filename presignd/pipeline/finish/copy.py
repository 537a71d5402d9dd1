"""The content of a file: compared with what was verified, and copied where a rename can't reach. Blocking."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from presignd.pipeline.files.hash import READ, checksum_like
from presignd.runtime.heartbeat import beat
from presignd.system.durable import write_all

if TYPE_CHECKING:
    from presignd.model import FileVersion


SYNC_SECONDS = 600.0
"""What a large copy may take to reach the disk: as one call, which can't beat."""


def content_checksum(fd: int, version: FileVersion) -> str:
    """Return the checksum of what ``fd`` holds, in the form of ``version.checksum``.

    Reads as many bytes as the version has: a longer file shows in its size.
    """
    return checksum_like(fd, version.checksum, version.size, version.part_size)


def copy_file(fd: int, copy: int, size: int) -> None:
    """Copy ``size`` bytes, mode, mtime and (where we may) owner from ``fd`` to ``copy``, durably.

    Where there is surely no room nothing is written: it is tried again and again, and the disk is others' too.
    """
    _require_room(copy, size)
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


def _require_room(fd: int, size: int) -> None:
    """Raise ENOSPC where a filesystem has less than ``size`` bytes left; one that doesn't know its size may have."""
    there = os.fstatvfs(fd)
    left = there.f_bavail if os.geteuid() else there.f_bfree
    if there.f_blocks and left * there.f_frsize < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
