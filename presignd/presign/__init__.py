"""The presign port: ask for grants, get presigned requests. What crosses it fits in JSON.

A presigner signs; it never talks to the store on a file's behalf. ``local`` signs with keys in this
process; a broker signs elsewhere, over HTTP, with the same requests and answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol

from pydantic import ConfigDict, TypeAdapter, ValidationError


class Operation(StrEnum):
    """What one grant allows."""

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


@dataclass(frozen=True, slots=True)
class GrantRequest:
    """One request to be presigned.

    ``size`` is the Content-Length in bytes and is bound by the signature, as are ``checksum``
    (``md5:<hex>`` or ``sha256:<hex>``), ``headers`` (the watch's own, x-amz-* among them),
    ``if_none_match`` and ``if_match`` (an ETag). ``expires`` is in seconds. ``date`` is the signing date
    (UTC) where it must be a given one, so that the same URL comes again; None means now. ``public`` asks
    for the name that links are signed for. ``part_number`` with a list asks for the parts after that one.
    ``version_id`` names a version of the object, for a GET, a HEAD or a DELETE.
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

    def to_json(self) -> dict[str, Any]:
        """Return the request as a broker is sent it, without the fields that are at their default.

        A broker reads it (``presignd.broker.wire.read_batch``), and nobody else does.
        """
        document: dict[str, Any] = _REQUEST.dump_python(self, mode="json", exclude_defaults=True)
        return document


@dataclass(frozen=True, slots=True)
class Grant:
    """One presigned request: send ``method`` to ``url`` (secret) with exactly ``headers``.

    ``expires_at`` (UTC) is when it really dies: the least of what was asked, 7 days, and the end of the
    signing credential. ``signer_date`` (UTC) is the signer's clock when it signed: age is judged by it.
    """

    method: str
    url: str = field(repr=False)
    headers: Mapping[str, str]
    expires_at: datetime
    signer_date: datetime

    def to_json(self) -> dict[str, Any]:
        """Return the grant as a broker answers it: ``url`` stands in it in full."""
        document: dict[str, Any] = _GRANT.dump_python(self, mode="json")
        return document

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Grant:
        """Read what ``to_json`` made; raise ``ValueError`` that names the wrong field, never its value."""
        try:
            return _GRANT.validate_python(data)
        except ValidationError as problem:
            raise ValueError(reason_of(problem)) from None


class Presigner(Protocol):
    """Signs many requests in one call.

    Answers stand in the order of the requests. A refusal of one request is a ``Fault`` in its place; the
    call raises ``PresignerFault`` when nothing can be signed at all (unreachable, no credentials).
    """

    async def grant(self, requests: Sequence[GrantRequest]) -> list[Grant | Exception]:
        """Sign ``requests``."""
        ...

    def now(self) -> datetime:
        """Return the signer's time (UTC), as far as it is known: what links are dated by."""
        ...

    async def prefix(self) -> str:
        """Return what each key must begin with, "" where it may be any; raise ``PresignerFault``."""
        ...

    async def credential_expiry(self) -> datetime | None:
        """Return when the signing credential ends (UTC), None for one that doesn't."""
        ...

    def look_again(self, bucket: str) -> None:
        """Trust nothing remembered for ``bucket`` (credentials, region): the store refused a signed request."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


_REQUEST = TypeAdapter(GrantRequest)
_GRANT = TypeAdapter(Grant)


def reason_of(problem: ValidationError) -> str:
    """Say which field is wrong and why, without its value: that may be a signed URL."""
    first = problem.errors(include_input=False, include_url=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}" if where else first["msg"]
