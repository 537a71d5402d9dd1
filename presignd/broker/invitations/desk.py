"""Answer guests' calls: record each in the state before anything is signed."""

from __future__ import annotations

import secrets
from base64 import b32encode
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import NamedTuple

from presignd.broker.invitations import audit, policy
from presignd.broker.invitations.policy import Admitted
from presignd.broker.invitations.request import DoneRequest, Files, SignRequest, SignRequests
from presignd.broker.invitations.sweep import Sweeper
from presignd.broker.limits import yielding
from presignd.broker.policy import Refusal, RefusalCode
from presignd.broker.state.database import Database
from presignd.broker.state.invitations import Invitation, Invitations
from presignd.broker.state.links import hash_of
from presignd.broker.state.outbox import StateOutbox
from presignd.broker.state.tickets import NewTicket, Ticket, Tickets, TicketState, Use
from presignd.errors import Fault
from presignd.presign import ON_AN_UPLOAD, Grant, GrantRequest, Operation
from presignd.store.signed import SignedStore

STEP = 50
"""Requests signed at a time: half a millisecond of work."""
FOLDER_BYTES = 10
TICKET_BYTES = 16


class Honoured(NamedTuple):
    """Whether a store honours ``If-None-Match: *`` on a PUT and at the end of an upload in parts."""

    put: bool
    complete: bool


@dataclass(frozen=True, slots=True)
class Issued:
    """A ticket as its guest gets it. A part size of 0 means one PUT."""

    ticket: str = field(repr=False)
    key: str
    part_size: int


@dataclass(frozen=True, slots=True)
class Receipt:
    """A file that came in; ``checksum`` is "" if neither store nor guest gave one."""

    size: int
    checksum: str


Signed = Grant | Refusal | Fault


