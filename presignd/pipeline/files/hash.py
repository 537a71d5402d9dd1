"""Compute checksums of a file's content, in the forms that the ledger records. Blocking."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from presignd.errors import Fault, system_fault
from presignd.model import Fingerprint
from presignd.runtime.heartbeat import beat
from presignd.s3.checksums import HEADERS, Hash, checksum_of, new
from presignd.system.threads import processors

READ = 256 << 10

ALGORITHMS = frozenset({"sha1", *HEADERS})
"""The checksums that can be computed here, by their names in a receipt and in S3's headers (x-amz-checksum-…)."""

PROCESSORS = threading.Semaphore(processors())
"""Limits concurrent hashing to the number of processors; a thread holds it for one read. A lower priority
(``presignd.system.threads``) would not be enough to keep the event loop responsive where it can't be set, as under
systemd's unit."""


def checksum_like(fd: int, like: str, size: int, part_size: int = 0, *, stop: threading.Event | None = None) -> str:
    """Return the checksum of the first ``size`` bytes of ``fd``, in the form of ``like``.

    That is ``algorithm:hex`` of the whole, or ``md5:…-N``: the MD5 of the MD5s of N parts, ``part_size`` bytes each,
    like the ETag of a multipart upload. If the file is shorter, or ``stop`` is set meanwhile, it is the checksum
    of what was read.
    """
    algorithm, _, value = like.partition(":")
    if "-" not in value:
        return f"{algorithm}:{digest(fd, algorithm, 0, size, stop).hex()}"
    cuts = range(0, max(size, 1), part_size or max(size, 1))
    parts = b"".join(digest(fd, algorithm, at, min(cuts.step, size - at), stop) for at in cuts)
    return f"{checksum_of(parts, algorithm)}-{len(cuts)}"


class Digest:
    """The checksum of bytes that arrive piece by piece, in the form of ``like``; see ``checksum_like``."""

    def __init__(self, like: str, part_size: int = 0) -> None:
        self._algorithm, _, value = like.partition(":")
        self._part_size = part_size if "-" in value else 0
        self._parts: list[bytes] = []
        self._made, self._taken = self._new(), 0

    def update(self, piece: bytes) -> None:
        """Hash the next bytes. Blocking."""
        view = memoryview(piece)
        while view:
            now = view[: self._part_size - self._taken] if self._part_size else view
            with PROCESSORS:
                self._made.update(now)
            self._taken += len(now)
            view = view[len(now) :]
            if self._taken == self._part_size:
                self._end_part()

    def _end_part(self) -> None:
        self._parts.append(self._made.digest())
        self._made, self._taken = self._new(), 0

    def _new(self) -> Hash:
        return new(self._algorithm)

    @property
    def checksum(self) -> str:
        """The checksum of the bytes so far."""
        if not self._part_size:
            return f"{self._algorithm}:{self._made.hexdigest()}"
        parts = [*self._parts, self._made.digest()] if self._taken else self._parts
        return f"{checksum_of(b''.join(parts), self._algorithm)}-{len(parts)}"


def fingerprint_of(fd: int) -> Fingerprint:
    """Return the fingerprint of an open file; raise ``read_error`` where fstat(2) fails.

    On NFS and most FUSE filesystems, a deleted or replaced file is stale (ESTALE) even through an open descriptor.
    """
    try:
        return Fingerprint.of(os.fstat(fd))
    except OSError as error:
        raise _read_error(error) from None


def read_at(fd: int, length: int, offset: int) -> bytes:
    """Read as ``os.pread`` does; raise the fault ``read_error`` where the disk fails."""
    try:
        return os.pread(fd, length, offset)
    except OSError as error:
        raise _read_error(error) from None


def digest(fd: int, algorithm: str, offset: int, size: int, stop: threading.Event | None = None) -> bytes:
    """Return the digest of ``size`` bytes from ``offset``, or of as many as the file has; raise ``read_error``."""
    made = new(algorithm)
    read = into_one_buffer(min(READ, size))
    end = offset + size
    while offset < end and not (stop and stop.is_set()) and (piece := read(fd, min(READ, end - offset), offset)):
        beat()
        with PROCESSORS:
            made.update(piece)
        offset += len(piece)
    return made.digest()


def into_one_buffer(most: int) -> Callable[[int, int, int], memoryview]:
    """Return a function that reads as ``read_at`` does, up to ``most`` bytes, always into the same buffer.

    A new buffer for each read may cost a page fault for each 4 KiB.
    """
    room = memoryview(bytearray(most))

    def read(fd: int, length: int, offset: int) -> memoryview:
        try:
            return room[: os.preadv(fd, [room[:length]], offset)]
        except OSError as error:
            raise _read_error(error) from None

    return read


def _read_error(error: OSError) -> Fault:
    return system_fault("read_error", error)
