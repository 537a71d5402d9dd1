"""The JSON of stable links: a token's requests and the answers to them."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal
from urllib.parse import quote

from pydantic import AwareDatetime, ConfigDict, FailFast, Field, TypeAdapter, ValidationError

from presignd.broker import wire
from presignd.broker.policy import Refusal
from presignd.broker.state.links import Link
from presignd.units import rfc3339


@dataclass(frozen=True, slots=True)
class LinkTerms:
    """A link to ``key``, or to its ``version_id`` ("" = whatever the key holds).

    ``size`` (bytes), ``content_type``, ``filename`` and ``note`` are for those who open it; an empty ``filename`` means
    the last part of the key. ``expires_at`` and ``max_downloads`` limit it (null: no limit), and so does ``pin`` ("":
    none). ``unit``: the object is the manifest of a folder, and the link opens a page with that folder's files.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    bucket: str
    key: str
    size: int | None = None
    content_type: str = ""
    version_id: str = ""
    filename: str = ""
    disposition: Literal["attachment", "inline"] = "attachment"
    expires_at: AwareDatetime | None = None
    max_downloads: int | None = None
    pin: str = field(default="", repr=False)
    note: str = ""
    unit: bool = False


@dataclass(frozen=True, slots=True)
class LinkRequest(LinkTerms):
    """Terms, and the ``id`` that the caller chose: 22 characters of base64url, 128 random bits. It opens the link."""

    id: str = field(kw_only=True, repr=False)


@dataclass(frozen=True, slots=True)
class LinkBatch:
    """The body of ``POST /v1/links``."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    links: Annotated[list[LinkRequest], FailFast()]


Named = Annotated[str, Field(pattern=r"^[^\x00]+$")]
"""A text that PostgreSQL can store: not NUL."""


@dataclass(frozen=True, slots=True)
class ByRef:
    """Revokes the link with this ``ref``."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    ref: Named


@dataclass(frozen=True, slots=True)
class ById:
    """Revokes the link that this ``id`` opens."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    id: Named = field(repr=False)


@dataclass(frozen=True, slots=True)
class ByObject:
    """Revokes all links to an object."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    bucket: Named
    key: Named


Revocation = ByRef | ById | ByObject
"""The body of ``POST /v1/links/revoke``."""


@dataclass(frozen=True, slots=True)
class ParsedLinks:
    """The links of one call; ``refused`` holds, by place, those with a field that this broker does not know."""

    links: list[LinkRequest]
    refused: dict[int, Refusal]


TERMS, BATCH = TypeAdapter(LinkTerms), TypeAdapter(LinkBatch)
REVOCATION: TypeAdapter[Revocation] = TypeAdapter(Revocation)
_FIELDS = frozenset(each.name for each in fields(LinkRequest))


def read_links(body: bytes) -> ParsedLinks:
    """Return the links in a body; raise ``TooMany``, or ``ValueError`` that names the wrong field but not its value."""
    batch, refused = wire.read_items(body, BATCH, "links", _FIELDS)
    return ParsedLinks(batch.links, refused)


def read_link(body: bytes, link_id: str) -> ParsedLinks:
    """Return the link of a ``PUT``; raise ``ValueError`` as ``read_links`` does."""
    terms = wire.read_one(body, TERMS)
    known = {each.name: getattr(terms, each.name) for each in fields(LinkTerms)}
    return ParsedLinks([LinkRequest(id=link_id, **known)], {})


def read_revocation(body: bytes) -> Revocation:
    """Return what to revoke; raise ``ValueError``."""
    try:
        return REVOCATION.validate_json(body, strict=True)
    except ValidationError:
        raise ValueError("give a ref, an id, or bucket and key, and nothing else") from None


# --- answers ----------------------------------------------------------------------------------------
class LinkState(StrEnum):
    """Whether a link opens, or why it does not."""

    ALIVE = "alive"
    EXPIRED = "expired"
    REVOKED = "revoked"
    USED_UP = "used_up"


def state_of(link: Link, ends: datetime | None, now: datetime) -> LinkState:
    """Return the state of a link that ends at ``ends``."""
    if link.revoked_at is not None:
        return LinkState.REVOKED
    if ends is not None and ends <= now:
        return LinkState.EXPIRED
    most = link.new.max_downloads
    return LinkState.USED_UP if most is not None and link.opened >= most else LinkState.ALIVE


def url_of(root: str, link_id: str, link: Link) -> str:
    """Return the address that opens a link; ``root`` is [links] url."""
    return f"{root}/l/{link_id}/{quote(link.new.filename, safe='')}"


def shown(link: Link, ends: datetime | None, now: datetime) -> dict[str, Any]:
    """Return a link as its token sees it, without the id that opens it."""
    new = link.new
    return {
        "ref": link.ref,
        "bucket": new.bucket,
        "key": new.key,
        "version_id": new.version_id,
        "size": new.size,
        "content_type": new.content_type,
        "filename": new.filename,
        "disposition": new.disposition,
        "note": new.note,
        "pin": bool(new.pin),
        "unit": new.unit,
        "max_downloads": new.max_downloads,
        "made_at": rfc3339(new.made_at),
        "expires_at": None if ends is None else rfc3339(ends),
        "opened": link.opened,
        "opened_at": None if link.opened_at is None else rfc3339(link.opened_at),
        "state": state_of(link, ends, now),
    }
