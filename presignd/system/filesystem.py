"""Which filesystem a path or descriptor lies on: there locks, leases and inotify work, or they don't.

Folders are made here too, so that power loss doesn't take them away again.

``statfs`` tells by a number (linux/magic.h, and coreutils' stat.c for those outside the kernel). Only
Linux has these numbers; elsewhere the type is 0, which is neither known to be local nor a network's.
"""

from __future__ import annotations

import os
import platform
import re
import select
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

from presignd.system import syscalls

_MOUNTS = Path("/proc/self/mountinfo")

NETWORK = {
    0x6969: "NFS",
    0x517B: "SMB",
    0xFF534D42: "CIFS",
    0xFE534D42: "SMB2",
    0x65735546: "FUSE",
    0x01021997: "9P",
    0x00C36400: "CephFS",
    0x5346414F: "AFS",
    0x6B414653: "AFS",
    0x73757245: "Coda",
    0x564C: "NCP",
    0x0BD00BD0: "Lustre",
    0x47504653: "GPFS",
    0x19830326: "BeeGFS",
    0xAAD7AAEA: "PanFS",
    0x013111A8: "IBRIX",
    0xBEEFDEAD: "SNFS",
    0x01161970: "GFS2",
    0x7461636F: "OCFS2",
    0x61636673: "ACFS",
    0x786F4256: "vboxsf",
    0xBACBACBC: "vmhgfs",
    0x7C7C6673: "prl_fs",
}
"""Shared between hosts or served by another process: changes made elsewhere give no event here, and
locks and shared memory can't be trusted. FUSE tells nothing of what is behind it, so it counts too."""

LOCAL = {
    0xEF53: "ext4",
    0x58465342: "XFS",
    0x9123683E: "Btrfs",
    0x2FC12FC1: "ZFS",
    0xF2F52010: "F2FS",
    0xCA451A4E: "bcachefs",
    0x01021994: "tmpfs",
    0x858458F6: "ramfs",
    0x794C7630: "overlay",
    0x4D44: "FAT",
    0x2011BAB0: "exFAT",
    0x5346544E: "NTFS",
    0x7366746E: "NTFS",
}
"""Names for messages; a type in neither table is taken for a local one."""


def close_quietly(fd: int) -> None:
    """Close what was opened for reading, whatever the filesystem says to it.

    FUSE is asked at each close, and one whose server is dead answers ENOTCONN (fuse(4), FLUSH). The descriptor is
    gone all the same (close(2)), and whether the file could be read was told by the reads.
    """
    with suppress(OSError):
        os.close(fd)


def fs_type(target: int | str | bytes | os.PathLike[str]) -> int:
    """Return ``f_type`` of the filesystem that holds ``target``, a descriptor or a path; 0 if not on Linux.

    Raises ``OSError`` as ``statfs(2)`` does.
    """
    if sys.platform != "linux":
        return 0
    return syscalls.filesystem_type(target)


def kind(target: int | str | bytes | os.PathLike[str]) -> str:
    """Name the filesystem for a message: "NFS", "ext4", or its number where it has no name here."""
    number = fs_type(target)
    return NETWORK.get(number) or LOCAL.get(number) or (f"type {number:#x}" if number else "unknown")


def is_network(target: int | str | bytes | os.PathLike[str]) -> bool:
    """Tell whether ``target`` lies on a network filesystem or one served by a process (FUSE)."""
    return fs_type(target) in NETWORK


_FINE = frozenset({"ext4", "XFS", "Btrfs", "tmpfs"})
_FINE_SINCE = (6, 13)


def has_fine_times(target: int | str | bytes | os.PathLike[str], release: str | None = None) -> bool:
    """Tell whether a change after a stat surely has another ctime than that stat saw, however soon it comes.

    So it is under Linux 6.13 or later (Documentation/filesystems/multigrain-ts.rst) on the filesystems that take
    part; elsewhere the clock of timestamps ticks every 4 to 10 ms. ``release`` is the kernel's, this one's by default.
    """
    number = re.match(r"(\d+)\.(\d+)", release or platform.release())
    new = number is not None and (int(number[1]), int(number[2])) >= _FINE_SINCE
    return new and LOCAL.get(fs_type(target)) in _FINE


def is_local(target: int | str | bytes | os.PathLike[str]) -> bool:
    """Tell whether ``target`` surely lies on a local filesystem (False where this can't be told)."""
    number = fs_type(target)
    return number != 0 and number not in NETWORK


def mounts() -> Iterator[tuple[str, PurePosixPath, PurePosixPath]]:
    """Yield each mount's device, the path on it that is shown, and where (proc_pid_mountinfo(5)); none but on Linux."""
    try:
        lines = _MOUNTS.read_text(errors="surrogateescape").removesuffix("\n").split("\n")
    except OSError:
        return
    for line in lines:
        device, root, point = line.split(" ")[2:5]
        yield device, PurePosixPath(_unescaped(root)), PurePosixPath(_unescaped(point))


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def may_hang(folder: int) -> bool:
    """Tell whether a look below an open directory may have to ask another host or process, and wait for it.

    So it is on a network filesystem or FUSE, also one whose server is away, and where anything is mounted below.
    """
    try:
        if is_network(folder):
            return True
    except OSError:
        return True
    return bool(mounted_below(folder))


def mounted_below(folder: int) -> frozenset[tuple[str, PurePosixPath, PurePosixPath]]:
    """Return what is mounted below an open directory, as ``mounts`` tells of it."""
    real = PurePosixPath(Path(f"/proc/self/fd/{folder}").resolve())
    return frozenset(mount for mount in mounts() if mount[2] != real and mount[2].is_relative_to(real))


class MountTable:
    """Tells whether anything was mounted or unmounted since it was asked last; never so but on Linux."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._fd = -1
        with suppress(OSError):
            self._fd = os.open(_MOUNTS, os.O_RDONLY | os.O_CLOEXEC)
            self._poll.register(self._fd, select.POLLERR | select.POLLPRI)  # proc_pid_mountinfo(5)

    def changed(self) -> bool:
        """Tell it, without reading the table."""
        return bool(self._poll.poll(0))

    def close(self) -> None:
        """Let go of it."""
        if self._fd >= 0:
            os.close(self._fd)
