"""The presigner that signs with keys in this process."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from datetime import datetime, timedelta
from functools import lru_cache

from presignd.config import PresignConfig
from presignd.errors import Fault, fault
from presignd.presign import ON_AN_UPLOAD, Grant, GrantRequest, Operation
from presignd.presign.credentials import Credentials, CredentialSource
from presignd.presign.region import FALLBACK_REGION, RegionFinder, Send, region_in_host
from presignd.s3.checksums import HEADERS, header_of
from presignd.s3.limits import MAX_EXPIRES, MAX_PARTS
from presignd.s3.sigv4 import choose_addressing, presign, target
from presignd.telemetry import metrics

LOCATION_EXPIRES = 300
"""Lifetime in seconds of the request for a bucket's region, which is sent at once."""

METHODS = {
    Operation.PUT: "PUT",
    Operation.GET: "GET",
    Operation.HEAD: "HEAD",
    Operation.DELETE: "DELETE",
    Operation.MULTIPART_CREATE: "POST",
    Operation.MULTIPART_PART: "PUT",
    Operation.MULTIPART_LIST: "GET",
    Operation.MULTIPART_COMPLETE: "POST",
    Operation.MULTIPART_ABORT: "DELETE",
}
"""The HTTP method of each operation (S3 API reference)."""

_CHECKSUM_FIELDS = {
    "checksum_algorithm": (Operation.MULTIPART_CREATE, ("CRC64NVME", "CRC32C", "SHA256")),
    "checksum_type": (Operation.MULTIPART_CREATE, ("FULL_OBJECT", "COMPOSITE")),
    "checksum_mode": (Operation.HEAD, ("ENABLED",)),
}
"""For each field about checksums: its operation, and its values (S3 API, CreateMultipartUpload and HeadObject)."""
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*")
_OURS = frozenset({"host", "authorization", "transfer-encoding", "x-amz-content-sha256", "x-amz-date"})


