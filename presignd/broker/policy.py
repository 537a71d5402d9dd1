"""What a token may have: one function from a request to the one that may be signed, or to why not. Pure.

Whatever is signed lies in the token's bucket and below its prefix, in every way that the key could be read;
is one of its operations; binds the size and checksum of its body, and no header that the token may not
bind; and dies within its limits. tests/unit/broker/test_policy.py tries to find a request that gets more.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from functools import partial
from urllib.parse import unquote

from presignd.broker.models import TokenConfig
from presignd.presign import ON_AN_UPLOAD, GrantRequest, Operation
from presignd.s3.keys import CHECK_NAME, key_problem

CLOCK_SLACK = timedelta(minutes=5)
"""How far ahead of the broker's clock a signing date may lie: a link is dated by whoever asks for it."""

CONTENT_HEADERS = frozenset(
    {"content-type", "content-md5", "content-disposition", "content-encoding", "content-language"}
)
"""Headers that every token may bind."""

_BODIES = frozenset({Operation.PUT, Operation.MULTIPART_PART})
_TYPED = frozenset({Operation.PUT, Operation.MULTIPART_CREATE})
"""Operations whose Content-Type becomes the object's."""

_OF_A_VERSION = (Operation.GET, Operation.HEAD)
"""What may name a version, by an id that nobody guesses and no operation lists: a link opens what it was made for."""

_DECODINGS = 3
"""How often a chain of careless proxies is taken to decode or normalise a path."""

_ODD = re.compile(r"[^ -~]|%|\.;")
_UPLOAD_ID = re.compile(r"(?!\.+$)[A-Za-z0-9._~+=:-]{0,1024}")
"""What S3 stores make upload ids of. The JuiceFS gateway joins an id to a path: "../../b" there is another folder.
Dots beside each other stand in some of AWS's ids, and climb nowhere without a "/"."""
_OVERLONG = re.compile(r"%(?:c0|e0%80|f0%80%80)%(ae|af)", re.IGNORECASE)


