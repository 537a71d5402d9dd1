"""The requests of ``presignd broker invite``: a running broker answers on its socket, else the command itself.

A request is ``{"op": …}`` with the fields that its method names, the answer one JSON object. Only the answer to
``invite_create`` has what opens an invitation.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from presignd.broker.invitations.terms import LARGEST_NUMBER, check_terms
from presignd.broker.links.pin import Pins
from presignd.broker.state.database import Database, needed
from presignd.broker.state.invitations import Invitation, Invitations, NewInvitation
from presignd.broker.state.links import hash_of
from presignd.broker.state.tickets import Ticket, Tickets
from presignd.control.fields import flag, number, text, whole_number
from presignd.control.peer import Peer
from presignd.errors import Refused, UsageError
from presignd.redaction import redact
from presignd.telemetry.log import get_logger
from presignd.units import rfc3339

ID_BYTES = 16
PIN_DIGITS = 6
LONGEST_VALID = 3650 * 86400

Request = Mapping[str, Any]
Document = dict[str, Any]

log = get_logger()


class InvitationCommands:
    """Answers requests about the invitations in ``database``.

    ``url`` is the address at which guests open them; ``now`` returns the time in UTC.
    """

    def __init__(self, url: str, database: Database, now: Callable[[], datetime]) -> None:
        self._url, self._now = url, now
        self._invitations, self._tickets = Invitations(database), Tickets(database)
        self._operations = {
            "invite_create": self._create,
            "invite_list": self._list,
            "invite_show": self._show,
            "invite_revoke": self._revoke,
        }

    async def answer(self, request: Request, peer: Peer, _fds: Sequence[int]) -> AsyncGenerator[Document, None]:
        """Answer one request; raise ``PresigndError``."""
        operation = self._operations.get(text(request, "op"))
        if operation is None:
            raise UsageError("control socket: the broker does not know this request", fix="update the broker")
        with needed():
            yield await operation(request, peer)

    async def _create(self, request: Request, peer: Peer) -> Document:
        """Return ``{"invitation", "url", "pin"}``: url and pin are shown this once. ``valid`` is in seconds."""
        secret, pin, now = secrets.token_urlsafe(ID_BYTES), _new_pin() if flag(request, "pin") else "", self._now()
        new = NewInvitation(
            id=hash_of(secret),
            name=text(request, "name"),
            bucket=text(request, "bucket"),
            prefix=text(request, "prefix"),
            note=text(request, "note"),
            pin="",
            made_at=now,
            ends_at=now + timedelta(seconds=_valid(request)),
            max_files=whole_number(request, "max_files", most=LARGEST_NUMBER),
            max_size=whole_number(request, "max_size", most=LARGEST_NUMBER),
            total=whole_number(request, "total", most=LARGEST_NUMBER),
        )
        check_terms(new)
        made = await self._invitations.make(new._replace(pin=await Pins().hash_of(pin)))
        if made is None:
            raise Refused(f"there is an invitation {new.name!r} already", fix="choose another name")
        log.info("invitation.made", invitation=new.name, bucket=new.bucket, by_uid=peer.uid)
        return {"invitation": self._document(made), "url": f"{self._url}/i/{secret}", "pin": pin or None}

    async def _list(self, _request: Request, _peer: Peer) -> Document:
        """Return ``{"invitations"}``, in the order in which they were made."""
        return {"invitations": [self._document(each) for each in await self._invitations.all()]}

    async def _show(self, request: Request, _peer: Peer) -> Document:
        """Return ``{"invitation", "files"}``: each file with the state of its ticket."""
        invitation = await self._named(request)
        files = [_file(each) for each in await self._tickets.of(invitation)]
        return {"invitation": self._document(invitation), "files": files}

    async def _revoke(self, request: Request, peer: Peer) -> Document:
        """Return ``{"revoked"}``: false if it was revoked before."""
        invitation = await self._named(request)
        revoked = await self._invitations.revoke(invitation.new.name, self._now()) is not None
        if revoked:
            log.info("invitation.revoked", invitation=invitation.new.name, by_uid=peer.uid)
        return {"revoked": revoked}

    async def _named(self, request: Request) -> Invitation:
        name = text(request, "name")
        found = await self._invitations.named(name)
        if found is None:
            raise Refused(f"there is no invitation {name!r}", fix="see presignd broker invite list")
        return found

    def _document(self, invitation: Invitation) -> Document:
        """Return an invitation as JSON, without what opens it. Sizes are bytes, null means no limit."""
        new = invitation.new
        return {
            "name": new.name,
            "ref": invitation.ref,
            "bucket": new.bucket,
            "prefix": new.prefix,
            "note": new.note,
            "pin_needed": bool(new.pin),
            "made_at": rfc3339(new.made_at),
            "expires_at": rfc3339(new.ends_at),
            "max_files": new.max_files,
            "max_size": new.max_size,
            "total": new.total,
            "files": invitation.files,
            "bytes": invitation.bytes,
            "state": self._state(invitation),
        }

    def _state(self, invitation: Invitation) -> str:
        if invitation.revoked_at is not None:
            return "revoked"
        return "open" if invitation.is_open(self._now()) else "expired"


def _valid(request: Request) -> float:
    seconds = number(request, "valid", most=LONGEST_VALID)
    if not seconds:
        raise UsageError("invite create", problems=("--valid: is no time to send files",))
    return seconds


def _new_pin() -> str:
    pin = f"{secrets.randbelow(10**PIN_DIGITS):0{PIN_DIGITS}}"
    redact.register(pin)
    return pin


def _file(ticket: Ticket) -> Document:
    new = ticket.new
    return {
        "path": new.path,
        "key": new.key,
        "size": new.size,
        "content_type": new.content_type,
        "checksum": ticket.checksum or None,
        "etag": ticket.etag,
        "received_at": None if ticket.done_at is None else rfc3339(ticket.done_at),
        "state": str(ticket.state),
    }
