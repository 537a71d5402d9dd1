"""Which parts a large file is sent in, and what their ETag must come to. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

MOST_PARTS = 10_000
"""S3 user guide, "Amazon S3 multipart upload limits"."""

FEW_PARTS = 1_000
"""What Swift and Scaleway take at most."""

LARGEST_OBJECT = 5 << 40
"""Bytes: 5 TiB (as above)."""

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class PartRange:
    """One part to be sent: its number (from 1), where it begins, and its size in bytes."""

    number: int
    offset: int
    size: int


def part_size_for(size: int, configured: int, most_parts: int = MOST_PARTS) -> int:
    """Return the part size in bytes for a file: the configured one, or what so many parts need, in whole MiB."""
    if configured * most_parts >= size:
        return configured
    needed = -(-size // most_parts)
    return -(-needed // MIB) * MIB


def in_order(cut: Sequence[PartRange]) -> list[PartRange]:
    """Return the pieces as they are to be sent: of more than some stores take, the last one first.

    So a store that refuses its number does it before anything else was sent.
    """
    return [*cut[-1:], *cut[:-1]] if len(cut) > FEW_PARTS else [*cut]


def part_ranges(size: int, part_size: int) -> Iterator[PartRange]:
    """Cut ``size`` bytes into parts of ``part_size``; the last one may be smaller."""
    for number, offset in enumerate(range(0, size, part_size), start=1):
        yield PartRange(number, offset, min(part_size, size - offset))


def etag_of_parts(md5s: Sequence[str]) -> str:
    """Return the ETag of a multipart object: the MD5 of its parts' MD5s, and their number (``md5-N``)."""
    digest = hashlib.md5(b"".join(bytes.fromhex(md5) for md5 in md5s), usedforsecurity=False)
    return f"{digest.hexdigest()}-{len(md5s)}"


def complete_body(etags: Sequence[tuple[int, str]]) -> bytes:
    """Return the XML that completes an upload: parts ascending by number (S3 API, CompleteMultipartUpload)."""
    rows = "".join(
        f"<Part><PartNumber>{number}</PartNumber><ETag>&quot;{escape(etag)}&quot;</ETag></Part>"
        for number, etag in sorted(etags)
    )
    space = "http://s3.amazonaws.com/doc/2006-03-01/"
    return f'<CompleteMultipartUpload xmlns="{space}">{rows}</CompleteMultipartUpload>'.encode()
