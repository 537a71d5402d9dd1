"""Read and hash a file that is small enough to be sent as one PUT. Blocking."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

from presignd.errors import fault
from presignd.model import Fingerprint
from presignd.pipeline.files.hash import READ, Digest, checksum_like, fingerprint_of, into_one_buffer, read_at
from presignd.runtime.heartbeat import beat
from presignd.s3.checksums import new
from presignd.store.support import Support

SMALL = 256 << 10
"""Largest file, in bytes, that is read once into memory; larger ones are hashed, then streamed."""

TINY = 64 << 10
"""Largest file, in bytes, for which a thread costs more than reading from the page cache."""

Read = Callable[[int, int, int], bytes | memoryview]
"""``read_at``, or one like it."""


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


def prepare_to_keep(fd: int, size: int, algorithms: Collection[str], read: Read) -> Prepared:
    """Prepare a small file without keeping its descriptor; a change after that raises, too."""
    prepared = prepare(fd, size, algorithms, read=read)
    if fingerprint_of(fd) != prepared.fingerprint:
        raise fault("changed_while_uploading", "it changed while it was read")
    return prepared._replace(fd=None)