class RefusalCode(StrEnum):
    """Why a request is refused: the fixed words of an answer's ``error.code``."""

    OUTSIDE_BUCKET = "outside_bucket"
    OUTSIDE_PREFIX = "outside_prefix"
    KEY_REFUSED = "key_refused"
    OPERATION_REFUSED = "operation_refused"
    UPLOAD_REFUSED = "upload_refused"
    HEADER_REFUSED = "header_refused"
    SIZE_REQUIRED = "size_required"
    CHECKSUM_REQUIRED = "checksum_required"
    CONTENT_TYPE_REQUIRED = "content_type_required"
    TOO_LARGE = "too_large"
    DATE_REFUSED = "date_refused"
    UNKNOWN_FIELD = "unknown_field"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a token may not have a grant; ``message`` is for whoever asked, and tells only of the request."""

    code: RefusalCode
    message: str


def decide(token: TokenConfig, request: GrantRequest, now: datetime) -> GrantRequest | Refusal:
    """Return ``request`` as it may be signed, its expiry cut to the token's limit, or why it may not.

    ``now`` is the broker's clock (UTC). What makes no sense whoever asks (an empty checksum, a part 0) is
    left to the presigner, which refuses it.
    """
    for rule in (_bucket, _key, _operation, _upload, _body, _headers):
        if refusal := rule(token, request):
            return refusal
    if request.date is not None and (refusal := _date(request.date, now)):
        return refusal
    limit = token.max_link_expires if request.operation is Operation.GET else token.max_put_expires
    return request if request.expires <= limit else replace(request, expires=limit)


def _bucket(token: TokenConfig, request: GrantRequest) -> Refusal | None:
    if request.bucket == token.bucket:
        return None
    return Refusal(RefusalCode.OUTSIDE_BUCKET, f"this token is for the bucket {token.bucket}")


def _key(token: TokenConfig, request: GrantRequest) -> Refusal | None:
    if problem := key_problem(request.key):
        return Refusal(RefusalCode.KEY_REFUSED, f"the key can't be stored: {problem}")
    if not request.key.startswith(token.prefix) or _escapes(request.key, token):
        return Refusal(
            RefusalCode.OUTSIDE_PREFIX, f'keys of this token begin with "{token.prefix}", however they are read'
        )
    return None


def _unquote(path: str) -> str:
    return unquote(_OVERLONG.sub(lambda match: "./"[match[1].lower() == "af"], path))


_READINGS: tuple[Callable[[str], str], ...] = (
    _unquote,
    partial(unicodedata.normalize, "NFC"),
    partial(unicodedata.normalize, "NFD"),
    partial(unicodedata.normalize, "NFKC"),
    partial(unicodedata.normalize, "NFKD"),
)


def _escapes(key: str, token: TokenConfig) -> bool:
    """Tell whether a proxy or a store that decodes, folds or normalises paths could read the key elsewhere."""
    if not _ODD.search(key):
        return False  # there is one way to read it
    read = {(f"{token.bucket}/{key}", f"{token.bucket}/{token.prefix}")}
    for _ in range(_DECODINGS):
        read |= {(change(one), change(other)) for one, other in read for change in _READINGS}
    return any(_leaves(one, other) for one, other in read)


def _leaves(path: str, start: str) -> bool:
    r"""Tell whether a path begins elsewhere, or climbs: ``\`` may be a ``/``, NUL an end, ``..;x`` a ``..``."""
    whole = path.replace("\\", "/").partition("\0")[0]
    return not whole.startswith(start) or ".." in {segment.partition(";")[0] for segment in whole.split("/")}


def _operation(token: TokenConfig, request: GrantRequest) -> Refusal | None:
    operation = request.operation
    if operation is Operation.DELETE:
        # Who may write the check object may remove it; nothing else is ever deleted through a broker.
        if request.key.rpartition("/")[2] == CHECK_NAME and {"put", "delete"} & set(token.operations):
            return None
        return Refusal(RefusalCode.OPERATION_REFUSED, f"only the check object ({CHECK_NAME}) can be deleted")
    if request.version_id and operation not in _OF_A_VERSION:
        return Refusal(
            RefusalCode.OPERATION_REFUSED, "a version can be named only to read it, or to delete a check object's"
        )
    if operation.partition(".")[0] in token.operations:
        return None
    return Refusal(
        RefusalCode.OPERATION_REFUSED, f"this token may not {operation}; it may {', '.join(token.operations)}"
    )


def _upload(_token: TokenConfig, request: GrantRequest) -> Refusal | None:
    """Refuse an upload id that a store could read as a path. Whose it is, ``uploads`` knows."""
    if request.operation not in ON_AN_UPLOAD or _UPLOAD_ID.fullmatch(request.upload_id):
        return None
    return Refusal(RefusalCode.UPLOAD_REFUSED, "this is no upload id as stores make them")


def _body(token: TokenConfig, request: GrantRequest) -> Refusal | None:
    """Have what is uploaded bound: its size, within the limit, and its checksum.

    A broker keeps no state, so it can't add up the parts of an upload. Parts before the last have one size
    in an honest one, so ``part_number * size`` never exceeds the whole: what does is refused, and all parts
    that can be signed come to max_size * (1 + 1/2 + 1/3 + …) at most, under ten times for 10,000 parts.
    """
    if request.operation not in _BODIES:
        return None
    if request.size is None:
        return Refusal(RefusalCode.SIZE_REQUIRED, "an upload needs its size, in bytes")
    if not request.checksum:
        return Refusal(RefusalCode.CHECKSUM_REQUIRED, "an upload needs its checksum, md5:… or sha256:…, in hexadecimal")
    whole = request.size * (request.part_number if request.operation is Operation.MULTIPART_PART else 1)
    if token.max_size is not None and whole > token.max_size:
        return Refusal(RefusalCode.TOO_LARGE, f"an object of this token has {token.max_size} bytes at most")
    return None


def _headers(token: TokenConfig, request: GrantRequest) -> Refusal | None:
    refused = [name for name in request.headers if not may_bind(token, name.lower())]
    if refused:
        return Refusal(RefusalCode.HEADER_REFUSED, f"this token may not bind the header {refused[0][:100]!r}")
    typed = request.content_type.strip() or "content-type" in {name.lower() for name in request.headers}
    if token.require_content_type and request.operation in _TYPED and not typed:
        return Refusal(RefusalCode.CONTENT_TYPE_REQUIRED, "an upload of this token needs its content_type")
    return None


def may_bind(token: TokenConfig, name: str) -> bool:
    """Tell whether a token may have a header of this (lower-case) name signed."""
    return name in CONTENT_HEADERS or any(
        name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern for pattern in token.headers
    )


def _date(date: datetime, now: datetime) -> Refusal | None:
    """Refuse a date ahead: some stores take a request before its date, and it would outlive its limit."""
    if date.utcoffset() != timedelta(0):
        return Refusal(RefusalCode.DATE_REFUSED, "the date must be in UTC")
    if date > now + CLOCK_SLACK:
        return Refusal(RefusalCode.DATE_REFUSED, "the date lies ahead of the broker's clock")
    return None
