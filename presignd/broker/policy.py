"""What a token may do: ``decide`` turns a request into the one to sign, or into a refusal. Pure.

A signed request lies in the token's bucket and below its prefix, however the key is read; is one of the token's
operations; signs the size and checksum of its body, and no header that the token may not send; and expires within the
token's limits. tests/unit/broker/test_policy.py searches for requests that exceed this.
"""

from __future__ import annotations

import re
import unicodedata
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from functools import partial
from hashlib import sha256
from urllib.parse import unquote

from presignd.broker.config import TokenConfig
from presignd.presign import ON_AN_UPLOAD, GrantRequest, Operation
from presignd.s3.limits import CHECK_NAME, key_problem

CLOCK_SLACK = timedelta(minutes=5)
"""How far a signing date may be ahead of the broker's clock: the uploader dates its links."""

CONTENT_HEADERS = frozenset(
    {"content-type", "content-md5", "content-disposition", "content-encoding", "content-language"}
)
"""Headers that every token may have signed."""

MOST_IDS = 1000
"""Upload ids remembered for each token (some 400 KB). Beyond that, the id unused for longest is forgotten and can be
bound anew. Each token has a share of its own, so none can make the broker forget another's ids."""

_BODIES = frozenset({Operation.PUT, Operation.MULTIPART_PART})
_TYPED = frozenset({Operation.PUT, Operation.MULTIPART_CREATE})
"""Operations whose Content-Type becomes the object's."""

_OF_A_VERSION = (Operation.GET, Operation.HEAD)
"""Operations that may name a version. Its id cannot be guessed, and no operation lists ids."""

LINK = "link"
"""The operation of a token that may have stable links. It is none of S3's, so no grant is for it."""

RECEIVE = "receive"
"""The operation of a token that may have the list of what came in by an invitation; none of S3's either."""

_DECODINGS = 3
"""How many times proxies may decode or normalise a path."""

_ODD = re.compile(r"[^ -~]|%|\.;")
_UPLOAD_ID = re.compile(r"(?!\.+$)[A-Za-z0-9._~+=:-]{0,1024}")
"""Upload ids as S3 stores make them. The JuiceFS gateway joins an id to a path, where "../../b" is another folder.
Some of AWS's ids have consecutive dots; without a "/" they lead nowhere."""
_OVERLONG = re.compile(r"%(?:c0|e0%80|f0%80%80)%(ae|af)", re.IGNORECASE)


