"""Stable links: the requests to a broker, and its answers. Pure.

A stable link is a short address of the broker that redirects to the object until the link ends or is revoked
(docs/broker.md). The client chooses its id; a second request with the same id makes no second link.
"""

from __future__ import annotations

import re
import secrets
from base64 import urlsafe_b64encode
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from typing import Annotated, Any

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

from presignd.units import rfc3339

LEAST_PIN, LONGEST_PIN = 4, 64
"""Characters. Four digits are safe: a link has 10 tries an hour."""

UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_REF = re.compile(r"[A-Za-z0-9_-]{16}")
_REF_BYTES = 12
_ADDRESS = re.compile(r"https?://[^/?#]+/(?:[^?#]*/)?l/([A-Za-z0-9_-]{22})(?:[/?#].*)?")


def new_link_id() -> str:
    """Return the id of a new link (secret): 128 random bits as 22 characters of base64url."""
    return secrets.token_urlsafe(16)


def id_in(address: str) -> str:
    """Return the id in the address of a stable link; "" if it is no such address."""
    found = _ADDRESS.fullmatch(address)
    return found[1] if found else ""


def is_ref(text: str) -> bool:
    """Return whether this has the form of a link's ref, which names the link but does not open it."""
    return bool(_REF.fullmatch(text))


def ref_of(link_id: str) -> str:
    """Return the ref of the link with this id: the start of the id's SHA-256."""
    return urlsafe_b64encode(sha256(link_id.encode()).digest()[:_REF_BYTES]).decode()


def pin_problem(pin: str) -> str:
    """Return why this can't be the PIN of a link, "" if it can."""
    if LEAST_PIN <= len(pin) <= LONGEST_PIN and not UNPRINTABLE.search(pin):
        return ""
    return f"a pin has {LEAST_PIN} to {LONGEST_PIN} printable characters"


def in_utc(time: datetime) -> datetime:
    """Return ``time`` in UTC; raise ``ValueError`` where that lies outside the years 1 to 9999."""
    try:
        return time.astimezone(UTC)
    except OverflowError:
        raise ValueError("is no time") from None


@dataclass(frozen=True, slots=True)
class StableRequest:
    """A stable link to make: of an object, or with ``version_id`` of that version.

    ``size`` is bytes. ``filename`` and ``content_type`` are what a browser gets; ``inline`` lets it show the content if
    the broker considers that safe. ``expires_at`` (UTC) and ``max_downloads`` limit the link, None for no limit;
    ``pin`` must be given to open it, "" for none. ``id`` and ``pin`` are secret. ``unit``: the object is the manifest
    of a folder, and the link opens a page with its files.
    """

    id: str = field(repr=False)
    bucket: str
    key: str
    size: int
    content_type: str
    filename: str
    expires_at: datetime | None
    version_id: str = ""
    inline: bool = True
    max_downloads: int | None = None
    pin: str = field(default="", repr=False)
    unit: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the request as the broker reads it."""
        return {
            "id": self.id,
            "bucket": self.bucket,
            "key": self.key,
            "size": self.size,
            "content_type": self.content_type,
            "version_id": self.version_id,
            "filename": self.filename,
            "disposition": "inline" if self.inline else "attachment",
            "expires_at": None if self.expires_at is None else rfc3339(self.expires_at),
            "max_downloads": self.max_downloads,
            "pin": self.pin,
        } | ({"unit": True} if self.unit else {})  # an older broker refuses a field that it does not know


Time = Annotated[AwareDatetime, AfterValidator(in_utc)]
Word = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{0,64}$")]


class BrokerAnswer(BaseModel):
    """A model of a broker's answer: unknown fields are ignored, and no error repeats a value."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)


class StableLink(BrokerAnswer):
    """A link as the broker recorded it first, whatever a later request says. ``url`` is secret, times are UTC."""

    url: str = Field(repr=False)
    expires_at: Time | None
    ref: Word = ""
    state: Word = "alive"

    @property
    def is_alive(self) -> bool:
        """Whether it opens now."""
        return self.state == "alive"
