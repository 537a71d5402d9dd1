"""What a broker's outbox promises, in SQLite and in PostgreSQL: a message is there exactly if its change is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from presignd.broker.state.database import Database
from presignd.broker.state.invitations import Invitations, NewInvitation
from presignd.broker.state.links import Links, NewLink, hash_of, ref_of
from presignd.broker.state.outbox import DEAD, LEASE, StateOutbox
from presignd.broker.state.sqlite import SqliteDatabase
from presignd.broker.state.tickets import NewTicket, Tickets
from presignd.webhooks.outbox import Away, Hook, Message
from tests.states import Connect

NOW = datetime(2026, 11, 29, 12, 0, 0, 123456, tzinfo=UTC)
HOUR = timedelta(hours=1)
DESK = Hook("desk", ("upload.received", "link.opened"), b"1")
AUDIT = Hook("audit", ("link.opened",), b"2")
LINK = NewLink(hash_of("one"), "scanner-1", "b", "k", "", 5, "", "\u00fc.pdf", "attachment", "", "", NOW, None, None)


class Broker:
    """One broker at the state, with both webhooks."""

    def __init__(self, database: Database) -> None:
        self.outbox = StateOutbox(database)
        self.outbox.want([DESK, AUDIT])
        self.links, self.tickets = Links(database, self.outbox), Tickets(database, self.outbox)
        self.invitations = Invitations(database)

    async def due(self, webhook: str = "desk", now: datetime = NOW) -> list[Message]:
        return await self.outbox.due(webhook, now, 100)


@pytest.fixture
async def brokers(connect: Connect) -> AsyncIterator[tuple[Broker, Broker]]:
    databases = connect(), connect()
    one, other = map(Broker, databases)
    yield one, other
    for database in databases:
        await database.close()


@pytest.fixture
def broker(brokers: tuple[Broker, Broker]) -> Broker:
    return brokers[0]


async def test_each_opening_that_counts_is_told_to_each_webhook_and_no_other(broker: Broker) -> None:
    await broker.links.put([LINK, LINK._replace(id=hash_of("two"), max_downloads=1)])
    assert await broker.links.open(LINK.id, NOW) is not None
    assert await broker.links.spend(hash_of("two"), NOW) is not None
    assert await broker.links.spend(hash_of("two"), NOW) is None  # none is left
    assert await broker.links.open(hash_of("two"), NOW) is None  # it has a limit
    assert await broker.links.open(hash_of("none"), NOW) is None
    told = await broker.due()
    assert [(one.event, one.subject, one.at, one.tries) for one in told] == [
        ("link.opened", ref_of(digest), NOW, 0) for digest in (LINK.id, hash_of("two"))
    ]
    assert told[0].data == {
        "ref": ref_of(LINK.id),
        "token": "scanner-1",
        "bucket": "b",
        "key": "k",
        "filename": "\u00fc.pdf",
    }
    assert [one.id for one in await broker.due("audit")] == [one.id for one in told]


async def test_an_opening_that_is_taken_back_is_not_told(broker: Broker) -> None:
    await broker.links.put([LINK])
    await broker.links.open(LINK.id, NOW)
    await broker.links.open(LINK.id, NOW + HOUR)
    await broker.links.take_back(LINK.id, NOW + HOUR)
    assert (await broker.outbox.waiting())["desk"].messages == 1


async def test_a_file_that_came_in_is_told_once_however_many_say_so(brokers: tuple[Broker, Broker]) -> None:
    one, other = brokers
    new = NewInvitation(hash_of("i"), "march", "b", "in/", "", "", NOW, NOW + 24 * HOUR, None, None, None)
    made = await one.invitations.make(new)
    assert made is not None
    ticket = NewTicket(b"t" * 32, "a/b.pdf", "in/x/a/b.pdf", 10, "application/pdf", 0)
    assert await one.tickets.reserve(made, [ticket], NOW) == [True]
    assert not await one.tickets.receive(b"n" * 32, "", "", NOW)
    said = await asyncio.gather(*(each.tickets.receive(ticket.id, "md5:1", "1", NOW) for each in (one, other) * 5))
    assert said.count(True) == 1
    [message] = await one.due()
    assert (message.event, message.data) == (
        "upload.received",
        {"invitation": "march", "path": "a/b.pdf", "bucket": "b", "key": "in/x/a/b.pdf", "size": 10}
        | {"content_type": "application/pdf", "checksum": "md5:1", "etag": "1"},
    )
    assert await one.due("audit") == []


async def test_each_message_is_leased_by_one_broker_and_comes_again_if_that_dies(
    brokers: tuple[Broker, Broker],
) -> None:
    one, other = brokers
    await one.links.put([LINK._replace(id=hash_of(str(number))) for number in range(20)])
    for number in range(20):
        await one.links.open(hash_of(str(number)), NOW)
    taken = await asyncio.gather(*(each.due() for each in (one, other) * 3))
    assert sorted(message.number for some in taken for message in some) == sorted({m.number for s in taken for m in s})
    assert sum(map(len, taken)) == 20
    assert await one.due() == []
    assert await one.outbox.next_try("desk", NOW) == NOW + LEASE
    assert len(await other.due(now=NOW + LEASE)) == 20


async def test_what_fails_waits_and_holds_up_its_subject_alone(broker: Broker) -> None:
    await broker.links.put([LINK, LINK._replace(id=hash_of("two"))])
    for digest in (LINK.id, LINK.id, hash_of("two")):
        await broker.links.open(digest, NOW)
    first, other = await broker.due()
    await broker.outbox.settle([other.number], {first.number: NOW + HOUR})
    assert await broker.due(now=NOW + LEASE) == []
    assert await broker.outbox.has_failed("desk")
    [again] = await broker.due(now=NOW + HOUR)
    assert (again.id, again.tries) == (first.id, 1)
    await broker.outbox.settle([again.number], {})
    [second] = await broker.due(now=NOW + HOUR)
    assert second.subject == first.subject
    await broker.outbox.settle([second.number], {})
    assert not await broker.outbox.has_failed("desk")
    assert await broker.outbox.next_try("desk", NOW) is None
    waiting = await broker.outbox.waiting()
    assert {name: (each.messages, each.oldest) for name, each in waiting.items()} == {"audit": (3, NOW)}


async def test_a_webhook_that_is_off_is_off_for_all_brokers_until_it_is_on_or_moves(
    brokers: tuple[Broker, Broker],
) -> None:
    one, other = brokers
    await one.links.put([LINK])
    await one.links.open(LINK.id, NOW)
    assert await one.outbox.switch_off(DESK, NOW) == 1
    await other.links.open(LINK.id, NOW)
    assert (await one.outbox.waiting()).keys() == {"audit"}
    assert await other.outbox.configure([DESK, AUDIT], NOW) == {"desk": NOW}
    assert [await other.outbox.off_since(hook.name) for hook in (DESK, AUDIT)] == [NOW, None]
    await one.outbox.switch_on(DESK)
    assert await other.outbox.off_since("desk") is None
    await other.links.open(LINK.id, NOW)
    assert len(await one.due()) == 1
    assert await one.outbox.switch_off(DESK, NOW) == 1
    assert await one.outbox.configure([DESK._replace(address=b"3")], NOW) == {}
    await one.links.open(LINK.id, NOW)
    assert (await one.outbox.waiting())["desk"].messages == 1


async def test_what_is_being_sent_is_not_returned_and_no_more_is_leased_than_asked_for(broker: Broker) -> None:
    names = [hash_of(str(number)) for number in range(5)]
    await broker.links.put([LINK._replace(id=name) for name in names])
    for name in names:
        await broker.links.open(name, NOW)
    here = [message.number for message in await broker.outbox.due("desk", NOW, 2)]
    others = [message.number for message in await broker.due()]
    assert (len(here), len(others)) == (2, 3)
    again = await broker.outbox.due("desk", NOW + LEASE, 9, here)
    assert [message.number for message in again] == others


async def test_what_was_due_for_too_long_is_dropped_and_the_rest_stays(broker: Broker) -> None:
    await broker.links.put([LINK])
    for hours in range(3):
        await broker.links.open(LINK.id, NOW + hours * HOUR)
    assert await broker.outbox.drop("desk", NOW + HOUR) == 1
    waiting = await broker.outbox.waiting()
    assert {name: each.messages for name, each in waiting.items()} == {"desk": 2, "audit": 3}


async def test_what_nobody_delivers_for_a_week_is_deleted(broker: Broker) -> None:
    await broker.links.put([LINK])
    await broker.links.open(LINK.id, NOW)
    await broker.outbox.configure([DESK], NOW + DEAD)
    assert (await broker.outbox.waiting()).keys() == {"desk", "audit"}
    await broker.outbox.configure([DESK], NOW + DEAD + timedelta(microseconds=1))
    assert await broker.outbox.waiting() == {}


async def test_without_webhooks_nothing_is_recorded(broker: Broker) -> None:
    await broker.outbox.configure([], NOW)
    await broker.links.put([LINK])
    opened = await broker.links.open(LINK.id, NOW)
    assert opened is not None
    assert opened.opened == 1
    assert await broker.outbox.waiting() == {}


async def test_a_state_that_is_away_is_an_outbox_that_is_away(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(b"no database " * 1000)
    database = SqliteDatabase(tmp_path / "state.db")
    outbox = StateOutbox(database)
    assert await outbox.configure([DESK], NOW) == {}
    with pytest.raises(Away):
        await outbox.due("desk", NOW, 1)
    await database.close()
