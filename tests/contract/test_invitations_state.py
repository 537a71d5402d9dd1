"""What the state promises of invitations, in SQLite and in PostgreSQL: limits hold, nothing is given back twice."""

from __future__ import annotations

import asyncio
import secrets
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from presignd.broker.state.arrivals import Arrival, Arrivals
from presignd.broker.state.database import Database
from presignd.broker.state.invitations import Invitation, Invitations, NewInvitation
from presignd.broker.state.links import hash_of, ref_of
from presignd.broker.state.migrations import SQLITE, migrations
from presignd.broker.state.sqlite import APPLICATION_ID, SqliteDatabase
from presignd.broker.state.tickets import LEASE, UNUSED, NewTicket, Ticket, Tickets, TicketState, Use
from presignd.system.clock import to_micros
from tests.states import Connect

NOW = datetime(2026, 11, 29, 12, 0, 0, 123456, tzinfo=UTC)
HOUR = timedelta(hours=1)
TICK = timedelta(microseconds=1)


class State:
    """One broker's view of the state."""

    def __init__(self, database: Database) -> None:
        self.invitations, self.tickets = Invitations(database), Tickets(database)
        self.arrivals = Arrivals(database)

    async def invite(self, **changes: Any) -> Invitation:
        made = await self.invitations.make(an_invitation(**changes))
        assert made is not None
        return made

    async def issue(self, invitation: Invitation, *, at: datetime = NOW, **changes: Any) -> Ticket:
        new = a_ticket(**changes)
        assert await self.tickets.reserve(invitation, [new], at) == [True]
        return await self.ticket(new.id)

    async def receive(self, invitation: Invitation, **changes: Any) -> Ticket:
        ticket = await self.issue(invitation, **changes)
        assert await self.tickets.receive(ticket.new.id, "md5:1", "1", NOW + HOUR)
        return await self.ticket(ticket.new.id)

    async def ticket(self, digest: bytes) -> Ticket:
        (found,) = await self.tickets.find([digest])
        assert found is not None
        return found

    async def counts(self) -> tuple[int, int]:
        found = await self.invitations.named("march")
        assert found is not None
        return found.files, found.bytes


@asynccontextmanager
async def opened(connect: Connect) -> AsyncIterator[State]:
    database = connect()
    try:
        yield State(database)
    finally:
        await database.close()


@pytest.fixture
async def state(connect: Connect) -> AsyncIterator[State]:
    async with opened(connect) as state:
        yield state


def an_invitation(**changes: Any) -> NewInvitation:
    invitation = NewInvitation(
        id=hash_of("one"),
        name="march",
        bucket="b",
        prefix="incoming/",
        note="Scans for M\u00e4rz",
        pin="",
        made_at=NOW,
        ends_at=NOW + 24 * 30 * HOUR,
        max_files=None,
        max_size=None,
        total=None,
    )
    return invitation._replace(**changes)


def a_ticket(**changes: Any) -> NewTicket:
    ticket = NewTicket(secrets.token_bytes(32), "a/b.pdf", "incoming/x/a/b.pdf", 10, "application/pdf", 0)
    return ticket._replace(**changes)


# --- invitations ------------------------------------------------------------------------------------
async def test_an_invitation_is_found_as_it_was_made(state: State) -> None:
    new = an_invitation(max_files=20, max_size=5, total=50, pin="scrypt:x")
    made = await state.invitations.make(new)
    assert made is not None
    assert (made.new, made.files, made.bytes, made.revoked_at) == (new, 0, 0, None)
    assert await state.invitations.find(new.id) == made
    assert await state.invitations.named("march") == made
    assert await state.invitations.find(hash_of("other")) is None
    assert await state.invitations.named("april") is None


async def test_a_name_is_taken_once(state: State) -> None:
    first = await state.invite()
    assert await state.invitations.make(an_invitation(id=hash_of("two"))) is None
    second = await state.invite(id=hash_of("two"), name="april")
    assert await state.invitations.all() == [first, second]


