"""Read a store's responses, and turn its errors into faults. Pure."""

from __future__ import annotations

import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import lru_cache
from html import unescape

from presignd.errors import Fault, fault
from presignd.s3.xml import first_text, rows

ENCRYPTED = ("aws:kms", "aws:kms:dsse")
"""Server-side encryptions with which an ETag is not an MD5 (S3 API, "Object", ETag)."""

SKEW_LIMIT = 900.0
"""Clock difference in seconds that S3 tolerates (RequestTimeTooSkewed)."""

LONGEST_TEXT = 1024
"""Characters of an element's text that are kept."""

LONGEST_RETRY_AFTER = 300.0
"""Longest Retry-After in seconds that is obeyed: after that, one small probe may be sent."""

S3_CODES: dict[str, str] = {
    "SignatureDoesNotMatch": "signature_mismatch",
    "InvalidAccessKeyId": "invalid_access_key",
    "ExpiredToken": "expired_credentials",
    "InvalidToken": "expired_credentials",
    "TokenRefreshRequired": "expired_credentials",
    "NoSuchBucket": "no_such_bucket",
    "RequestTimeTooSkewed": "clock_skew",
    "AccessDenied": "access_denied",
    "AllAccessDisabled": "access_denied",
    "AccountProblem": "account_suspended",
    "UserSuspended": "account_suspended",
    "InvalidTokenId": "expired_credentials",
    "InvalidSecurity": "invalid_access_key",
    "SlowDown": "slow_down",
    "SlowDownRead": "slow_down",
    "SlowDownWrite": "slow_down",
    "TooManyRequests": "slow_down",
    "RequestLimitExceeded": "slow_down",
    "RequestThrottled": "slow_down",
    "Throttling": "slow_down",
    "ThrottlingException": "slow_down",
    "BandwidthLimitExceeded": "slow_down",
    "ServiceUnavailable": "slow_down",
    "ErrTooManyRequest": "slow_down",
    "ErrRequestBytesExceed": "slow_down",
    "XMinioServerNotInitialized": "slow_down",
    "InternalError": "server_error",
    "NotImplemented": "not_implemented",
    "XMinioStorageFull": "store_full",
    "XMinioAdminBucketQuotaExceeded": "store_full",
    "InsufficientStorage": "store_full",
    "QuotaExceeded": "store_full",
    "BadDigest": "bad_digest",
    "InvalidDigest": "bad_digest",
    "XAmzContentChecksumMismatch": "bad_digest",
    "XAmzContentSHA256Mismatch": "bad_digest",
    "IncompleteBody": "bad_digest",
    "RequestTimeout": "timeout",
    "EntityTooLarge": "too_large",
    "MaxMessageLengthExceeded": "too_large",
    "KeyTooLong": "key_refused",
    "KeyTooLongError": "key_refused",
    "InvalidObjectName": "key_refused",
    "XMinioInvalidObjectName": "key_refused",
    "XMinioInvalidResourceName": "key_refused",
    "XMinioParentIsObject": "key_refused",
    "XMinioObjectExistsAsDirectory": "key_refused",
    "ExistingObjectIsDirectory": "key_refused",
    "ExistingObjectIsFile": "key_refused",
    "InvalidURI": "key_refused",
    "PermanentRedirect": "redirected",
    "TemporaryRedirect": "redirected",
    "Redirect": "redirected",
    "InvalidRegion": "wrong_region",
    "PreconditionFailed": "precondition_failed",
    "ConditionalRequestConflict": "precondition_failed",
    "OperationAborted": "precondition_failed",
    "NoSuchKey": "missing_object",
    "InvalidPart": "upload_lost",
    "NoSuchUpload": "upload_lost",
}
"""Our codes for S3's: from the API reference's list of error codes, MinIO (XMinio…, SlowDownRead), SeaweedFS (Err…,
Existing…), Ceph (UserSuspended), StorageGRID (KeyTooLong), Google's XML API (InvalidSecurity), and the AWS SDKs' list
of throttling codes."""

NO_ROOM = re.compile(r"\bexceed(s|ed|ing)?\b.{0,40}\bquota\b|\b(quota|cap)\b.{0,40}\bexceeded\b", re.IGNORECASE)
"""Messages for a full store with a code that means something else elsewhere: Swift's
``EntityTooLarge (Upload exceeds quota.)``, Backblaze's ``AccessDenied (… cap exceeded …)``."""

