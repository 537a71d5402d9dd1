"""What a store supports, as its probe found it: values, and no requests."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Handling(Enum):
    """How a store handles a condition: it honours it, ignores it, or refuses the request."""

    HONOURED = "honours"
    IGNORED = "ignores"
    REFUSED = "refuses"


@dataclass(frozen=True, slots=True)
class Conditions:
    """How a store handles ``If-None-Match: *`` and If-Match, of a PUT or of the end of an upload in parts."""

    if_none_match: Handling
    if_match: Handling

    @property
    def honoured(self) -> bool:
        """Whether the store honours both."""
        return self.if_none_match is self.if_match is Handling.HONOURED

    def __str__(self) -> str:
        """Return e.g. "honours If-None-Match and ignores If-Match"."""
        first, second = self.if_none_match, self.if_match
        between = "and" if first is second else f"and {second.value}"
        return f"{first.value} If-None-Match {between} If-Match"


@dataclass(frozen=True, slots=True)
class Support:
    """What a store supports for a PUT, or for an upload in parts.

    ``if_none_match``, ``if_match``: the store honours the condition. ``checksum``: the algorithm of each body.
    ``proven``: the store refuses a wrong one and returns a right one; otherwise bodies carry Content-MD5 (too).
    ``md5_etags``: ETags are made of MD5s, so another ETag means other bytes. ``proves``: a response proves the bytes,
    by its ETag or because a wrong checksum is refused; otherwise uploads are read back.
    """

    if_none_match: bool
    if_match: bool
    checksum: str = "md5"
    proven: bool = False
    md5_etags: bool = True
    proves: bool = True

    @property
    def algorithms(self) -> frozenset[str]:
        """The algorithms by which each body is hashed."""
        return frozenset({self.checksum} if self.proven else {self.checksum, "md5"})


class EtagKind(Enum):
    """What the ETag of an object in parts is: made of MD5s, anything else, or missing."""

    MD5 = "md5"
    OPAQUE = "opaque"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Unsigned:
    """Headers that a store obeys although they are not signed: x-amz-copy-source, and x-amz-acl."""

    copies: bool
    publishes: bool


@dataclass(frozen=True, slots=True)
class Remains:
    """The versions of the check object that are left: their number, and why."""

    versions: int = 0
    reason: str = ""