async def test_an_invitation_is_revoked_once_and_its_tickets_are_due(state: State) -> None:
    ticket = await state.issue(await state.invite())
    revoked = await state.invitations.revoke("march", NOW + HOUR)
    assert revoked is not None
    assert revoked.revoked_at == NOW + HOUR
    assert await state.invitations.revoke("march", NOW + 2 * HOUR) is None
    assert await state.invitations.revoke("april", NOW) is None
    assert [each.new.id for each in await state.tickets.due(NOW + 2 * HOUR, 10)] == [ticket.new.id]
    assert (await state.ticket(ticket.new.id)).revoked


async def test_pin_tries_are_limited_and_given_back(state: State) -> None:
    digest = (await state.invite(pin="scrypt:x")).new.id
    tries = [state.invitations.take_pin_try(digest, NOW, most=5, window=HOUR) for _ in range(20)]
    assert sum(await asyncio.gather(*tries)) == 5
    await state.invitations.forgive(digest)
    assert await state.invitations.take_pin_try(digest, NOW, most=5, window=HOUR)


# --- reservations -----------------------------------------------------------------------------------
async def test_a_ticket_is_found_as_it_was_issued(state: State) -> None:
    invitation = await state.invite(total=10)
    new = a_ticket()
    assert await state.tickets.reserve(invitation, [new], NOW) == [True]
    ticket = await state.ticket(new.id)
    assert ticket == Ticket(
        new=new,
        invitation=invitation.number,
        bucket="b",
        ends_at=invitation.new.ends_at,
        state=TicketState.RESERVED,
        made_at=NOW,
        used_at=NOW,
        due_at=NOW + UNUSED,
        signed_until=None,
        checksum="",
        etag="",
        done_at=None,
        released=False,
        name="march",
        revoked=False,
        upload_id="",
    )
    assert await state.tickets.find([hash_of("none"), new.id]) == [None, ticket]
    assert await state.tickets.of(invitation) == [ticket]
    assert await state.counts() == (1, 10)


@pytest.mark.parametrize(
    ("limits", "sizes", "issued"),
    [
        ({"max_files": 2}, [1, 1, 1], [True, True, False]),
        ({"max_size": 10}, [10, 11, 0], [True, False, True]),
        ({"total": 10}, [6, 5, 4, 1, 0], [True, False, True, False, True]),
        ({"total": 0}, [0, 1], [True, False]),
        ({}, [1 << 40, 1 << 42], [True, True]),
        ({"ends_at": NOW}, [1], [False]),
        ({"ends_at": NOW + TICK}, [1], [True]),
    ],
)
async def test_a_file_gets_a_ticket_only_within_the_limits(
    state: State, limits: dict[str, Any], sizes: list[int], issued: list[bool]
) -> None:
    invitation = await state.invite(**limits)
    new = [a_ticket(size=size) for size in sizes]
    assert await state.tickets.reserve(invitation, new, NOW) == issued
    found = await state.tickets.find([each.id for each in new])
    assert [each is not None for each in found] == issued
    taken = [size for size, got in zip(sizes, issued, strict=True) if got]
    assert await state.counts() == (len(taken), sum(taken))


async def test_two_hundred_that_race_for_the_last_slot_at_two_brokers_get_one(connect: Connect) -> None:
    async with opened(connect) as one, opened(connect) as other:
        invitation = await one.invite(max_files=3)
        await one.issue(invitation)
        await one.issue(invitation)
        asked = ((one, other)[n % 2].tickets.reserve(invitation, [a_ticket()], NOW) for n in range(200))
        assert sum(got for (got,) in await asyncio.gather(*asked)) == 1
        assert await one.counts() == (3, 30)
        assert len(await other.tickets.of(invitation)) == 3


async def test_bytes_hold_where_two_brokers_race(connect: Connect) -> None:
    async with opened(connect) as one, opened(connect) as other:
        invitation = await one.invite(total=1000)
        batches = [[a_ticket(size=size) for size in (7, 70, 3)] for _ in range(60)]
        asked = ((one, other)[n % 2].tickets.reserve(invitation, batch, NOW) for n, batch in enumerate(batches))
        got = await asyncio.gather(*asked)
        new = [new for batch in batches for new in batch]
        taken = sum(each.size for each, is_in in zip(new, chain.from_iterable(got), strict=True) if is_in)
        assert taken <= 1000
        assert await one.counts() == (sum(map(sum, got)), taken)


async def test_a_revoked_invitation_reserves_nothing(state: State) -> None:
    invitation = await state.invite()
    await state.invitations.revoke("march", NOW)
    assert await state.tickets.reserve(invitation, [a_ticket()], NOW) == [False]