class Desk:
    """Issues tickets, signs for them, receives and cancels. Every call may raise ``StateAway``.

    ``store`` returns the one in use: a reload replaces it. ``honoured`` returns which conditions the store honours in a
    bucket below a prefix.
    """

    def __init__(
        self,
        database: Database,
        store: Callable[[], SignedStore],
        honoured: Callable[[str, str], Awaitable[Honoured]],
        outbox: StateOutbox | None = None,
    ) -> None:
        self._invitations, self._tickets = Invitations(database), Tickets(database)
        self._store, self._honoured = store, honoured
        self._sweeper = Sweeper(database, store, outbox)

    # --- files --------------------------------------------------------------------------------------
    async def files(self, invitation: Invitation, asked: Files, client: str, now: datetime) -> list[Issued | Refusal]:
        """Reserve room for files, in order; return a ticket or a refusal for each."""
        folder = f"{now:%Y-%m-%d}-{b32encode(secrets.token_bytes(FOLDER_BYTES)).decode().lower()}"
        known = [file for place, file in enumerate(asked.files) if place not in asked.refused]
        admitted = policy.admit(invitation.new, known, folder)
        tickets = [secrets.token_urlsafe(TICKET_BYTES) for _ in admitted]
        new = [_new(ticket, each) for ticket, each in zip(tickets, admitted, strict=True) if isinstance(each, Admitted)]
        got = await self._tickets.reserve(invitation, new, now) if new else []
        after = await self._invitations.find(invitation.new.id) or invitation
        last = max((place for place, reserved in enumerate(got) if reserved), default=-1)
        why = [
            None if got[n] else policy.why_full(after, each.size, now, took_more=n < last) for n, each in enumerate(new)
        ]
        reserved = iter(zip(new, why, strict=True))
        results = iter(
            [
                each if isinstance(each, Refusal) else _issued(ticket, *next(reserved))
                for ticket, each in zip(tickets, admitted, strict=True)
            ]
        )
        answers = [asked.refused.get(place) or next(results) for place in range(len(asked.files))]
        sizes = [file.size for file, answer in zip(asked.files, answers, strict=True) if isinstance(answer, Issued)]
        codes = [str(answer.code) for answer in answers if isinstance(answer, Refusal)]
        audit.reserved(client, invitation, sizes, codes)
        return answers

    # --- grants -------------------------------------------------------------------------------------
    async def sign(self, invitation: Invitation, asked: SignRequests, now: datetime) -> list[Signed]:
        """Sign requests for tickets. Each use is recorded first, so nothing is signed for a ticket that has ended."""
        digests = [hash_of(each.ticket) for each in asked.requests]
        found = await self._of(invitation, digests)
        decided: list[GrantRequest | Refusal] = [
            asked.refused.get(place) or policy.decide_sign(found[digest], request, now)
            for place, (digest, request) in enumerate(zip(digests, asked.requests, strict=True))
        ]
        await self._bind(invitation, digests, decided)
        decided = await self._used(invitation, digests, asked.requests, decided, now)
        honoured = await self._honoured(invitation.new.bucket, invitation.new.prefix)
        requests = [_conditional(each, honoured) for each in decided if isinstance(each, GrantRequest)]
        steps = [requests[start : start + STEP] for start in range(0, len(requests), STEP)]
        presigner = self._store().presigner
        grants = iter([grant async for step in yielding(steps) for grant in await presigner.grant(step)])
        return [each if isinstance(each, Refusal) else _signed(next(grants)) for each in decided]

    async def _of(self, invitation: Invitation, digests: Sequence[bytes]) -> dict[bytes, Ticket | None]:
        """Return the tickets by their ids; None for any that is not this invitation's."""
        unique = list(dict.fromkeys(digests))
        tickets = await self._tickets.find(unique) if unique else []
        own = [each if each and each.invitation == invitation.number else None for each in tickets]
        return dict(zip(unique, own, strict=True))

    async def _bind(
        self, invitation: Invitation, digests: Sequence[bytes], decided: Sequence[GrantRequest | Refusal]
    ) -> None:
        """Bind upload ids to their tickets. Where a call names two for one ticket, the first one is bound."""
        uploads: dict[bytes, str] = {}
        for digest, each in zip(digests, decided, strict=True):
            if isinstance(each, GrantRequest) and each.operation in ON_AN_UPLOAD:
                uploads.setdefault(digest, each.upload_id)
        if uploads:
            await self._tickets.bind(invitation.new.bucket, list(uploads.items()))

    async def _used(
        self,
        invitation: Invitation,
        digests: Sequence[bytes],
        asked: Sequence[SignRequest],
        decided: Sequence[GrantRequest | Refusal],
        now: datetime,
    ) -> list[GrantRequest | Refusal]:
        """Record the requests to be signed; refuse those whose tickets have ended."""
        uses = [
            _use(digest, request, each) if isinstance(each, GrantRequest) else None
            for digest, request, each in zip(digests, asked, decided, strict=True)
        ]
        unique = list(dict.fromkeys(use for use in uses if use is not None))
        taken = dict(zip(unique, await self._tickets.use(invitation.new.bucket, unique, now), strict=True))
        return [each if use is None or taken[use] else _not_used(use) for use, each in zip(uses, decided, strict=True)]

    # --- ends ---------------------------------------------------------------------------------------
    async def done(  # noqa: PLR0911 - one line a rule
        self, invitation: Invitation, asked: DoneRequest, client: str, now: datetime
    ) -> Receipt | Refusal:
        """HEAD a file once; it is received if it is whole. Raises a ``Fault`` of the store."""
        digest = hash_of(asked.ticket)
        ticket = (await self._of(invitation, [digest]))[digest]
        if ticket is None:
            return Refusal(RefusalCode.TICKET_REFUSED, "there is no such ticket")
        if ticket.state is TicketState.RECEIVED:
            return Receipt(ticket.new.size, ticket.checksum)
        if ticket.state is TicketState.CANCELLED or ticket.released:
            return Refusal(RefusalCode.TICKET_REFUSED, f"this ticket has ended: {ticket.state}")
        found = await self._sweeper.look(ticket)
        if found is None:
            return Refusal(RefusalCode.NOT_STORED, "the store holds no such object yet")
        judged = policy.judge(ticket, asked.parts, found)
        if isinstance(judged, Refusal):
            return judged
        await self._sweeper.receive(ticket, judged, now, client)
        (after,) = await self._tickets.find([digest])
        if after is None or after.state is not TicketState.RECEIVED:
            return Refusal(RefusalCode.TICKET_REFUSED, "this ticket has ended")
        return Receipt(after.new.size, after.checksum)

    async def cancel(self, invitation: Invitation, ticket: str, now: datetime) -> Refusal | None:
        """End a ticket; its reservation is given back once nothing more can be stored for it."""
        digest = hash_of(ticket)
        found = (await self._of(invitation, [digest]))[digest]
        if found is None:
            return Refusal(RefusalCode.TICKET_REFUSED, "there is no such ticket")
        if await self._tickets.cancel(digest, now):
            await self._sweeper.end(digest, now)
            return None
        (after,) = await self._tickets.find([digest])
        if after is not None and after.state is TicketState.RECEIVED:
            return Refusal(RefusalCode.TICKET_REFUSED, "this file has been received")
        return None


def _new(ticket: str, file: Admitted) -> NewTicket:
    return NewTicket(hash_of(ticket), file.path, file.key, file.size, file.content_type, file.part_size)


def _issued(ticket: str, new: NewTicket, why_not: Refusal | None) -> Issued | Refusal:
    return why_not or Issued(ticket, new.key, new.part_size)


def _use(digest: bytes, asked: SignRequest, request: GrantRequest) -> Use:
    ends = policy.end_of(request) if policy.stores(request.operation) else None
    checksum = request.checksum if request.operation is Operation.PUT else ""
    return Use(digest, ends, checksum, asked.upload_id)


def _not_used(use: Use) -> Refusal:
    if use.upload_id:
        return policy.foreign_upload()
    return Refusal(RefusalCode.TICKET_REFUSED, "this ticket has ended")


def _conditional(request: GrantRequest, honoured: Honoured) -> GrantRequest:
    by_operation = {Operation.PUT: honoured.put, Operation.MULTIPART_COMPLETE: honoured.complete}
    return replace(request, if_none_match=by_operation.get(request.operation, False))


def _signed(answer: Grant | Exception) -> Grant | Fault:
    if isinstance(answer, (Grant, Fault)):
        return answer
    raise answer
