"""Ends tickets that guests left unfinished: aborts uploads in parts by their recorded id, and gives reservations back.

A reservation is given back only once nothing more can be stored for it: after the last grant has ended and a HEAD found
no object. A whole object whose guest left before ``/done`` is received; one of a cancelled ticket is deleted.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from presignd.broker.invitations import audit, policy
from presignd.broker.invitations.policy import Received, Step
from presignd.broker.state.database import Database
from presignd.broker.state.outbox import StateOutbox
from presignd.broker.state.tickets import LEASE, UNUSED, Ticket, Tickets, TicketState
from presignd.errors import Fault
from presignd.presign import GrantRequest, Operation
from presignd.s3.responses import Response
from presignd.store.signed import SignedStore

AT_A_TIME = 100
EXPIRES = 300
"""Lifetime of the broker's own requests in seconds."""
NOT_FOUND = 404


class Sweeper:
    """Ends tickets that are due. ``store`` returns the one in use: a reload replaces it."""

    def __init__(self, database: Database, store: Callable[[], SignedStore], outbox: StateOutbox | None = None) -> None:
        self._tickets, self._store = Tickets(database, outbox), store

    async def run(self, now: datetime) -> int:
        """Look at the tickets that are due, ``AT_A_TIME`` at most; return their number. Raises ``StateAway``."""
        due = await self._tickets.due(now, AT_A_TIME)
        for ticket in due:
            if await self._tickets.take(ticket, now):
                await self.end(ticket.new.id, now)
        return len(due)

    async def end(self, digest: bytes, now: datetime) -> None:
        """Move a ticket as far towards its end as is possible now.

        Faults of the store are logged, and the ticket stays due.
        """
        (ticket,) = await self._tickets.find([digest])
        if ticket is None or ticket.released or ticket.state is TicketState.RECEIVED:
            return
        step, due = policy.next_step(ticket, now)
        if step is Step.WAIT:
            await self._tickets.postpone(digest, due)
        elif step is Step.EXPIRE:
            await self._expire(ticket, now)
        else:
            try:
                await self._close(ticket, step, due, now)
            except Fault as fault:
                audit.unfinished(ticket, fault.code)
                await self._tickets.postpone(digest, now + LEASE)

    async def _expire(self, ticket: Ticket, now: datetime) -> None:
        is_over = ticket.revoked or ticket.ends_at <= now
        unused_since = None if is_over else now - UNUSED
        if await self._tickets.expire(ticket.new.id, now, used_before=unused_since):
            await self.end(ticket.new.id, now)

    async def _close(self, ticket: Ticket, step: Step, due: datetime, now: datetime) -> None:
        if ticket.upload_id:
            await self._ask(ticket, Operation.MULTIPART_ABORT, upload_id=ticket.upload_id)
        if step is Step.ABORT:
            await self._tickets.postpone(ticket.new.id, due)
            return
        found = await self.look(ticket) if ticket.signed_until is not None else None
        if found is not None and ticket.state is TicketState.EXPIRED:
            judged = policy.judge(ticket, (), found)
            if isinstance(judged, Received):
                await self.receive(ticket, judged, now)
                return
        if found is not None:
            await self._ask(ticket, Operation.DELETE)
        if await self._tickets.release(ticket.new.id, now):
            audit.given_back(ticket)

    async def look(self, ticket: Ticket) -> Response | None:
        """HEAD a ticket's object; return None if there is none. Raises a ``Fault``."""
        found = await self._ask(ticket, Operation.HEAD, checksum_mode="ENABLED")
        return None if found.status == NOT_FOUND else found

    async def receive(self, ticket: Ticket, judged: Received, now: datetime, client: str = "") -> bool:
        """Record that an object was received, and log it once; return False if it was recorded before."""
        is_new = await self._tickets.receive(ticket.new.id, judged.checksum, judged.etag, now)
        if is_new:
            audit.received(ticket, judged.checksum, judged.etag, client)
        return is_new

    async def _ask(
        self, ticket: Ticket, operation: Operation, *, upload_id: str = "", checksum_mode: str = ""
    ) -> Response:
        request = GrantRequest(
            operation, ticket.bucket, ticket.new.key, EXPIRES, upload_id=upload_id, checksum_mode=checksum_mode
        )
        return await self._store().send(request, accept=(NOT_FOUND,))
