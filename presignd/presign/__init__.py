"""The presign port: ask for grants, get presigned requests. What crosses it fits in JSON.

A presigner signs; it never talks to the store on a file's behalf. ``local`` signs with keys in this
process; a broker signs elsewhere, over HTTP, with the same requests and answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol


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


@dataclass(frozen=True, slots=True)
class GrantRequest:
    """One request to be presigned.

    ``size`` is the Content-Length in bytes and is bound by the signature, as are ``checksum``
    (``md5:<hex>`` or ``sha256:<hex>``), ``headers`` (the watch's own, x-amz-* among them),
    ``if_none_match`` and ``if_match`` (an ETag). ``expires`` is in seconds. ``date`` is the signing date
    (UTC) where it must be a given one, so that the same URL comes again; None means now. ``public`` asks
    for the name that links are signed for.
    """

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


class Presigner(Protocol):
    """Signs many requests in one call.

    Answers stand in the order of the requests. A refusal of one request is a ``Fault`` in its place; the
    call raises ``PresignerFault`` when nothing can be signed at all (unreachable, no credentials).
    """

    async def grant(self, requests: Sequence[GrantRequest]) -> list[Grant | Exception]:
        """Sign ``requests``."""
        ...

    async def credential_expiry(self) -> datetime | None:
        """Return when the signing credential ends (UTC), None for one that doesn't."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...
