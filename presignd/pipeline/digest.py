"""The checksum of a file's content, in the forms that receipts have. Blocking."""

from __future__ import annotations

import hashlib
import os
import threading

from presignd.errors import Fault, fault
from presignd.heartbeat import beat

READ = 1 << 20


def checksum_like(fd: int, like: str, size: int, part_size: int = 0, *, stop: threading.Event | None = None) -> str:
    """Return the checksum of the first ``size`` bytes of ``fd``, in the form of ``like``.

    That is ``md5:…`` or ``sha256:…`` of the whole, or ``md5:…-N``: the MD5 of the N parts' MD5s, ``part_size``
    bytes each, as the ETags of multipart objects are made. A shorter file, or ``stop`` set under way, gives
    the checksum of what was read.
    """
    algorithm, _, value = like.partition(":")
    if "-" not in value:
        return f"{algorithm}:{digest(fd, algorithm, 0, size, stop).hex()}"
    cuts = range(0, max(size, 1), part_size or max(size, 1))
    parts = b"".join(digest(fd, algorithm, at, min(cuts.step, size - at), stop) for at in cuts)
    return f"{algorithm}:{hashlib.new(algorithm, parts, usedforsecurity=False).hexdigest()}-{len(cuts)}"


def read_at(fd: int, length: int, offset: int) -> bytes:
    """Read as ``os.pread`` does; raise the fault ``read_error`` where the disk fails: that is no bug."""
    try:
        return os.pread(fd, length, offset)
    except OSError as error:
        raise _read_error(error) from None


def digest(fd: int, algorithm: str, offset: int, size: int, stop: threading.Event | None = None) -> bytes:
    """Return the digest of ``size`` bytes from ``offset``, or of as many as there are.

    Raises ``read_error``. All reads share one buffer: a fresh megabyte each time took 0.3 s a GiB in page faults.
    """
    made = hashlib.new(algorithm, usedforsecurity=False)
    room = memoryview(bytearray(min(READ, size)))
    end = offset + size
    while offset < end and not (stop and stop.is_set()) and (count := _read_into(room[: end - offset], fd, offset)):
        beat()
        made.update(room[:count])
        offset += count
    return made.digest()


def _read_into(room: memoryview, fd: int, offset: int) -> int:
    try:
        return os.preadv(fd, [room], offset)
    except OSError as error:
        raise _read_error(error) from None


def _read_error(error: OSError) -> Fault:
    return fault("read_error", error.strerror or type(error).__name__)
