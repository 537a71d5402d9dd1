"""Whose an object is that stands at a version's key: by what the store calls it, else by its bytes.

No vendor's ETag is the measure. One that is an MD5 tells; one that the store told of our own upload tells,
whatever its form; where it tells nothing, an object of a size that may be ours is read back and hashed. That
costs as much as sending it, and no more: so it is done where an upload ended without an answer, where a ledger
was lost, and on stores that tell no ETag.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Protocol

from presignd.errors import WatchFault, fault
from presignd.model import Sent
from presignd.pipeline.files.hash import Digest
from presignd.pipeline.upload.bucket import Bucket, StoredObject
from presignd.pipeline.upload.collision import Whose, is_md5
from presignd.system.threads import in_background

CANT_READ = ("access_denied", "not_allowed")
"""Refusals of the GET. The object then stays what an unreadable one is: another's."""


class Hashed(Protocol):
    """The content that goes under the key."""

    @property
    def size(self) -> int:
        """Bytes."""
        ...

    @property
    def part_size(self) -> int:
        """Bytes in a part; 0 for a whole file."""
        ...

    async def checksum_like(self, like: str, part_size: int, size: int | None = None) -> str:
        """Return the checksum of it, or of its first ``size`` bytes, in the form of ``like``."""
        ...

    def adopted(self, checksum: str, part_size: int) -> None:
        """Hear that an object holds these bytes, as this checksum tells."""
        ...


async def whose(
    found: StoredObject,
    content: Hashed,
    sent: Collection[Sent],
    bucket: Bucket,
    key: str,
    *,
    md5_etags: bool,
    torn: bool,
) -> Whose:
    """Tell whose ``found`` is; ``sent`` is all that its path sent under ``key``. Raises ``Fault``.

    ``md5_etags``: an ETag of 32 hex digits was seen to be the MD5 in this bucket. ``torn``: an object that is
    the beginning of the content is what an upload of ours left behind as it broke off.
    """
    called = "" if found.opaque else f"md5:{found.etag.lower()}"
    for one in sent:
        if one.size == found.size and (called == one.checksum or (one.etag and one.etag == found.etag)):
            return Whose.SAME if await _holds(content, one) else Whose.OURS
    own = Sent(found.size, called, content.part_size, "")
    if _comparable(found, content) and await _holds(content, own):
        return Whose.SAME
    if torn and found.size < content.size and is_md5(found.etag):
        return Whose.OURS if await content.checksum_like(called, 0, found.size) == called else Whose.ANOTHERS
    if md5_etags and is_md5(found.etag) and not found.opaque:
        return Whose.ANOTHERS
    maybe = [one for one in sent if one.size == found.size]
    if found.size == content.size:
        maybe.append(Sent(found.size, "md5:", 0, ""))
    read = await read_back(bucket, key, found, maybe) if maybe else {}
    for like, seen in read.items():
        if await _holds(content, replace(like, checksum=seen)):
            return Whose.SAME
    return Whose.OURS if any(like.checksum == seen for like, seen in read.items()) else Whose.ANOTHERS


async def read_back(bucket: Bucket, key: str, found: StoredObject, likes: Collection[Sent]) -> dict[Sent, str]:
    """GET an object and return its checksum in the form of each of ``likes``; {} where it may not be read.

    Raises ``precondition_failed`` for one that is another by now.
    """
    digests = {like: Digest(like.checksum, like.part_size) for like in likes}
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
    return {like: digest.checksum for like, digest in digests.items()}


async def holds_bytes(bucket: Bucket, key: str, found: StoredObject, ours: Sent) -> bool:
    """Read an object back and tell whether it holds what was sent; one that may not be read is believed."""
    read = await read_back(bucket, key, found, [ours])
    return not read or read[ours] == ours.checksum


def _comparable(found: StoredObject, content: Hashed) -> bool:
    """Tell whether the ETag is the MD5 of a whole, or of as many parts as ours would be."""
    if found.opaque or found.size != content.size:
        return False
    parts = -(-content.size // content.part_size) if content.part_size else 0
    return is_md5(found.etag) or bool(parts and found.etag.endswith(f"-{parts}"))


async def _holds(content: Hashed, one: Sent) -> bool:
    """Tell whether the content is what was sent then."""
    if content.size != one.size or await content.checksum_like(one.checksum, one.part_size) != one.checksum:
        return False
    content.adopted(one.checksum, one.part_size)
    return True
