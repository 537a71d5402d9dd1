"""How stores compute ETags; FaultyS3 does so on demand: ``store.etags = ETAGS["r2"]``."""

from __future__ import annotations

import base64
import hashlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

_NUMBERS = itertools.count(1)


def md5(body: bytes) -> str:
    """Return the MD5 in hex."""
    return hashlib.md5(body, usedforsecurity=False).hexdigest()


def hex_name(_: bytes = b"") -> str:
    """Return a new name that looks like an MD5."""
    return md5(b"name %d" % next(_NUMBERS))


def odd_name(_: bytes = b"") -> str:
    """Return a new name as some stores make them: no hex, and what XML and HTTP have to escape."""
    return base64.b64encode(b"<&>%d" % next(_NUMBERS)).decode() + "&a"


def of_parts(parts: list[bytes]) -> str:
    """Return S3's ETag of an object in parts."""
    return f"{md5(b''.join(bytes.fromhex(md5(part)) for part in parts))}-{len(parts)}"


@dataclass(frozen=True)
class Etags:
    """How a store names an object, a part, an object made of parts (None: not at all); ``looks``: in HEAD and GET too.

    ``tell`` is whether they are made of MD5s as S3's are.
    """

    whole: Callable[[bytes], str] | None = md5
    part: Callable[[bytes], str] | None = md5
    in_parts: Callable[[list[bytes]], str] | None = of_parts
    looks: bool = True
    headers: dict[str, str] = field(default_factory=dict)


def upper(body: bytes) -> str:
    """Return the MD5 in capitals."""
    return md5(body).upper()


def named_in_parts(parts: list[bytes]) -> str:
    """Return a new name with the number of parts."""
    return f"{hex_name()}-{len(parts)}"


ETAGS = {
    "r2": Etags(in_parts=named_in_parts),
    "oss": Etags(upper, upper, lambda parts: named_in_parts(parts).upper()),
    "of any form": Etags(odd_name, odd_name, lambda _: odd_name()),
    "that look like an md5": Etags(hex_name, hex_name, lambda _: hex_name()),
    "none": Etags(None, None, None),
    "none when looked for": Etags(looks=False),
    "kms": Etags(hex_name, hex_name, named_in_parts, headers={"x-amz-server-side-encryption": "aws:kms"}),
}
"""Cloudflare R2; Alibaba OSS; GCS and others; a store that knows none; JuiceFS without --keep-etag; SSE-KMS."""