# --- use --------------------------------------------------------------------------------------------
async def test_a_use_prolongs_a_ticket_and_remembers_what_was_signed(state: State) -> None:
    ticket = await state.issue(await state.invite())
    later = NOW + 47 * HOUR
    use = Use(ticket.new.id, stores_until=later + HOUR, checksum="md5:1")
    assert await state.tickets.use("b", [use, Use(ticket.new.id, stores_until=later)], later) == [True, True]
    found = await state.ticket(ticket.new.id)
    assert (found.used_at, found.due_at, found.signed_until) == (later, later + UNUSED, later + HOUR)
    assert found.checksum == "md5:1"


async def test_a_ticket_is_due_at_the_end_of_its_invitation(state: State) -> None:
    ticket = await state.issue(await state.invite(ends_at=NOW + HOUR))
    assert ticket.due_at == NOW + HOUR
    assert await state.tickets.use("b", [Use(ticket.new.id)], NOW + HOUR - TICK) == [True]
    assert (await state.ticket(ticket.new.id)).due_at == NOW + HOUR
    assert await state.tickets.use("b", [Use(ticket.new.id)], NOW + HOUR) == [False]


async def test_a_ticket_that_has_ended_takes_no_use(state: State) -> None:
    invitation = await state.invite()
    cancelled, expired, received = [await state.issue(invitation) for _ in range(3)]
    assert await state.tickets.cancel(cancelled.new.id, NOW)
    assert await state.tickets.expire(expired.new.id, NOW)
    assert await state.tickets.receive(received.new.id, "md5:1", "1", NOW)
    uses = [Use(each.new.id) for each in (cancelled, expired, received)]
    assert await state.tickets.use("b", [*uses, Use(hash_of("none"))], NOW) == [False] * 4


async def test_no_ticket_of_a_revoked_invitation_takes_a_use(state: State) -> None:
    ticket = await state.issue(await state.invite())
    await state.invitations.revoke("march", NOW)
    assert await state.tickets.use("b", [Use(ticket.new.id)], NOW) == [False]


async def test_an_upload_belongs_to_the_ticket_that_used_it_first(state: State) -> None:
    invitation = await state.invite()
    one, other = await state.issue(invitation, part_size=5), await state.issue(invitation, part_size=5)
    await state.tickets.bind("b", [(one.new.id, "up-1")])
    await state.tickets.bind("b", [(other.new.id, "up-1"), (one.new.id, "up-2")])
    uses = [Use(one.new.id, upload_id="up-1"), Use(one.new.id, upload_id="up-2"), Use(other.new.id, upload_id="up-1")]
    assert await state.tickets.use("b", uses, NOW) == [True, False, False]
    assert (await state.ticket(one.new.id)).upload_id == "up-1"
    await state.tickets.bind("b", [(other.new.id, "up-2")])
    assert await state.tickets.use("b", [Use(other.new.id, upload_id="up-2")], NOW) == [True]


async def test_brokers_that_bind_one_upload_at_once_agree(connect: Connect) -> None:
    async with AsyncExitStack() as stack:
        brokers = [await stack.enter_async_context(opened(connect)) for _ in range(3)]
        invitation = await brokers[0].invite()
        tickets = [await brokers[0].issue(invitation) for _ in range(12)]
        ids = [f"up-{n}" for n in range(12)]
        calls = [
            broker.tickets.bind(
                "b", [(ticket.new.id, upload) for ticket, upload in zip(tickets, ids[n:] + ids[:n], strict=True)]
            )
            for broker in brokers
            for n in range(12)
        ]
        await asyncio.gather(*calls)
        bound = [(await brokers[0].ticket(ticket.new.id)).upload_id for ticket in tickets]
        assert sorted(bound) == sorted(ids)


# --- ends -------------------------------------------------------------------------------------------
async def test_a_received_file_is_a_fact_and_stays_counted(state: State) -> None:
    ticket = await state.issue(await state.invite())
    assert await state.tickets.receive(ticket.new.id, "md5:1", "1", NOW)
    assert not await state.tickets.receive(ticket.new.id, "md5:2", "2", NOW)
    assert not await state.tickets.cancel(ticket.new.id, NOW)
    assert not await state.tickets.release(ticket.new.id, NOW)
    found = await state.ticket(ticket.new.id)
    assert (found.state, found.checksum, found.etag, found.done_at) == (TicketState.RECEIVED, "md5:1", "1", NOW)
    assert found.due_at is None
    assert await state.counts() == (1, 10)


