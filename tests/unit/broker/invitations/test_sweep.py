"""What becomes of files that guests leave unfinished, and of their reservations."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
import structlog
from structlog.testing import capture_logs

from presignd.broker.invitations.policy import PART, SETTLING, STORING
from presignd.broker.invitations.sweep import AT_A_TIME, Sweeper
from presignd.broker.state.invitations import Invitation, Invitations, NewInvitation
from presignd.broker.state.links import hash_of
from presignd.broker.state.tickets import LEASE, UNUSED, NewTicket, Ticket, Tickets, TicketState, Use
from presignd.store.signed import SignedStore
from tests.fake_bucket import FakeBucket, Object, Upload
from tests.memory_state import MemoryDatabase, run

NOW = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)
SETTLED = NOW + STORING + SETTLING


class Left:
    """An invitation, and a store, as a guest left them."""

    def __init__(self) -> None:
        self.database = database = MemoryDatabase()
        self.bucket = FakeBucket(honours=True, mixes=False)
        self.invitations, self.tickets = Invitations(database), Tickets(database)
        self.sweeper = Sweeper(database, lambda: cast("SignedStore", self.bucket))
        ends = NOW + timedelta(days=14)
        new = NewInvitation(hash_of("one"), "march", "b", "in/", "", "", NOW, ends, None, None, None)
        made = run(self.invitations.make(new))
        assert made is not None
        self.invitation: Invitation = made

    def ticket(self, name: str = "a", size: int = 10, **use: Any) -> bytes:
        """Issue a ticket, and use it."""
        new = NewTicket(hash_of(name), name, f"in/x/{name}", size, "text/plain", PART if size > PART else 0)
        assert run(self.tickets.reserve(self.invitation, [new], NOW)) == [True]
        if upload_id := use.get("upload_id"):
            run(self.tickets.bind("b", [(new.id, upload_id)]))
            self.bucket.uploads[upload_id] = Upload(new.key)
        if use:
            assert run(self.tickets.use("b", [Use(new.id, **use)], NOW)) == [True]
        return new.id

    def found(self, ticket: bytes) -> Ticket:
        (found,) = run(self.tickets.find([ticket]))
        assert found is not None
        return found

    def sweep(self, now: datetime) -> list[str]:
        """Sweep once; return the events."""
        with capture_logs() as events:
            run(self.sweeper.run(now))
        return [event["event"] for event in events]

    def held(self) -> int:
        found = run(self.invitations.named("march"))
        assert found is not None
        return found.files


@pytest.fixture
def left() -> Iterator[Left]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))
    found = Left()
    yield found
    run(found.database.close())


def test_a_ticket_that_nobody_used_gives_its_room_back(left: Left) -> None:
    ticket = left.ticket()
    assert left.sweep(NOW + UNUSED - timedelta(seconds=1)) == []
    assert left.held() == 1
    assert left.sweep(NOW + UNUSED) == ["upload.ended"]
    assert left.held() == 0
    assert left.found(ticket).state is TicketState.EXPIRED


def test_an_upload_in_parts_is_aborted_by_its_recorded_id(left: Left) -> None:
    left.ticket(size=3 * PART, upload_id="up")
    left.sweep(NOW + UNUSED)
    assert left.bucket.uploads == {}
    assert left.held() == 0


def test_a_whole_file_whose_guest_went_away_is_received(left: Left) -> None:
    ticket = left.ticket(stores_until=NOW + STORING)
    left.bucket.objects["in/x/a"] = Object(10, "f" * 32)
    assert left.sweep(NOW + UNUSED) == ["upload.received"]
    found = left.found(ticket)
    assert (found.state, found.checksum) == (TicketState.RECEIVED, "md5:" + "f" * 32)
    assert left.held() == 1


def test_what_is_not_whole_is_removed(left: Left) -> None:
    left.ticket(stores_until=NOW + STORING)
    left.bucket.objects["in/x/a"] = Object(9, "f" * 32)
    assert left.sweep(NOW + UNUSED) == ["upload.ended"]
    assert left.bucket.objects == {}
    assert left.held() == 0


def test_a_cancelled_file_holds_its_room_until_nothing_can_store_it(left: Left) -> None:
    ticket = left.ticket(stores_until=NOW + STORING)
    run(left.tickets.cancel(ticket, NOW))
    assert left.sweep(NOW) == []
    left.bucket.objects["in/x/a"] = Object(10, "f" * 32)
    assert left.sweep(SETTLED - timedelta(seconds=1)) == []
    assert left.held() == 1
    assert left.sweep(SETTLED) == ["upload.ended"]
    assert left.bucket.objects == {}
    assert left.held() == 0


def test_a_store_that_is_away_is_asked_again(left: Left) -> None:
    left.ticket(size=3 * PART, upload_id="up")
    left.bucket.away = True
    assert left.sweep(NOW + UNUSED) == ["upload.not_ended"]
    assert left.held() == 1
    left.bucket.away = False
    assert left.sweep(NOW + UNUSED) == [], "not at once"
    assert left.sweep(NOW + UNUSED + LEASE) == ["upload.ended"]
    assert left.held() == 0


def test_a_revoked_invitation_is_swept_at_once(left: Left) -> None:
    left.ticket(size=3 * PART, upload_id="up")
    run(left.invitations.revoke("march", NOW))
    left.sweep(NOW)
    assert left.bucket.uploads == {}
    assert left.held() == 0


def test_what_was_received_is_left_alone(left: Left) -> None:
    ticket = left.ticket(stores_until=NOW + STORING)
    left.bucket.objects["in/x/a"] = Object(10, "f" * 32)
    run(left.tickets.receive(ticket, "md5:" + "f" * 32, "f" * 32, NOW))
    run(left.invitations.revoke("march", NOW))
    assert left.sweep(NOW + timedelta(days=99)) == []
    run(left.sweeper.end(ticket, NOW + timedelta(days=99)))
    assert set(left.bucket.objects) == {"in/x/a"}


def test_a_sweep_does_so_many_at_a_time(left: Left) -> None:
    for number in range(AT_A_TIME + 1):
        left.ticket(f"file-{number}")
    left.sweep(NOW + UNUSED)
    assert left.held() == 1
    left.sweep(NOW + UNUSED)
    assert left.held() == 0
