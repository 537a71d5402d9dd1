"""Hash files, in the forms that the ledger records, and keep what a small one holds. Blocking."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

from presignd.errors import Fault, fault, system_fault
from presignd.model import Fingerprint
from presignd.runtime.heartbeat import beat
from presignd.s3.checksums import HEADERS, Hash, checksum_of, new
from presignd.store.support import Support
from presignd.system.threads import processors

READ = 256 << 10

SMALL = 256 << 10
"""Largest file, in bytes, that is read once into memory; larger ones are hashed, then streamed."""

TINY = 64 << 10
"""Largest file, in bytes, for which a thread costs more than reading from the page cache."""

Read = Callable[[int, int, int], bytes | memoryview]
"""``read_at``, or one like it."""

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
    made = Digest(like, part_size or max(size, 1))
    for piece in _pieces(fd, 0, size):
        made.update(piece)
        if stop and stop.is_set():
            break
    return made.checksum


class Digest:
    """The checksum of bytes that arrive piece by piece, in the form of ``like``; see ``checksum_like``."""

    def __init__(self, like: str, part_size: int = 0) -> None:
        self._algorithm, _, value = like.partition(":")
        self._part_size = part_size if "-" in value else 0
        self._parts: list[bytes] = []
        self._made, self._taken = self._new(), 0

    def update(self, piece: bytes | memoryview) -> None:
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
        parts = self._parts if self._parts and not self._taken else [*self._parts, self._made.digest()]
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


def digest(fd: int, algorithm: str, offset: int, size: int) -> bytes:
    """Return the digest of ``size`` bytes from ``offset``, or of as many as the file has; raise ``read_error``."""
    made = new(algorithm)
    for piece in _pieces(fd, offset, size):
        with PROCESSORS:
            made.update(piece)
    return made.digest()


def _pieces(fd: int, offset: int, size: int) -> Iterator[memoryview]:
    """Yield ``size`` bytes from ``offset``, or as many as the file has, each piece in the same buffer."""
    read = into_one_buffer(min(READ, size))
    end = offset + size
    while offset < end and (piece := read(fd, min(READ, end - offset), offset)):
        beat()
        yield piece
        offset += len(piece)


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


# --- small files --------------------------------------------------------------------------------


class Prepared(NamedTuple):
    """A file ready to be sent: its checksums by algorithm, its bytes if it is small, its descriptor if it is open."""

    fd: int | None
    fingerprint: Fingerprint
    checksums: dict[str, str]
    data: bytes | None

    def checksum_like(self, like: str, size: int, part_size: int) -> str:
        """Return the checksum of the first ``size`` bytes, in the form of ``like``. Blocking."""
        if self.fd is not None:
            return checksum_like(self.fd, like, size, part_size)
        made = Digest(like, part_size)
        made.update((self.data or b"")[:size])
        return made.checksum

    def intent(self, support: Support) -> str:
        """Return the checksum that will identify the object; it is committed before the content is sent.

        "" where that checksum wasn't computed, because the bucket was probed anew since.
        """
        return self.checksums.get(support.checksum if support.proven else "md5", "")


def prepare(
    fd: int, size: int, algorithms: Collection[str], *, max_in_memory: int = SMALL, read: Read = read_at
) -> Prepared:
    """Hash ``size`` bytes of ``fd``; raise ``changed_while_uploading`` when it isn't that size throughout. Blocking.

    The bytes are kept if the size is at most min(``max_in_memory``, ``SMALL``). The fingerprint is taken before the
    first byte is read, so a change during the pass differs from it.
    """
    fingerprint = fingerprint_of(fd)
    digests = {algorithm: new(algorithm) for algorithm in algorithms}
    kept = b"" if size <= min(max_in_memory, SMALL) else None
    if size > SMALL:
        read = into_one_buffer(READ)
    offset, ended = 0, False
    # Ask for one byte more: this shows growth without another read.
    while not ended and (piece := read(fd, length := min(READ, size - offset + 1), offset)):
        beat()
        for digest in digests.values():
            digest.update(piece)
        offset += len(piece)
        ended = offset > size or (offset == size and len(piece) < length)
        if kept is not None:
            kept += piece  # one piece, unless the page cache has only the beginning
    if not offset == size == fingerprint.size:
        raise fault("changed_while_uploading", "its size changed")
    checksums = {algorithm: f"{algorithm}:{digest.hexdigest()}" for algorithm, digest in digests.items()}
    return Prepared(fd, fingerprint, checksums, kept)
