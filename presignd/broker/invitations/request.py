"""The JSON of invitations: a guest's requests and the answers to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any

from pydantic import ConfigDict, FailFast, TypeAdapter

from presignd.broker import wire
from presignd.broker.policy import Refusal
from presignd.broker.state.invitations import Invitation
from presignd.units import rfc3339


@dataclass(frozen=True, slots=True)
class FileRequest:
    """A file to send: its ``path`` as the guest has it ("/" between folders), its ``size`` in bytes, its ``type``."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    path: str
    size: int
    type: str = ""


@dataclass(frozen=True, slots=True)
class FileBatch:
    """The body of ``POST /i/{id}/files``."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    files: Annotated[list[FileRequest], FailFast()]


@dataclass(frozen=True, slots=True)
class SignRequest:
    """A request to sign for a ticket.

    ``operation`` is ``put`` for a file without parts, else one of ``multipart.…``. ``checksum`` is that of the body;
    for ``multipart.create`` it may name the algorithm of the whole object, ``crc64nvme``. A list with ``part_number``
    starts after that part.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    ticket: str = field(repr=False)
    operation: str = ""
    upload_id: str = ""
    part_number: int = 0
    checksum: str = ""


@dataclass(frozen=True, slots=True)
class SignBatch:
    """The body of ``POST /i/{id}/sign``."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    requests: Annotated[list[SignRequest], FailFast()]


@dataclass(frozen=True, slots=True)
class DoneRequest:
    """The body of ``POST /i/{id}/done``; ``parts`` are the checksums of the parts, in order, to compare."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    ticket: str = field(repr=False)
    parts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CancelRequest:
    """The body of ``POST /i/{id}/cancel``."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    ticket: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class PinRequest:
    """The body of ``POST /i/{id}/pin``."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    pin: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Files:
    """The files of one call; ``refused`` holds, by place, those with a field that this broker does not know."""

    files: list[FileRequest]
    refused: dict[int, Refusal]


@dataclass(frozen=True, slots=True)
class SignRequests:
    """The requests of one call, as ``Files``."""

    requests: list[SignRequest]
    refused: dict[int, Refusal]


FILES, SIGN = TypeAdapter(FileBatch), TypeAdapter(SignBatch)
DONE, CANCEL, PIN = TypeAdapter(DoneRequest), TypeAdapter(CancelRequest), TypeAdapter(PinRequest)
_FILE_FIELDS = frozenset(each.name for each in fields(FileRequest))
_SIGN_FIELDS = frozenset(each.name for each in fields(SignRequest))


def read_files(body: bytes) -> Files:
    """Return the files in a body; raise ``TooMany``, or ``ValueError`` that names the wrong field but not its value."""
    batch, refused = wire.read_items(body, FILES, "files", _FILE_FIELDS)
    return Files(batch.files, refused)


def read_sign(body: bytes) -> SignRequests:
    """Return the requests in a body; raise what ``read_files`` does."""
    batch, refused = wire.read_items(body, SIGN, "requests", _SIGN_FIELDS)
    return SignRequests(batch.requests, refused)


def read_done(body: bytes) -> DoneRequest:
    """Return the body of ``/done``; raise ``ValueError``."""
    # Not strict: JSON has no tuples. A string is refused either way.
    return wire.read_one(body, DONE, strict=False)


def read_cancel(body: bytes) -> CancelRequest:
    """Return the body of ``/cancel``; raise ``ValueError``."""
    return wire.read_one(body, CANCEL)


def read_pin(body: bytes) -> PinRequest:
    """Return the body of ``/pin``; raise ``ValueError``."""
    return wire.read_one(body, PIN)


def allowed(invitation: Invitation, checksums: Mapping[str, str]) -> dict[str, Any]:
    """Return what an invitation allows: sizes in bytes, null for no limit; and the algorithm of bodies' checksums."""
    new = invitation.new
    return {
        "note": new.note,
        "expires_at": rfc3339(new.ends_at),
        "max_size": new.max_size,
        "files_left": invitation.files_left,
        "bytes_left": invitation.bytes_left,
        "pin_needed": bool(new.pin),
        "checksums": dict(checksums),
    }