STATUSES: dict[int, str] = {
    401: "access_denied",
    403: "access_denied",
    404: "no_such_bucket",
    407: "proxy",
    408: "timeout",
    412: "precondition_failed",
    413: "too_large",
    429: "slow_down",
    500: "server_error",
    501: "not_implemented",
    503: "server_error",
    507: "store_full",
}
"""Our codes for the statuses of refusals whose S3 code, if any, is not in ``S3_CODES``."""


def _by_status(response: Response) -> str:
    """Return our code for a refusal's status; three depend on more than the status."""
    status = response.status
    if status == 404 and not response.code and response.body:  # noqa: PLR2004 - the answer of another server
        return "bad_response"
    if status == 413 and not response.code:  # noqa: PLR2004 - a proxy's own page
        return "body_limit"
    if status == 503 and response.retry_after is not None:  # noqa: PLR2004
        return "slow_down"
    return STATUSES.get(status) or ("server_error" if status >= 500 else "rejected")  # noqa: PLR2004 - 5xx


NOT_ABOUT_TIME = frozenset(
    {
        *("account_suspended", "bad_digest", "invalid_access_key", "key_refused", "no_such_bucket"),
        *("not_implemented", "slow_down", "store_full", "too_large"),
    }
)
"""Codes that a refusal keeps even if the grant has expired or the clocks differ."""


@dataclass(slots=True)  # not frozen: each file has one, and that takes three times as long to make
class Response:
    """A response: status, headers (lower-case names), and up to 64 KiB of the body."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(default=b"", repr=False)

    @property
    def code(self) -> str:
        """The S3 error code in the body; "" if there is none."""
        return self.element("Code")

    def element(self, name: str) -> str:
        """Return the text of the first XML element ``name``; "" if there is none.

        A body that the parser refuses (no XML, or a key with a control character) is searched with a pattern.
        """
        if text := first_text(self.body, name):
            return text[:LONGEST_TEXT]
        found = re.search(rb"<%s>([^<]{0,%d})</%s>" % (name.encode(), LONGEST_TEXT, name.encode()), self.body)
        return unescape(found.group(1).decode("utf-8", "replace")).strip() if found else ""

    def elements(self, name: str) -> list[dict[str, str]]:
        """Return the texts of the children of each XML element ``name``, as far as the body was read."""
        return rows(self.body, name)

    @property
    def date(self) -> datetime | None:
        """The Date in UTC; None if it is missing or not a date."""
        return _read_date(self.headers.get("date", ""))

    @property
    def etag(self) -> str:
        """The ETag without quotes."""
        return bare(self.headers.get("etag", ""))

    @property
    def opaque_etag(self) -> bool:
        """Whether the ETag is not made of MD5s, as with SSE-KMS and SSE-C."""
        customer = "x-amz-server-side-encryption-customer-algorithm" in self.headers
        return customer or self.headers.get("x-amz-server-side-encryption", "") in ENCRYPTED

    @property
    def checksums(self) -> tuple[str, ...]:
        """The object's own checksums, as ``sha256:<hex>``, or of parts ``sha256:<hex>-N`` (S3 API, HeadObject)."""
        found = list[str]()
        for name, value in self.headers.items():
            if name.startswith(_CHECKSUM) and (digits := _in_hex(value)):
                found.append(f"{name.removeprefix(_CHECKSUM)}:{digits}")
        return tuple(sorted(found))

    def checksum(self, algorithm: str) -> str:
        """Return the object's own checksum by one algorithm, as in ``checksums``; "" if it is missing."""
        digits = _in_hex(self.headers.get(_CHECKSUM + algorithm, ""))
        return digits and f"{algorithm}:{digits}"

    def checksum_in_body(self, algorithm: str) -> str:
        """Return the checksum of the whole object in the XML that answers a Complete; "" for none."""
        value = _in_hex(self.element(f"Checksum{algorithm.upper()}"))
        return value and f"{algorithm}:{value}"

    @property
    def retry_after(self) -> float | None:
        """Retry-After in seconds, also from a date, relative to this response's Date; None if absent."""
        value = self.headers.get("retry-after", "").strip()
        if re.fullmatch("[0-9]+", value):
            return min(float(value[:9]), LONGEST_RETRY_AFTER)
        until = _read_date(value)
        wanted = (until - self.date).total_seconds() if until and self.date else None
        return None if wanted is None else min(max(0.0, wanted), LONGEST_RETRY_AFTER)


