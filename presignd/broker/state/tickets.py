"""Tickets in the state: one for each file that an invitation takes, from its reservation to its end.

The statement that reserves also compares, so an invitation's limits hold even if many reserve at once, at several
brokers. A ticket's reservation is given back once: ``release`` writes a mark into the ticket, and only that mark gives
it back.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from hashlib import sha256
from typing import NamedTuple

from presignd.broker.state.database import Database, Row, Statement
from presignd.broker.state.invitations import Invitation
from presignd.broker.state.outbox import Changed, StateOutbox, new_mark
from presignd.system.clock import from_micros, to_micros

RECEIVED = "upload.received"
UNUSED = timedelta(hours=48)
"""How long after its last use a ticket ends."""
LEASE = timedelta(minutes=1)
"""Lease of a due ticket: after that time another broker may work on it."""

_COLUMNS = (
    "id, invitation, path, bucket, key, size, content_type, part_size, ends_at, state, made_at, used_at, due_at, "
    "signed_until, checksum, etag, done_at, released"
)
_WHOLE = (
    f"SELECT {', '.join(f't.{name}' for name in _COLUMNS.split(', '))}, i.name, i.revoked_at, u.upload_id "  # noqa: S608
    "FROM tickets t JOIN invitations i ON i.n = t.invitation LEFT JOIN uploads u ON u.ticket = t.id"
)
_RESERVE = (
    "UPDATE invitations SET files = files + 1, bytes = bytes + ?3, newest = ?2 "
    "WHERE n = ?1 AND revoked_at IS NULL AND ends_at > ?4 AND (max_files IS NULL OR files < max_files) "
    "AND (max_size IS NULL OR max_size >= ?3) AND (total IS NULL OR total - bytes >= ?3)"
)
_ISSUE = (
    "INSERT INTO tickets (id, invitation, path, bucket, key, size, content_type, part_size, ends_at, state, made_at, "
    "used_at, due_at) "
    "SELECT ?2, n, ?3, bucket, ?4, ?5, ?6, ?7, ends_at, 'reserved', ?8, ?8, "
    "CASE WHEN ends_at < ?9 THEN ends_at ELSE ?9 END FROM invitations WHERE n = ?1 AND newest = ?2 RETURNING id"
)
_FIND = f"{_WHOLE} WHERE t.id = ?1"
_OF = f"{_WHOLE} WHERE t.invitation = ?1 ORDER BY t.n"
_DUE = f"{_WHOLE} WHERE t.due_at <= ?1 ORDER BY t.due_at LIMIT ?2"
_BIND = "INSERT INTO uploads (upload, ticket, upload_id) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING"
_USE = (
    "UPDATE tickets SET used_at = ?2, due_at = CASE WHEN ends_at < ?3 THEN ends_at ELSE ?3 END, "
    "signed_until = CASE WHEN signed_until < ?4 THEN ?4 ELSE signed_until END, "
    "checksum = CASE WHEN ?5 = '' THEN checksum ELSE ?5 END "
    "WHERE id = ?1 AND state = 'reserved' AND ends_at > ?2 "
    "AND EXISTS (SELECT 1 FROM invitations i WHERE i.n = tickets.invitation AND i.revoked_at IS NULL) "
    "AND (?6 = 0 OR EXISTS (SELECT 1 FROM uploads u WHERE u.ticket = tickets.id AND u.upload = ?7)) RETURNING id"
)
_CLOSE = (
    "UPDATE tickets SET state = ?2, due_at = ?3 WHERE id = ?1 AND state = 'reserved' AND used_at <= ?4 RETURNING id"
)
_TAKE = "UPDATE tickets SET due_at = ?3 WHERE id = ?1 AND due_at = ?2 RETURNING id"
_POSTPONE = "UPDATE tickets SET due_at = ?2 WHERE id = ?1 AND due_at IS NOT NULL"
_RECEIVE = (
    "UPDATE tickets SET state = 'received', checksum = ?2, etag = ?3, done_at = ?4, due_at = NULL, mark = ?5 "
    "WHERE id = ?1 AND (state = 'reserved' OR state = 'expired') AND released = 0 RETURNING id"
)
_COUNT_ARRIVAL = (
    "UPDATE invitations SET arrivals = arrivals + 1 "
    "WHERE n = (SELECT invitation FROM tickets WHERE id = ?1 AND mark = ?2)"
)
_NUMBER_ARRIVAL = (
    "UPDATE tickets SET arrival = (SELECT arrivals FROM invitations WHERE n = tickets.invitation) "
    "WHERE id = ?1 AND mark = ?2"
)
_RELEASE = (
    "UPDATE tickets SET released = 1, mark = ?2, done_at = ?3, due_at = NULL "
    "WHERE id = ?1 AND (state = 'cancelled' OR state = 'expired') AND released = 0 RETURNING id"
)
_GIVE_BACK = (
    "UPDATE invitations SET files = files - 1, "
    "bytes = bytes - (SELECT size FROM tickets WHERE id = ?1) "
    "WHERE n = (SELECT invitation FROM tickets WHERE id = ?1 AND mark = ?2)"
)


class TicketState(StrEnum):
    """The state of a file. The last two give the reservation back once nothing can be stored any more."""

    RESERVED = "reserved"
    RECEIVED = "received"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class NewTicket(NamedTuple):
    """A ticket to issue: ``id`` is the SHA-256 of the guest's ticket. Sizes are bytes; part size 0 means one PUT."""

    id: bytes
    path: str
    key: str
    size: int
    content_type: str
    part_size: int


