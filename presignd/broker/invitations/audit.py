"""The audit log of invitations: who sent what. It holds no address, no ticket and no upload id."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from presignd.broker import metrics
from presignd.broker.state.arrivals import Arrival
from presignd.broker.state.invitations import Invitation
from presignd.broker.state.tickets import Ticket
from presignd.telemetry.log import get_logger

log = get_logger()


def reserved(client: str, invitation: Invitation, sizes: Sequence[int], refused: Sequence[str]) -> None:
    """Log the files of one call, and the codes of those that got no ticket."""
    metrics.INVITED_FILES.labels("reserved").inc(len(sizes))
    metrics.INVITED_FILES.labels("refused").inc(len(refused))
    if sizes:
        log.info("upload.reserved", client=client, **_of(invitation), count=len(sizes), size=sum(sizes))
    if refused:
        codes = sorted(set(refused))
        log.warning("upload.refused", client=client, **_of(invitation), count=len(refused), error_code=", ".join(codes))


def received(ticket: Ticket, checksum: str, etag: str, client: str = "") -> None:
    """Log that a file came in; without a ``client``, a sweep found it."""
    metrics.INVITED_FILES.labels("received").inc()
    fields: dict[str, Any] = {"client": client} if client else {}
    fields |= {"checksum": checksum} if checksum else {}
    log.info("upload.received", **fields, **_file(ticket), content_type=ticket.new.content_type, etag=etag)


def acked(token: str, client: str, invitation: Invitation, arrival: Arrival) -> None:
    """Log that a host has fetched a file."""
    metrics.INVITED_FILES.labels("fetched").inc()
    fields = {"bucket": arrival.bucket, "key": arrival.key, "size": arrival.size, "ref": arrival.ref}
    log.info("inbox.acked", by=token, client=client, invitation=invitation.new.name, **fields)


def given_back(ticket: Ticket) -> None:
    """Log that a file did not come in, and that its reservation was given back."""
    metrics.INVITED_FILES.labels(str(ticket.state)).inc()
    log.info("upload.ended", status=str(ticket.state), **_file(ticket))


def unfinished(ticket: Ticket, code: str) -> None:
    """Log that a ticket could not be ended because of the store: its reservation stays."""
    log.warning("upload.not_ended", **_file(ticket), error_code=code)


def _of(invitation: Invitation) -> dict[str, Any]:
    new = invitation.new
    return {"invitation": new.name, "bucket": new.bucket, "prefix": new.prefix}


def _file(ticket: Ticket) -> dict[str, Any]:
    new = ticket.new
    return {"invitation": ticket.name, "bucket": ticket.bucket, "key": new.key, "size": new.size}
