"""The writer check: whether a program has a file open for writing, by trying a read lease.

``fcntl(F_SETLEASE, F_RDLCK)`` on a read-only descriptor fails with EAGAIN while any program has the file open for
writing (fcntl(2), "Leases"). It needs the file's owner or CAP_LEASE, and a local filesystem. The lease is released at
once, after about 6 µs: a program that opens the file for writing in between waits that long.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from presignd.system import filesystem

if TYPE_CHECKING:
    from presignd.pipeline.files.folder import Folder

_CAP_LEASE = 28
"""linux/capability.h."""


class WriterCheck(NamedTuple):
    """How completeness is decided (``lease`` or ``quiet``), and why."""

    mode: Literal["lease", "quiet"]
    reason: str


def ignore_sigio() -> None:
    """Ignore SIGIO; call this in the main thread before the first lease.

    The kernel sends it when a writer opens the file during our lease, and its default action is to kill.
    """
    signal.signal(signal.SIGIO, signal.SIG_IGN)


def has_writer(fd: int) -> bool | None:
    """Return whether any program has the file open for writing; None where the kernel can't tell.

    ``fd`` is a read-only descriptor of a regular file. None means: another user's file without CAP_LEASE, or a
    filesystem without leases. Raises ``RuntimeError`` unless SIGIO is ignored at the first call.
    """
    if sys.platform != "linux":
        return None
    _require_sigio_ignored()
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return True if error.errno == errno.EAGAIN else None
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:  # the owner changed (chown), or the lease is broken: closing releases it
        return False
    return False


@cache
def _require_sigio_ignored() -> None:
    if signal.getsignal(signal.SIGIO) is not signal.SIG_IGN:
        raise RuntimeError("ignore_sigio() must come before the first lease")


def writer_check_of(folder: Folder) -> WriterCheck:
    """Return how files in ``folder`` settle: by the writer check, or by quiet time alone, and why.

    In the mode "lease" the reason names the files that still settle by quiet time. In a writable folder, the check is
    tested on a file without a name (``O_TMPFILE``), which no program sees.
    """
    if sys.platform != "linux":
        return WriterCheck("quiet", "the writer check needs Linux")
    if filesystem.is_network(folder.fd):
        return WriterCheck("quiet", f"{filesystem.kind(folder.fd)} does not report writers on other hosts")
    if _lease_works(folder.fd) is False:
        return WriterCheck("quiet", f"{filesystem.kind(folder.fd)} has no leases that report writers")
    return WriterCheck("lease", "" if _may_lease_all() else "other users' files settle by quiet time: no CAP_LEASE")


def _lease_works(folder: int) -> bool | None:
    """Return whether a lease finds the writer of a nameless file; None if the folder can't have such a file."""
    try:
        writer = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=folder)
    except OSError:
        return None
    try:
        reader = os.open(f"/proc/self/fd/{writer}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        os.close(writer)
        return None
    try:
        written_to = has_writer(reader)
        os.close(writer)
        return written_to is True and has_writer(reader) is False
    finally:
        os.close(reader)


def _may_lease_all() -> bool:
    """Return whether this process has CAP_LEASE in the initial user namespace (in another it doesn't count)."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        mapping = Path("/proc/self/uid_map").read_text(encoding="ascii").split()
    except OSError:
        return False
    effective = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(int(effective, 16) >> _CAP_LEASE & 1) and mapping == ["0", "0", "4294967295"]