async def test_a_reservation_is_given_back_once_however_many_do_it(connect: Connect) -> None:
    async with opened(connect) as one, opened(connect) as other:
        invitation = await one.invite(total=20)
        ticket = await one.issue(invitation)
        await one.issue(invitation)
        assert not await one.tickets.release(ticket.new.id, NOW), "it is still open"
        assert await one.tickets.cancel(ticket.new.id, NOW)
        done = await asyncio.gather(*((one, other)[n % 2].tickets.release(ticket.new.id, NOW) for n in range(40)))
        assert sum(done) == 1
        assert await one.counts() == (1, 10)
        assert not await one.tickets.receive(ticket.new.id, "", "", NOW), "what was given back is not received"


async def test_reserving_and_giving_back_at_once_never_lose_a_count(connect: Connect) -> None:
    async with opened(connect) as one, opened(connect) as other:
        invitation = await one.invite(max_files=10)
        brokers = (one, other)

        async def turn(number: int) -> None:
            broker = brokers[number % 2]
            new = a_ticket()
            if await broker.tickets.reserve(invitation, [new], NOW) == [True]:
                await broker.tickets.cancel(new.id, NOW)
                await broker.tickets.release(new.id, NOW)
            if number == 50:
                await broker.invitations.revoke("march", NOW + HOUR)

        await asyncio.gather(*map(turn, range(100)))
        assert await one.counts() == (0, 0)


async def test_an_expired_file_that_is_there_after_all_is_received(state: State) -> None:
    ticket = await state.issue(await state.invite())
    assert await state.tickets.expire(ticket.new.id, NOW)
    assert await state.tickets.receive(ticket.new.id, "md5:1", "1", NOW)
    assert not await state.tickets.release(ticket.new.id, NOW)


async def test_only_a_ticket_that_was_not_used_meanwhile_expires(state: State) -> None:
    ticket = await state.issue(await state.invite())
    assert await state.tickets.use("b", [Use(ticket.new.id)], NOW + HOUR) == [True]
    assert not await state.tickets.expire(ticket.new.id, NOW + UNUSED, used_before=NOW)
    assert await state.tickets.expire(ticket.new.id, NOW + HOUR + UNUSED, used_before=NOW + HOUR)


async def test_what_is_due_is_taken_by_one_broker(connect: Connect) -> None:
    async with opened(connect) as one, opened(connect) as other:
        invitation = await one.invite()
        await one.issue(invitation, at=NOW + HOUR)
        ticket = await one.issue(invitation)
        now = NOW + UNUSED
        assert await one.tickets.due(now - TICK, 10) == []
        (due,) = await one.tickets.due(now, 10)
        assert due.new.id == ticket.new.id
        taken = await asyncio.gather(*((one, other)[n % 2].tickets.take(due, now) for n in range(10)))
        assert sum(taken) == 1
        assert await other.tickets.due(now, 10) == []
        assert [each.new.id for each in await other.tickets.due(now + LEASE, 1)] == [ticket.new.id]
        await one.tickets.postpone(ticket.new.id, now + 24 * HOUR)
        assert (await one.ticket(ticket.new.id)).due_at == now + 24 * HOUR


async def test_reservations_are_there_for_the_next_broker(connect: Connect) -> None:
    async with opened(connect) as state:
        ticket = await state.issue(await state.invite())
    async with opened(connect) as state:
        assert await state.ticket(ticket.new.id) == ticket
        assert await state.counts() == (1, 10)


