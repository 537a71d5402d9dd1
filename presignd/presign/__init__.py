"""The presign port: requests in, grants out. Both have a JSON form.

Two presigners implement it: ``local`` signs with keys in this process, ``remote`` requests grants from a broker over
HTTP. A presigner only signs; it sends no file to the store.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import ConfigDict, TypeAdapter, ValidationError

if TYPE_CHECKING:
    from presignd.presign.broker_links import BrokerLinks

FIRST_CHECKSUMS = ("md5", "sha256")
"""The algorithms of checksums that every broker signs; older ones sign no other."""


class Operation(StrEnum):
    """The operation that a grant allows."""

    __hash__ = str.__hash__  # Enum's is a Python function, called five times for each grant

    PUT = "put"
    GET = "get"
    HEAD = "head"
    DELETE = "delete"
    MULTIPART_CREATE = "multipart.create"
    MULTIPART_PART = "multipart.part"
    MULTIPART_LIST = "multipart.list"
    MULTIPART_COMPLETE = "multipart.complete"
    MULTIPART_ABORT = "multipart.abort"


ON_AN_UPLOAD = frozenset(
    {
        Operation.MULTIPART_PART,
        Operation.MULTIPART_LIST,
        Operation.MULTIPART_COMPLETE,
        Operation.MULTIPART_ABORT,
    }
)
"""Operations that name an upload by its ``upload_id``."""


@dataclass(slots=True)  # not frozen, as each file has two: that takes four times as long to make
class GrantRequest:
    """A request to presign; nobody changes one.

    The signature covers ``size`` (Content-Length in bytes), ``checksum`` (``algorithm:<hex>``, with an algorithm of
    ``s3.checksums.HEADERS``), ``headers`` (the watch's, x-amz-* among them), ``if_none_match`` and ``if_match`` (an
    ETag). ``checksum_algorithm`` (CRC64NVME) and ``checksum_type`` (FULL_OBJECT) are those of an upload in parts, given
    when it is created; with ``checksum_mode`` (ENABLED) a HEAD is answered with the checksum. ``expires`` is in
    seconds. ``date`` is the signing date (UTC), given to get the same URL again; None means now. ``public`` selects the
    host name of links. A list with ``part_number`` starts after that part. ``version_id`` names a version of the
    object, for a GET, a HEAD or a DELETE.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    operation: Operation
    bucket: str
    key: str
    expires: int
    size: int | None = None
    content_type: str = ""
    checksum: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    if_none_match: bool = False
    if_match: str = ""
    date: datetime | None = None
    public: bool = False
    upload_id: str = ""
    part_number: int = 0
    version_id: str = ""
    checksum_algorithm: str = ""
    checksum_type: str = ""
    checksum_mode: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the request as it is sent to a broker, without fields at their default.

        ``presignd.broker.wire.read_batch`` reads it.
        """
        document: dict[str, Any] = _requests().dump_python(self, mode="json", exclude_defaults=True)
        return document


@dataclass(slots=True)  # not frozen, as above
class Grant:
    """A presigned request: send ``method`` to ``url`` (secret) with exactly ``headers``.

    ``expires_at`` (UTC) is the real expiry: the least of the requested one, 7 days, and the credential's. A grant's age
    is measured from ``signer_date`` (UTC), the signer's clock when it signed.
    """

    method: str
    url: str = field(repr=False)
    headers: Mapping[str, str]
    expires_at: datetime
    signer_date: datetime

    def to_json(self) -> dict[str, Any]:
        """Return the grant as a broker sends it, with the full ``url``."""
        document: dict[str, Any] = _grants().dump_python(self, mode="json")
        return document

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Grant:
        """Read the form of ``to_json``; raise ``ValueError`` that names the wrong field but not its value."""
        try:
            return _grants().validate_python(data)
        except ValidationError as problem:
            raise ValueError(reason_of(problem)) from None


class Presigner(Protocol):
    """Signs many requests in one call.

    Results are in the order of the requests. A refused request has its ``Fault`` at its place; the call raises
    ``PresignerFault`` if nothing can be signed (unreachable, no credentials).
    """

    @property
    def links(self) -> BrokerLinks | None:
        """The client for stable links; None for a presigner without a broker."""
        ...

    async def grant(self, requests: Sequence[GrantRequest]) -> list[Grant | Exception]:
        """Sign ``requests``."""
        ...

    def now(self) -> datetime:
        """Return the signer's time (UTC), or this machine's if that is not known: links are dated by it."""
        ...

    async def prefix(self) -> str:
        """Return the prefix that every key must have, "" for none; raise ``PresignerFault``."""
        ...

    async def checksums(self) -> Collection[str]:
        """Return the algorithms of checksums that can be signed; raise ``PresignerFault``.

        A presigner with more than ``FIRST_CHECKSUMS`` also signs ``checksum_algorithm``, ``_type`` and ``_mode``.
        """
        ...

    async def credential_expiry(self) -> datetime | None:
        """Return when the signing credential expires (UTC), None for never."""
        ...

    def look_again(self, bucket: str) -> None:
        """Forget what is cached for ``bucket`` (credentials, region): the store refused a signed request."""
        ...

    async def close(self) -> None:
        """Close every connection."""
        ...


def signs_checksum_fields(algorithms: Collection[str]) -> bool:
    """Return whether a presigner of these algorithms signs ``checksum_mode`` and the like: older brokers don't."""
    return set(algorithms) > set(FIRST_CHECKSUMS)


@cache
def _requests() -> TypeAdapter[GrantRequest]:
    """Return the serializer of requests; made when a broker needs it, as it would slow down each start."""
    return TypeAdapter(GrantRequest)


@cache
def _grants() -> TypeAdapter[Grant]:
    return TypeAdapter(Grant)


def reason_of(problem: ValidationError) -> str:
    """Return which field is wrong and why, without its value, which may be a signed URL."""
    first = problem.errors(include_input=False, include_url=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}" if where else first["msg"]
