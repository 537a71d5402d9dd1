"""The content of a file: compared with what was verified, and copied where a rename can't reach. Blocking."""

from __future__ import annotations

import hashlib
import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from presignd.model import FileVersion

READ = 1 << 20


def content_checksum(fd: int, version: FileVersion) -> str:
    """Return the checksum of what ``fd`` holds, in the form of ``version.checksum``.

    That is ``md5:…`` or ``sha256:…`` of the whole, or of the digests of its parts (``md5:…-3200``). Reads
    as many bytes as the version has: a longer file shows in its size.
    """
    algorithm, _, digest = version.checksum.partition(":")
    if "-" not in digest:
        return f"{algorithm}:{_digest(fd, algorithm, 0, version.size).hex()}"
    size, step = version.size, version.part_size
    parts = [_digest(fd, algorithm, at, min(step, size - at)) for at in range(0, max(size, 1), step)]
    whole = hashlib.new(algorithm, b"".join(parts), usedforsecurity=False)
    return f"{algorithm}:{whole.hexdigest()}-{len(parts)}"


def _digest(fd: int, algorithm: str, offset: int, length: int) -> bytes:
    digest = hashlib.new(algorithm, usedforsecurity=False)
    end = offset + length
    while offset < end and (piece := os.pread(fd, min(READ, end - offset), offset)):
        digest.update(piece)
        offset += len(piece)
    return digest.digest()


def copy_file(fd: int, copy: int, size: int) -> None:
    """Copy ``size`` bytes, mode, mtime and (where we may) owner from ``fd`` to ``copy``, durably."""
    offset = 0
    while offset < size and (piece := os.pread(fd, min(READ, size - offset), offset)):
        write_all(copy, piece)
        offset += len(piece)
    st = os.fstat(fd)
    with suppress(PermissionError):
        os.fchown(copy, st.st_uid, st.st_gid)
    with suppress(PermissionError):
        os.fchmod(copy, stat.S_IMODE(st.st_mode) & 0o777)
    os.utime(copy, ns=(st.st_atime_ns, st.st_mtime_ns))
    os.fsync(copy)


def write_all(fd: int, data: bytes) -> None:
    """Write all of ``data`` where ``fd`` stands."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