# --- arrivals ---------------------------------------------------------------------------------------
async def test_what_came_in_is_listed_in_the_order_in_which_it_was_received(state: State) -> None:
    invitation = await state.invite()
    later = await state.issue(invitation)
    first = await state.receive(invitation, path="b.pdf", part_size=5)
    assert await state.tickets.receive(later.new.id, "", "2", NOW + 2 * HOUR)
    one, two = await state.arrivals.after(invitation, 0, 10)
    assert one == Arrival(
        ref=ref_of(first.new.id),
        number=1,
        path="b.pdf",
        bucket="b",
        key=first.new.key,
        size=10,
        content_type="application/pdf",
        part_size=5,
        checksum="md5:1",
        etag="1",
        received_at=NOW + HOUR,
    )
    assert (two.ref, two.number, two.checksum, two.received_at) == (ref_of(later.new.id), 2, "", NOW + 2 * HOUR)
    assert await state.arrivals.after(invitation, 1, 10) == [two]
    assert await state.arrivals.after(invitation, 0, 1) == [one]
    assert await state.arrivals.after(await state.invite(id=hash_of("two"), name="april"), 0, 10) == []


async def test_only_what_is_received_is_listed(state: State) -> None:
    invitation = await state.invite()
    cancelled, expired, _ = [await state.issue(invitation) for _ in range(3)]
    assert await state.tickets.cancel(cancelled.new.id, NOW)
    assert await state.tickets.expire(expired.new.id, NOW)
    assert await state.tickets.release(cancelled.new.id, NOW)
    assert await state.arrivals.after(invitation, 0, 10) == []


async def test_what_is_acknowledged_is_off_the_list_once(state: State) -> None:
    invitation = await state.invite()
    first, second = await state.receive(invitation), await state.receive(invitation)
    other = await state.invite(id=hash_of("two"), name="april")
    refs = [ref_of(first.new.id), ref_of(first.new.id), "none", "", "\ud800", ref_of(hash_of("none"))]
    assert await state.arrivals.ack(other, refs, NOW) == [], "it is another's"
    (acked,) = await state.arrivals.ack(invitation, refs, NOW)
    assert acked.ref == refs[0]
    assert await state.arrivals.ack(invitation, refs, NOW) == []
    assert [each.ref for each in await state.arrivals.after(invitation, 0, 10)] == [ref_of(second.new.id)]
    assert await state.arrivals.ack(invitation, ["none"], NOW) == []


async def test_who_asks_for_what_comes_after_a_number_misses_none_at_two_brokers(connect: Connect) -> None:
    async with opened(connect) as one, opened(connect) as other:
        invitation = await one.invite()
        tickets = [await one.issue(invitation) for _ in range(60)]
        seen: list[Arrival] = []

        async def follow() -> None:
            while len(seen) < len(tickets):
                seen.extend(await other.arrivals.after(invitation, seen[-1].number if seen else 0, 7))

        received = [(one, other)[n % 2].tickets.receive(each.new.id, "", "", NOW) for n, each in enumerate(tickets)]
        async with asyncio.timeout(60):
            *done, _ = await asyncio.gather(*received, follow())
        assert all(done)
        assert [each.number for each in seen] == [*range(1, 61)]
        assert {each.ref for each in seen} == {ref_of(each.new.id) for each in tickets}


async def test_files_received_before_there_were_inboxes_are_listed(tmp_path: Path) -> None:
    file = tmp_path / "state.db"
    connection = sqlite3.connect(file, isolation_level=None)
    for statement in chain.from_iterable(migrations(SQLITE)[:2]):
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute("PRAGMA user_version = 2")
    made = f"{to_micros(NOW)}, {to_micros(NOW + HOUR)}"
    connection.execute(
        "INSERT INTO invitations (id, name, bucket, prefix, note, pin, made_at, ends_at) "
        f"VALUES (x'01', 'march', 'b', 'in/', '', '', {made})"
    )
    for digest, ticket_state in (("02", "reserved"), ("03", "received"), ("04", "received")):
        connection.execute(
            "INSERT INTO tickets (id, invitation, path, bucket, key, size, content_type, part_size, ends_at, state, "
            f"made_at, used_at, done_at) VALUES (x'{digest * 32}', 1, 'a', 'b', 'in/a', 1, '', 0, 1, '{ticket_state}', "
            "1, 1, 1)"
        )
    connection.close()
    async with opened(lambda: SqliteDatabase(file)) as state:
        invitation = await state.invitations.named("march")
        assert invitation is not None
        old = await state.arrivals.after(invitation, 0, 10)
        assert [each.number for each in old] == [2, 3]
        await state.receive(invitation, at=NOW)
        assert [each.number for each in await state.arrivals.after(invitation, 3, 10)] == [4]