class Ticket(NamedTuple):
    """An issued ticket.

    ``signed_until`` is when the last grant that can make its object ends, None if there was none. After ``received``,
    ``checksum`` and ``etag`` are the object's; before, ``checksum`` is what the last PUT signed. ``upload_id`` is that
    of its upload in parts, "" before its first use.
    """

    new: NewTicket
    invitation: int
    bucket: str
    ends_at: datetime
    state: TicketState
    made_at: datetime
    used_at: datetime
    due_at: datetime | None
    signed_until: datetime | None
    checksum: str
    etag: str
    done_at: datetime | None
    released: bool
    name: str
    revoked: bool
    upload_id: str


class Use(NamedTuple):
    """One use of a ticket before a grant is signed for it.

    ``stores_until`` is when that grant ends, if it can make the object; ``upload_id`` must be the ticket's.
    """

    id: bytes
    stores_until: datetime | None = None
    checksum: str = ""
    upload_id: str = ""


class Tickets:
    """The tickets in ``database``. Every call may raise ``StateAway``."""

    def __init__(self, database: Database, outbox: StateOutbox | None = None) -> None:
        self._database, self._outbox = database, outbox

    async def reserve(self, invitation: Invitation, new: Sequence[NewTicket], now: datetime) -> list[bool]:
        """Reserve room for each file while the invitation has any; return which of them got a ticket."""
        at, until = to_micros(now), to_micros(now + UNUSED)
        number = invitation.number
        rows = await self._database.transact(
            [
                statement
                for each in new
                for statement in (
                    (_RESERVE, (number, each.id, each.size, at)),
                    (_ISSUE, (number, *each, at, until)),
                )
            ]
        )
        return [bool(issued) for issued in rows[1::2]]

    async def find(self, digests: Sequence[bytes]) -> list[Ticket | None]:
        """Return the tickets with these SHA-256s, in order."""
        found = await self._database.fetch_each(_FIND, [(digest,) for digest in digests])
        return [_ticket(rows[0]) if rows else None for rows in found]

    async def of(self, invitation: Invitation) -> list[Ticket]:
        """Return an invitation's tickets, in the order in which they were issued."""
        return [_ticket(row) for row in await self._database.fetch(_OF, invitation.number)]

    async def due(self, now: datetime, most: int) -> list[Ticket]:
        """Return the tickets that are due for a sweep."""
        return [_ticket(row) for row in await self._database.fetch(_DUE, to_micros(now), most)]

    async def bind(self, bucket: str, uploads: Sequence[tuple[bytes, str]]) -> None:
        """Bind an upload id to each ticket, unless the id or the ticket is bound already."""
        rows = sorted((_upload(bucket, upload_id), ticket, upload_id) for ticket, upload_id in uploads)
        await self._database.fetch_each(_BIND, rows)

    async def use(self, bucket: str, uses: Sequence[Use], now: datetime) -> list[bool]:
        """Record uses; return for each whether its ticket is still open and the upload is the ticket's own."""
        at, until = to_micros(now), to_micros(now + UNUSED)
        ordered = sorted(range(len(uses)), key=lambda place: uses[place].id)
        rows = await self._database.fetch_each(_USE, [_use_row(bucket, uses[place], at, until) for place in ordered])
        used = dict(zip(ordered, map(bool, rows), strict=True))
        return [used[place] for place in range(len(uses))]

    async def cancel(self, digest: bytes, now: datetime) -> bool:
        """End a ticket that its guest cancelled; return False if it has ended already."""
        at = to_micros(now)
        return bool(await self._database.fetch(_CLOSE, digest, TicketState.CANCELLED, at, _EVER))

    async def expire(self, digest: bytes, now: datetime, *, used_before: datetime | None = None) -> bool:
        """End a ticket that was not used since ``used_before`` (None: in any case); return whether it was open."""
        before = _EVER if used_before is None else to_micros(used_before)
        return bool(await self._database.fetch(_CLOSE, digest, TicketState.EXPIRED, to_micros(now), before))

    async def take(self, ticket: Ticket, now: datetime) -> bool:
        """Lease a due ticket for ``LEASE``; return False if another broker did."""
        assert ticket.due_at is not None, "it is due"
        return bool(await self._database.fetch(_TAKE, ticket.new.id, to_micros(ticket.due_at), to_micros(now + LEASE)))

    async def postpone(self, digest: bytes, until: datetime) -> None:
        """Make a ticket due again at ``until``."""
        await self._database.fetch(_POSTPONE, digest, to_micros(until))

    async def receive(self, digest: bytes, checksum: str, etag: str, now: datetime) -> bool:
        """Record a ticket as received; return False if it was so before, or its reservation is given back.

        The same commit gives it its number in the inbox. The invitation's counter is locked until then, so a query that
        sees a number sees all smaller ones.
        """
        mark = new_mark()
        received, *_ = await self._database.transact(
            [
                (_RECEIVE, (digest, checksum, etag, to_micros(now), mark)),
                (_COUNT_ARRIVAL, (digest, mark)),
                (_NUMBER_ARRIVAL, (digest, mark)),
                *await self._messages(digest, mark, checksum, etag, now),
            ]
        )
        return bool(received)

    async def _messages(self, digest: bytes, mark: bytes, checksum: str, etag: str, now: datetime) -> list[Statement]:
        """Return the statements that record the webhooks' messages about a file that came in."""
        if self._outbox is None or not self._outbox.wants(RECEIVED):
            return []
        (ticket,) = await self.find([digest])
        if ticket is None:
            return []
        new = ticket.new
        data = {"invitation": ticket.name, "path": new.path, "bucket": ticket.bucket, "key": new.key, "size": new.size}
        data |= {"content_type": new.content_type, "checksum": checksum, "etag": etag}
        changed = Changed("tickets", digest, mark)
        return self._outbox.adding(RECEIVED, changed, f"{ticket.bucket}/{new.key}", now, data)

    async def release(self, digest: bytes, now: datetime) -> bool:
        """Give the reservation of a cancelled or expired ticket back; return False if it was given back before."""
        mark = secrets.token_bytes(16)
        released, _ = await self._database.transact(
            [(_RELEASE, (digest, mark, to_micros(now))), (_GIVE_BACK, (digest, mark))]
        )
        return bool(released)


