"""Identify the object under a version's key: by its ETag or its checksum, else by its bytes.

An ETag that is an MD5 identifies the content, and so does the ETag that the store returned for our own upload, whatever
its form. A CRC identifies only what this ledger was about to store under the key: anybody can make other bytes of the
same CRC. So any other object is taken for the same bytes only by MD5 or SHA-256. If neither is known, an object whose
size may be ours is read back and hashed. That costs as much as sending it, so it is done only if an upload ended
without a response, if a ledger was lost, and on stores that return no ETag.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import replace

from presignd.errors import WatchFault, fault
from presignd.model import Fingerprint, Sent
from presignd.pipeline.files.hash import Digest
from presignd.pipeline.upload.bucket import Bucket, StoredObject
from presignd.pipeline.upload.collision import Occupant
from presignd.s3.checksums import STRONG, algorithm_of, is_of_whole
from presignd.s3.responses import is_md5
from presignd.system.threads import in_background

CANT_READ = ("access_denied", "not_allowed")
"""Refusals of the GET: an object that can't be read counts as foreign."""


class Content(ABC):
    """What is uploaded.

    ``fingerprint`` was taken before the first byte was read. ``checksum`` is that for the receipt, "" while it isn't
    known; ``part_size`` are the bytes in a part, for a checksum of parts, 0 for a file sent as one PUT.
    """

    fingerprint: Fingerprint
    checksum: str = ""
    part_size: int = 0

    @property
    def size(self) -> int:
        """The content's size in bytes."""
        return self.fingerprint.size

    @abstractmethod
    async def checksum_like(self, like: str, part_size: int, size: int | None = None) -> str:
        """Return the content's checksum, or that of its first ``size`` bytes, in the form of ``like``."""

    @abstractmethod
    def use_checksum(self, checksum: str, part_size: int) -> None:
        """Use the checksum of a stored object with the same bytes for the receipt, unless one is known."""


async def identify(
    found: StoredObject,
    content: Content,
    sent: Collection[Sent],
    bucket: Bucket,
    key: str,
    *,
    md5_etags: bool,
    may_be_partial: bool,
) -> Occupant:
    """Return what ``found`` is. ``sent``: everything that its path sent under ``key``. Raises ``Fault``.

    ``md5_etags``: a probe found that an ETag of 32 hex digits is the MD5 in this bucket. ``may_be_partial``: an
    interrupted PUT may have left the beginning of the content; such an object is ours.
    """
    etag_checksum = "" if found.opaque else f"md5:{found.etag.lower()}"
    sent = [one for one in sent if one.size == found.size]
    for one in sent:
        if _is_it(one, found, etag_checksum):
            return Occupant.SAME if await _holds(content, one) else Occupant.OURS
    etags = [etag_checksum] if _comparable(found, content) else []
    whole = {*filter(is_of_whole, found.checksums)}
    for checksum in (*etags, *filter(_is_strong, whole)):
        if await _holds(content, Sent(found.size, checksum, content.part_size, "")):
            return Occupant.SAME
    if may_be_partial and found.size < content.size and is_md5(found.etag):
        is_beginning = await content.checksum_like(etag_checksum, 0, found.size) == etag_checksum
        return Occupant.OURS if is_beginning else Occupant.FOREIGN
    known = whole | ({etag_checksum} if md5_etags and is_md5(found.etag) and not found.opaque else set())
    maybe = [one for one in sent if _needs_reading(one, known)]
    if found.size == content.size and not await _differs(content, known):
        maybe.append(Sent(found.size, "md5:", 0, ""))
    read = await read_back(bucket, key, found, maybe) if maybe else {}
    for form, seen in read.items():
        if _is_strong(seen) and await _holds(content, replace(form, checksum=seen)):
            return Occupant.SAME
    return Occupant.OURS if any(form.checksum == seen for form, seen in read.items()) else Occupant.FOREIGN


async def read_back(bucket: Bucket, key: str, found: StoredObject, forms: Collection[Sent]) -> dict[Sent, str]:
    """GET an object and return its checksum in the form of each of ``forms``; {} if the GET is refused.

    Raises ``precondition_failed`` if the object changed meanwhile.
    """
    digests = {form: Digest(form.checksum, form.part_size) for form in forms}
    size = 0

    def update(piece: bytes) -> None:
        for digest in digests.values():
            digest.update(piece)

    async def take(piece: bytes) -> None:
        nonlocal size
        size += len(piece)
        await in_background(update, piece)

    try:
        there = await bucket.read(key, take)
    except WatchFault as refused:
        if refused.code in CANT_READ:
            return {}
        raise
    if not there or size != found.size:
        raise fault("precondition_failed", "it changed while it was read back")
    return {form: digest.checksum for form, digest in digests.items()}


async def holds_bytes(bucket: Bucket, key: str, found: StoredObject, ours: Sent) -> bool:
    """Read an object back and return whether it holds what was sent.

    Return True for an object that may not be read.
    """
    read = await read_back(bucket, key, found, [ours])
    return not read or read[ours] == ours.checksum


def _is_it(one: Sent, found: StoredObject, etag_checksum: str) -> bool:
    """Return whether the object is what was sent, by its ETag or its checksum.

    A CRC counts only if the ETag of what was sent is not known: otherwise this is another object of the same CRC.
    """
    if one.checksum == etag_checksum or (one.etag and one.etag == found.etag):
        return True
    return one.checksum in found.checksums and (_is_strong(one.checksum) or not one.etag)


def _is_strong(checksum: str) -> bool:
    return algorithm_of(checksum) in STRONG


def _needs_reading(one: Sent, known: Collection[str]) -> bool:
    """Return whether only the object's bytes can show whether it is what was sent."""
    algorithms = {algorithm_of(checksum) for checksum in known}
    return algorithm_of(one.checksum) not in algorithms and not (one.etag and "md5" in algorithms)


async def _differs(content: Content, known: Collection[str]) -> bool:
    """Return whether a checksum of the object differs from the content's, so that the object need not be read."""
    return any([await content.checksum_like(checksum, 0) != checksum for checksum in known])


def _comparable(found: StoredObject, content: Content) -> bool:
    """Return whether the ETag is the MD5 of a whole file, or of as many parts as ours would have."""
    if found.opaque or found.size != content.size:
        return False
    parts = -(-content.size // content.part_size) if content.part_size else 0
    return is_md5(found.etag) or bool(parts and found.etag.endswith(f"-{parts}"))


async def _holds(content: Content, one: Sent) -> bool:
    """Return whether the content is what was sent before; if so, use that checksum."""
    if content.size != one.size or await content.checksum_like(one.checksum, one.part_size) != one.checksum:
        return False
    content.use_checksum(one.checksum, one.part_size)
    return True
