"""Multipart uploads: the parts of a file, their ETag, the XML that completes an upload. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from presignd.s3.checksums import combined
from presignd.s3.limits import FEW_PARTS, MAX_PARTS

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class PartRange:
    """One part of a file: its number (from 1), its offset, and its size in bytes."""

    number: int
    offset: int
    size: int


def part_size_for(size: int, configured: int, most_parts: int = MAX_PARTS) -> int:
    """Return the part size in bytes for a file: the configured one, or a larger one in whole MiB if it needs one."""
    if configured * most_parts >= size:
        return configured
    needed = -(-size // most_parts)
    return -(-needed // MIB) * MIB


GROWTH = 1250
"""Parts of equal size at the beginning of a stream. A later part is a 1,250th of what came before: from 5 MiB, 10,000
parts then hold 6.7 TiB, and the part at which 5 TiB (``LARGEST_OBJECT``) are full has 4.1 GiB (``LARGEST_PART`` is 5).
Cloudflare's R2 wants parts of equal size, so these are as many as leave room for both."""


def next_part_size(before: int, configured: int) -> int:
    """Return the part size in bytes for the next part of a stream of unknown size, ``before`` bytes after its start."""
    return max(configured, -(-before // (GROWTH * MIB)) * MIB)


def in_order(parts: Sequence[PartRange]) -> list[PartRange]:
    """Return the parts in the order to send them: the last one first if there are more than ``FEW_PARTS``.

    A store that refuses its number then does so before other parts are sent.
    """
    return [*parts[-1:], *parts[:-1]] if len(parts) > FEW_PARTS else [*parts]


def part_ranges(size: int, part_size: int) -> Iterator[PartRange]:
    """Divide ``size`` bytes into parts of ``part_size``; the last one may be smaller."""
    for number, offset in enumerate(range(0, size, part_size), start=1):
        yield PartRange(number, offset, min(part_size, size - offset))


def etag_of_parts(md5s: Sequence[str]) -> str:
    """Return the ETag of a multipart object: the MD5 of its parts' MD5s and the number of parts (``md5-N``)."""
    digest = hashlib.md5(b"".join(bytes.fromhex(md5) for md5 in md5s), usedforsecurity=False)
    return f"{digest.hexdigest()}-{len(md5s)}"


def checksum_of_parts(algorithm: str, parts: Sequence[tuple[str, int]]) -> str:
    """Return the checksum of an object in parts, from the digest (hex) and the size in bytes of each, in order.

    For MD5 it is that of the ETag (``md5:…-N``); CRCs combine to the CRC of the whole (S3's FULL_OBJECT).
    """
    if algorithm == "md5":
        return f"md5:{etag_of_parts([digest for digest, _ in parts])}"
    return f"{algorithm}:{combined(algorithm, parts)}"


def complete_body(etags: Sequence[tuple[int, str]]) -> bytes:
    """Return the XML that completes an upload, with its parts in ascending order (S3 API, CompleteMultipartUpload)."""
    rows = "".join(
        f"<Part><PartNumber>{number}</PartNumber><ETag>&quot;{escape(etag)}&quot;</ETag></Part>"
        for number, etag in sorted(etags)
    )
    space = "http://s3.amazonaws.com/doc/2006-03-01/"
    return f'<CompleteMultipartUpload xmlns="{space}">{rows}</CompleteMultipartUpload>'.encode()