class RefusalCode(StrEnum):
    """The values of ``error.code`` for a refused request."""

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
    INVITATION_ENDED = "invitation_ended"
    NO_FILES_LEFT = "no_files_left"
    NO_BYTES_LEFT = "no_bytes_left"
    TICKET_REFUSED = "ticket_refused"
    PART_REFUSED = "part_refused"
    NOT_STORED = "not_stored"
    BAD_DIGEST = "bad_digest"
    LINK_REFUSED = "link_refused"
    LINK_TAKEN = "link_taken"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A refused request. The caller reads ``message``, so it holds only facts of the request."""

    code: RefusalCode
    message: str


def decide(token: TokenConfig, request: GrantRequest, now: datetime) -> GrantRequest | Refusal:
    """Return the request to sign, with its expiry cut to the token's limit, or a refusal.

    ``now`` is the broker's clock (UTC). Requests that are invalid for every token (an empty checksum, a part 0)
    are left to the presigner, which refuses them.
    """
    for rule in (_bucket, _key, _operation, _upload, _body, _headers):
        if refusal := rule(token, request):
            return refusal
    if request.date is not None and (refusal := _date(request.date, now)):
        return refusal
    limit = token.max_link_expires if request.operation is Operation.GET else token.max_put_expires
    return request if request.expires <= limit else replace(request, expires=limit)


def may_link(token: TokenConfig, bucket: str, key: str, version_id: str) -> Refusal | None:
    """Return why a token may not have a stable link to an object: it may link any object that it may ``get``."""
    request = GrantRequest(Operation.GET, bucket, key, 1, version_id=version_id)
    for rule in (_bucket, _key, _operation):
        if refusal := rule(token, request):
            return refusal
    return None if LINK in token.operations else _not_allowed(token, LINK)


def may_receive(token: TokenConfig) -> Refusal | None:
    """Return why a token may not list the files that came in: it needs ``get``, too, to fetch them."""
    lacking = next((name for name in (RECEIVE, Operation.GET) if name not in token.operations), None)
    return None if lacking is None else _not_allowed(token, lacking)


def lies_within(token: TokenConfig, bucket: str, prefix: str) -> bool:
    """Return whether a token may have all keys below ``prefix``."""
    return bucket == token.bucket and refuse_key(f"{prefix}x", bucket, token.prefix) is None


def _not_allowed(token: TokenConfig, operation: str) -> Refusal:
    may = ", ".join(token.operations)
    return Refusal(RefusalCode.OPERATION_REFUSED, f"this token may not {operation}; it may {may}")


def _bucket(token: TokenConfig, request: GrantRequest) -> Refusal | None:
    if request.bucket == token.bucket:
        return None
    return Refusal(RefusalCode.OUTSIDE_BUCKET, f"this token is for the bucket {token.bucket}")


def _key(token: TokenConfig, request: GrantRequest) -> Refusal | None:
    return refuse_key(request.key, token.bucket, token.prefix)


def refuse_key(key: str, bucket: str, prefix: str) -> Refusal | None:
    """Refuse a key that not every server stores as it is, or that could be read as outside ``prefix``."""
    if problem := key_problem(key):
        return Refusal(RefusalCode.KEY_REFUSED, f"the key can't be stored: {problem}")
    if not key.startswith(prefix) or _escapes(key, bucket, prefix):
        return Refusal(RefusalCode.OUTSIDE_PREFIX, f'keys must begin with "{prefix}" here, however they are read')
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


def _escapes(key: str, bucket: str, prefix: str) -> bool:
    """Return whether a proxy or a store that decodes or normalises paths could read the key outside the prefix."""
    if not _ODD.search(key):
        return False  # only one reading
    read = {(f"{bucket}/{key}", f"{bucket}/{prefix}")}
    for _ in range(_DECODINGS):
        read |= {(change(one), change(other)) for one, other in read for change in _READINGS}
    return any(_leaves(one, other) for one, other in read)


def _leaves(path: str, start: str) -> bool:
    r"""Return whether a path leaves ``start``: some servers read ``\`` as ``/``, NUL as the end, ``..;x`` as ``..``."""
    whole = path.replace("\\", "/").partition("\0")[0]
    return not whole.startswith(start) or ".." in {segment.partition(";")[0] for segment in whole.split("/")}


def _operation(token: TokenConfig, request: GrantRequest) -> Refusal | None:
    operation = request.operation
    if operation is Operation.DELETE:
        # A token that may write the check object may delete it. A broker signs no other DELETE.
        if request.key.rpartition("/")[2] == CHECK_NAME and {"put", "delete"} & set(token.operations):
            return None
        return Refusal(RefusalCode.OPERATION_REFUSED, f"only the check object ({CHECK_NAME}) can be deleted")
    if request.version_id and operation not in _OF_A_VERSION:
        return Refusal(
            RefusalCode.OPERATION_REFUSED, "a version can be named only to read it, or to delete a check object's"
        )
    if operation.partition(".")[0] in token.operations:
        return None
    return _not_allowed(token, operation)


def _upload(_token: TokenConfig, request: GrantRequest) -> Refusal | None:
    """Refuse an upload id that a store could read as a path. ``UploadOwners`` knows to which token an id belongs."""
    if request.operation not in ON_AN_UPLOAD or is_upload_id(request.upload_id):
        return None
    return Refusal(RefusalCode.UPLOAD_REFUSED, "this is no upload id that a store makes")


def is_upload_id(text: str) -> bool:
    """Return whether a store could have made this upload id; "" counts, which the presigner refuses."""
    return bool(_UPLOAD_ID.fullmatch(text))


def _body(token: TokenConfig, request: GrantRequest) -> Refusal | None:
    """Require the size, within the limit, and the checksum of an upload.

    A broker keeps no state, so it cannot add up the parts of an upload. In an honest upload all parts but the last
    have one size, so ``part_number * size`` never exceeds the whole; a part that does exceed it is refused. All
    parts that can be signed come to max_size * (1 + 1/2 + 1/3 + …) at most: under ten times for 10,000 parts.
    """
    if request.operation not in _BODIES:
        return None
    if request.size is None:
        return Refusal(RefusalCode.SIZE_REQUIRED, "an upload needs its size, in bytes")
    if not request.checksum:
        return Refusal(RefusalCode.CHECKSUM_REQUIRED, "an upload needs its checksum, e.g. md5:…, in hexadecimal")
    whole = request.size * (request.part_number if request.operation is Operation.MULTIPART_PART else 1)
    if token.max_size is not None and whole > token.max_size:
        return Refusal(RefusalCode.TOO_LARGE, f"an object of this token has {token.max_size} bytes at most")
    return None


def _headers(token: TokenConfig, request: GrantRequest) -> Refusal | None:
    refused = [name for name in request.headers if not may_bind(token, name.lower())]
    if refused:
        return Refusal(RefusalCode.HEADER_REFUSED, f"this token may not send the header {refused[0][:100]!r}")
    typed = request.content_type.strip() or "content-type" in {name.lower() for name in request.headers}
    if token.require_content_type and request.operation in _TYPED and not typed:
        return Refusal(RefusalCode.CONTENT_TYPE_REQUIRED, "an upload of this token needs its content_type")
    return None


def may_bind(token: TokenConfig, name: str) -> bool:
    """Return whether a token may have the header ``name`` (lower case) signed."""
    return name in CONTENT_HEADERS or any(
        name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern for pattern in token.headers
    )


def _date(date: datetime, now: datetime) -> Refusal | None:
    """Refuse a future date: some stores accept a request before its date, so it would outlive its limit."""
    if date.utcoffset() != timedelta(0):
        return Refusal(RefusalCode.DATE_REFUSED, "the date must be in UTC")
    if date > now + CLOCK_SLACK:
        return Refusal(RefusalCode.DATE_REFUSED, "the date lies ahead of the broker's clock")
    return None


# --- upload ids -------------------------------------------------------------------------------------


class UploadOwners:
    """Binds each upload id to the token and key that first use it.

    S3 names an upload by its id and its key, but not every store compares the two: the JuiceFS gateway lists, completes
    and aborts an upload under any key. The broker does not see how an id is made (the store answers the uploader), so
    the first grant for an id binds it. The bindings are in memory: after a restart, and at each of several brokers, the
    first request binds the id anew.
    """

    def __init__(self, most: int = MOST_IDS) -> None:
        self._most = most
        self._owners: dict[bytes, str] = {}
        self._keys: dict[str, OrderedDict[bytes, bytes]] = {}

    def claim(self, token: str, request: GrantRequest) -> bool:
        """Return whether the upload id in ``request`` belongs to ``token`` and to that bucket and key."""
        upload, key = _digest(request.upload_id), _digest(f"{request.bucket}/{request.key}")
        if self._owners.setdefault(upload, token) != token:
            return False
        own = self._keys.setdefault(token, OrderedDict())
        bound = own.setdefault(upload, key)
        own.move_to_end(upload)
        if len(own) > self._most:
            forgotten, _ = own.popitem(last=False)
            del self._owners[forgotten]
        return bound == key


def _digest(text: str) -> bytes:
    """Return a digest of an id or a key, which may have a thousand bytes."""
    return sha256(text.encode("utf-8", "surrogatepass")).digest()