_YEARS = range(1970, 9000)
"""Years that are accepted, so that later dates stay within the calendar."""


@lru_cache(maxsize=16)  # in a burst hundreds of responses have the same Date
def _read_date(value: str) -> datetime | None:
    """Return an HTTP date in UTC; None for anything else."""
    try:
        found = parsedate_to_datetime(value)
        found = found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return found if found.year in _YEARS else None


_CHECKSUM = "x-amz-checksum-"


def _in_hex(value: str) -> str:
    """Return a checksum header's value, base64 and for parts ``-N``, in hex; "" for anything else."""
    encoded, dash, parts = value.strip().partition("-")
    try:
        digest = binascii.a2b_base64(encoded, strict_mode=True).hex()
    except ValueError:
        return ""
    return digest + dash + parts if digest and (not dash or parts.isdecimal()) else ""


def bare(etag: str) -> str:
    """Return an ETag without its quotes."""
    return etag.removeprefix("W/").strip('"')


def is_md5(etag: str) -> bool:
    """Return whether an ETag has the form of an MD5 (S3 API, "Object": not so under SSE-KMS, SSE-C, multipart)."""
    return re.fullmatch(r"[0-9a-fA-F]{32}", etag) is not None


def fault_of(response: Response, *, expires_at: datetime, now: datetime, clock_offset: float | None) -> Fault:
    """Return the fault for a refusal.

    Expiry follows from the grant's own end, never from the status: servers answer 400 or 403 with different codes.
    """
    detail = _detail(response)
    ours = _no_room(response) or S3_CODES.get(response.code) or _by_status(response)
    if response.status in (400, 403) and ours not in NOT_ABOUT_TIME:
        if now >= expires_at - timedelta(seconds=1):
            return fault("expired_grant", detail)
        if _skewed(response, clock_offset) and ours != "signature_mismatch":
            return fault("clock_skew", f"{clock_offset:+.0f} s")
    code = _elsewhere(response) or ours
    if code in ("wrong_region", "redirected") and (region := _region_named(response)):
        detail = f"{detail}; it names the region {region}"
    return fault(code, detail, retry_after=response.retry_after)


def _elsewhere(response: Response) -> str:
    """Return the code of a response that names another region or host; "" for any other.

    MinIO names its region in every refusal, so there the message must mention the region.
    """
    redirect = 300 <= response.status < 400  # noqa: PLR2004 - 3xx
    if response.element("Region") and (redirect or "region" in response.element("Message").lower()):
        return "wrong_region"
    return "redirected" if redirect else ""


def _region_named(response: Response) -> str:
    """Return the bucket's region as the response names it; "" if it names none."""
    named = response.headers.get("x-amz-bucket-region") or response.element("Region")
    return named if re.fullmatch(r"[a-z0-9-]{1,40}", named) else ""


def _no_room(response: Response) -> str:
    """Return "store_full" if the message of a refusal says so; else ""."""
    return "store_full" if response.status in (400, 403, 413) and NO_ROOM.search(response.element("Message")) else ""


def _skewed(response: Response, offset: float | None) -> bool:
    """Return whether the clocks cause a refusal: more than S3 allows, or enough that the store says so."""
    if offset is None:
        return False
    says_time = re.search(rb"expired|not (yet )?valid|not valid yet|too large|skew", response.body, re.IGNORECASE)
    return abs(offset) >= (30.0 if says_time else SKEW_LIMIT)


def _detail(response: Response) -> str:
    """Return status, S3 code, the header concerned, and the message unless it may hold a signature."""
    message = response.element("Message")[:200]
    shown = message if message and not re.search(r"[?&=]|X-Amz", message, re.IGNORECASE) else ""
    header = response.element("Header")[:100]
    return " ".join(part for part in (str(response.status), response.code, header, shown and f"({shown})") if part)
