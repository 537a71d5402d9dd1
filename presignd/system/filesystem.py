"""Filesystem types and mounts: whether locks, leases and inotify work for a path or descriptor.

``statfs`` returns the type as a number (linux/magic.h, and coreutils' stat.c for those outside the kernel). Only Linux
has these numbers; elsewhere the type is 0, which counts neither as local nor as a network filesystem.
"""

from __future__ import annotations

import os
import platform
import re
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
"""Shared between hosts or served by another process: changes made elsewhere cause no event here, and locks and shared
memory can't be trusted. FUSE doesn't show what is behind it, so it counts, too."""

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
"""Names for messages; a type in neither table counts as local."""


def read_cached(fd: int, size: int, offset: int) -> memoryview:
    """Read as ``os.pread`` does, but from the page cache only, so it never waits for a disk.

    Raises ``BlockingIOError`` where the page cache lacks the bytes (preadv2(2) with RWF_NOWAIT: EAGAIN) or the
    filesystem can't tell (EOPNOTSUPP).
    """
    piece = memoryview(bytearray(size))
    try:
        return piece[: os.preadv(fd, [piece], offset, os.RWF_NOWAIT)]
    except (OSError, AttributeError) as error:
        raise BlockingIOError(str(error)) from None


def close_quietly(fd: int) -> None:
    """Close a descriptor that was only read from; ignore errors.

    Each close sends a request to FUSE, which answers ENOTCONN if its server is dead (fuse(4), FLUSH). The descriptor is
    closed in any case (close(2)), and the reads already showed whether the file could be read.
    """
    try:
        os.close(fd)
    except OSError:
        return


@contextmanager
def reading(fd: int) -> Iterator[int]:
    """Yield a descriptor that is only read from, then close it quietly."""
    try:
        yield fd
    finally:
        close_quietly(fd)


def fs_type(target: int | str | bytes | os.PathLike[str]) -> int:
    """Return ``f_type`` of the filesystem that holds ``target``, a descriptor or a path; 0 if not on Linux.

    Raises ``OSError`` as ``statfs(2)`` does.
    """
    if sys.platform != "linux":
        return 0
    return syscalls.filesystem_type(target)


def kind(target: int | str | bytes | os.PathLike[str]) -> str:
    """Return the filesystem's name for a message: "NFS", "ext4", or its number where it has none here."""
    number = fs_type(target)
    return NETWORK.get(number) or LOCAL.get(number) or (f"type {number:#x}" if number else "unknown")


def is_network(target: int | str | bytes | os.PathLike[str]) -> bool:
    """Return whether ``target`` lies on a network filesystem or one served by a process (FUSE)."""
    return fs_type(target) in NETWORK


_FINE = frozenset({"ext4", "XFS", "Btrfs", "tmpfs"})
_FINE_SINCE = (6, 13)


def has_fine_times(target: int | str | bytes | os.PathLike[str], release: str | None = None) -> bool:
    """Return whether a change after a stat, however soon, surely gets another ctime than that stat saw.

    True since Linux 6.13 (Documentation/filesystems/multigrain-ts.rst) on the filesystems that support it; elsewhere
    the clock of timestamps ticks every 4 to 10 ms. ``release`` is the kernel's, by default the running one's.
    """
    number = re.match(r"(\d+)\.(\d+)", release or platform.release())
    new = number is not None and (int(number[1]), int(number[2])) >= _FINE_SINCE
    return new and LOCAL.get(fs_type(target)) in _FINE


def is_local(target: int | str | bytes | os.PathLike[str]) -> bool:
    """Return whether ``target`` is known to lie on a local filesystem."""
    number = fs_type(target)
    return number != 0 and number not in NETWORK


def mounts() -> Iterator[tuple[str, PurePosixPath, PurePosixPath]]:
    """Yield each mount's device, its root on it, and its mount point (proc_pid_mountinfo(5)); nothing but on Linux."""
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
    """Return whether reading below an open directory may have to wait for another host or process.

    True on a network filesystem or FUSE, also if its server is away, and where anything is mounted below.
    """
    try:
        if is_network(folder):
            return True
    except OSError:
        return True
    return bool(mounted_below(folder))


def mounted_below(folder: int) -> frozenset[tuple[str, PurePosixPath, PurePosixPath]]:
    """Return the ``mounts`` below an open directory."""
    real = PurePosixPath(Path(f"/proc/self/fd/{folder}").resolve())
    return frozenset(mount for mount in mounts() if mount[2] != real and mount[2].is_relative_to(real))


class MountTable:
    """Watches the mount table for changes; on other systems than Linux it sees none."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._fd = -1
        with suppress(OSError):
            self._fd = os.open(_MOUNTS, os.O_RDONLY | os.O_CLOEXEC)
            self._poll.register(self._fd, select.POLLERR | select.POLLPRI)  # proc_pid_mountinfo(5)

    def changed(self) -> bool:
        """Return whether anything was mounted or unmounted since the last call, without reading the table."""
        return bool(self._poll.poll(0))

    def close(self) -> None:
        """Close the mount table."""
        if self._fd >= 0:
            os.close(self._fd)