_EVER = (1 << 63) - 1


def _upload(bucket: str, upload_id: str) -> bytes:
    """Return the hash that names an upload: ids are unique in their bucket."""
    return sha256(f"{bucket}/{upload_id}".encode()).digest()


def _use_row(bucket: str, use: Use, at: int, until: int) -> Row:
    stores = 0 if use.stores_until is None else to_micros(use.stores_until)
    upload = _upload(bucket, use.upload_id) if use.upload_id else b""
    return (use.id, at, until, stores, use.checksum, int(bool(use.upload_id)), upload)


def _ticket(row: Row) -> Ticket:
    digest, invitation, path, bucket, key, size, content_type, part_size, ends_at, state, *rest = row
    made_at, used_at, due_at, signed_until, checksum, etag, done_at, released, name, revoked_at, upload_id = rest
    return Ticket(
        new=NewTicket(bytes(digest), path, key, size, content_type, part_size),
        invitation=invitation,
        bucket=bucket,
        ends_at=from_micros(ends_at),
        state=TicketState(state),
        made_at=from_micros(made_at),
        used_at=from_micros(used_at),
        due_at=from_micros(due_at),
        signed_until=from_micros(signed_until or None),
        checksum=checksum,
        etag=etag,
        done_at=from_micros(done_at),
        released=bool(released),
        name=name,
        revoked=revoked_at is not None,
        upload_id=upload_id or "",
    )