class LocalPresigner:
    """The ``Presigner`` with keys in this process.

    ``region_of`` returns a bucket's region; a ``Fault`` that it raises is the result of each request for that bucket.
    ``clock`` returns the time in UTC.
    """

    links: None = None

    def __init__(
        self,
        config: PresignConfig,
        *,
        region_of: Callable[[str], Awaitable[str]],
        credentials: CredentialSource,
        clock: Callable[[], datetime],
        forget_region: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._config = config
        self._region_of = region_of
        self.credentials = credentials
        self._clock = clock
        self._forget_region = forget_region

    async def grant(self, requests: Sequence[GrantRequest]) -> list[Grant | Exception]:
        """Sign ``requests``; raise ``PresignerFault`` if there are no credentials."""
        credentials = await self.credentials.get()
        regions = dict[str, str | Fault]()
        for each in requests:
            if each.bucket not in regions:
                try:
                    regions[each.bucket] = await self._region_of(each.bucket) if each.bucket else ""
                except Fault as problem:
                    regions[each.bucket] = problem
        now = self._clock()
        answers = [self._answer(each, credentials, regions[each.bucket], now) for each in requests]
        count(requests, answers)
        return answers

    def now(self) -> datetime:
        """Return this machine's time (UTC)."""
        return self._clock()

    async def prefix(self) -> str:
        """Return "": the store alone limits the keys."""
        return ""

    async def checksums(self) -> Collection[str]:
        """Return every algorithm for which S3 has a header."""
        return tuple(HEADERS)

    async def credential_expiry(self) -> datetime | None:
        """Return when the signing credential expires (UTC), None for never."""
        return (await self.credentials.get()).expires_at

    def look_again(self, bucket: str) -> None:
        """Look up credentials and the bucket's region again at the next request."""
        self.credentials.renew_now()
        self._forget_region(bucket)

    async def close(self) -> None:
        """Do nothing: there are no connections."""

    async def location_grant(self, bucket: str) -> Grant:
        """Sign the request for ``bucket``'s region, which ``RegionFinder`` sends."""
        credentials = await self.credentials.get()
        asked = GrantRequest(Operation.GET, bucket, "", LOCATION_EXPIRES)
        return self._sign(asked, credentials, FALLBACK_REGION, self._clock(), {"location": ""})

    async def link_target(self, request: GrantRequest, query: Mapping[str, str]) -> Grant:
        """Sign the target of a stable link: ``query`` overrides headers of the store's answer. Raises a ``Fault``."""
        credentials = await self.credentials.get()
        region = await self._region_of(request.bucket)
        return self._sign(request, credentials, region, self._clock(), query)

    def public_origin(self, bucket: str) -> str:
        """Return the origin (``scheme://host[:port]``) of links to ``bucket``."""
        endpoint = self._config.public_endpoint or self._config.endpoint
        url = target(endpoint, bucket, "", choose_addressing(self._config.addressing, endpoint, bucket))
        return "/".join(url.split("/", 3)[:3])

    def _answer(
        self, request: GrantRequest, credentials: Credentials, region: str | Fault, now: datetime
    ) -> Grant | Exception:
        try:
            if isinstance(region, Fault):
                return region
            refuse_incomplete(request)
            return self._sign(request, credentials, region, now)
        except Fault as problem:
            return problem
        except UnicodeEncodeError:
            return fault("key_refused", "the key or a header is not UTF-8")

    def _sign(
        self,
        request: GrantRequest,
        credentials: Credentials,
        region: str,
        now: datetime,
        more: Mapping[str, str] | None = None,
    ) -> Grant:
        """Sign a request with its own query and ``more``. Raises its ``Fault``, or ``UnicodeEncodeError``."""
        headers, query = bound_headers(request), own_query(request)
        if more:
            query |= more
        date = (request.date or now).replace(microsecond=0)
        expires = real_lifetime(request.expires, date, credentials.expires_at)
        endpoint = self._config.endpoint
        if request.public and self._config.public_endpoint:
            endpoint = self._config.public_endpoint
        method = METHODS[request.operation]
        url = presign(
            method,
            endpoint,
            request.bucket,
            request.key,
            keys=credentials.keys,
            region=region,
            date=date,
            expires=expires,
            query=query,
            headers=headers,
            addressing=choose_addressing(self._config.addressing, endpoint, request.bucket),
        )
        return Grant(method, url, headers, date + timedelta(seconds=expires), date)


def count(requests: Sequence[GrantRequest], answers: Sequence[Grant | Exception]) -> None:
    """Count the results in the metric."""
    found: dict[tuple[Operation, str], int] = {}
    for request, answer in zip(requests, answers, strict=True):
        kind = request.operation, "granted" if isinstance(answer, Grant) else "refused"
        found[kind] = found.get(kind, 0) + 1
    for kind, number in found.items():
        metrics.labelled(metrics.PRESIGN_REQUESTS, *kind).inc(number)


def local_presigner(config: PresignConfig, *, send: Send, clock: Callable[[], datetime]) -> LocalPresigner:
    """Build the presigner of ``config`` with its credentials and regions.

    ``send`` is ``StoreClient.send``. It sends only the request for a region that is neither in ``config.region`` nor
    in the endpoint's name. Raises ``UsageError`` for half a credential in ``config``.
    """

    async def sign(bucket: str) -> Grant:
        return await presigner.location_grant(bucket)

    finder = RegionFinder(sign, send, known=config.region or region_in_host(config.endpoint))
    presigner = LocalPresigner(
        config,
        region_of=finder.region_of,
        credentials=CredentialSource(config, clock=clock),
        clock=clock,
        forget_region=finder.forget,
    )
    return presigner


def real_lifetime(asked: int, date: datetime, ends: datetime | None) -> int:
    """Return the real lifetime of a request in seconds from ``date``.

    It is the least of the requested lifetime, 7 days, and the credential's remaining lifetime. Raises
    ``no_credentials`` if the credential expires within the first second.
    """
    expires = min(asked, MAX_EXPIRES)
    if ends is not None:
        expires = min(expires, int((ends - date).total_seconds()))
        if expires < 1:
            raise fault("no_credentials", "the signing credential has expired")
    return expires


def refuse_incomplete(request: GrantRequest) -> None:
    """Raise the ``Fault`` of a request that lacks what its operation needs."""
    if not request.key:
        raise fault("key_refused", "the key is empty")
    if not request.bucket:
        raise fault("grant_refused", "the bucket is empty")
    if request.expires < 1:
        raise fault("grant_refused", "expires must be at least 1 second")
    if request.date is not None and request.date.utcoffset() != timedelta(0):
        raise fault("grant_refused", "the date must be in UTC")
    if request.operation in ON_AN_UPLOAD and not request.upload_id:
        raise fault("grant_refused", f"{request.operation} needs an upload_id")
    if request.operation is Operation.MULTIPART_PART and not 1 <= request.part_number <= MAX_PARTS:
        raise fault("grant_refused", f"a part_number lies between 1 and {MAX_PARTS}")


def own_query(request: GrantRequest) -> dict[str, str]:
    """Return the query parameters of the operation."""
    operation = request.operation
    if operation is Operation.MULTIPART_CREATE:
        return {"uploads": ""}
    if operation not in ON_AN_UPLOAD:
        named = request.version_id and operation in (Operation.GET, Operation.HEAD, Operation.DELETE)
        return {"versionId": request.version_id} if named else {}
    query = {"uploadId": request.upload_id}
    if operation is Operation.MULTIPART_PART:
        query["partNumber"] = str(request.part_number)
    if operation is Operation.MULTIPART_LIST and request.part_number:
        query["part-number-marker"] = str(request.part_number)
    return query


def bound_headers(request: GrantRequest) -> dict[str, str]:
    """Return every header that is signed, exactly as it must be sent.

    Raises ``grant_refused`` for a header given twice, one that SigV4 or HTTP sets itself, and a value with control
    characters, which could end the header.
    """
    headers: dict[str, str] = {}
    if request.size is not None:
        if request.size < 0:
            raise fault("grant_refused", "the size is negative")
        headers["Content-Length"] = str(request.size)
    if request.content_type:
        headers["Content-Type"] = _value("content_type", request.content_type)
    if request.checksum:
        try:
            name, value = header_of(request.checksum)
        except ValueError as problem:
            raise fault("grant_refused", str(problem)) from None
        headers[name] = value
    if request.checksum_algorithm or request.checksum_type or request.checksum_mode:
        headers |= _checksum_headers(request)
    if request.if_none_match:
        headers["If-None-Match"] = "*"
    if request.if_match:
        headers["If-Match"] = _value("if_match", request.if_match)
    return _with_own(headers, request.headers) if request.headers else headers


def _with_own(headers: dict[str, str], own: Mapping[str, str]) -> dict[str, str]:
    taken = {name.lower() for name in headers} | _OURS
    for name, value in own.items():
        if not _HEADER_NAME.fullmatch(name):
            raise fault("grant_refused", "a header's name is not one of HTTP's")
        if name.lower() in taken:
            raise fault("grant_refused", f"the header {name} is set already")
        taken.add(name.lower())
        headers[name] = _value(f"the header {name}", value)
    return headers


@lru_cache(maxsize=256)  # content types and the headers of watches are few
def _value(what: str, value: str) -> str:
    if not _HEADER_VALUE.fullmatch(value):
        raise fault("grant_refused", f"{what} holds a control character")
    return value.strip()


def _checksum_headers(request: GrantRequest) -> dict[str, str]:
    """Return the headers that choose an upload's checksum, or request an object's in a HEAD."""
    headers = {}
    for name, (operation, values) in _CHECKSUM_FIELDS.items():
        value = getattr(request, name)
        if value and (request.operation is not operation or value not in values):
            raise fault("grant_refused", f"{name} is one of {', '.join(values)}, for {operation} only")
        if value:
            headers[f"x-amz-{name.replace('_', '-')}"] = value
    return headers
