"""What came in by invitations, in the ledger: once, with its state, and known again in the folder."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from presignd.ledger import InboxSummary, Ledger, NewArrival, open_ledger
from presignd.model import Fingerprint

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)
HUGE = 1 << 64
"""An inode number beyond SQLite's integers."""


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    found = await open_ledger(tmp_path)
    yield found
    await found.close(clean=True)


def new(ref: str = "a" * 16, **changes: Any) -> NewArrival:
    return NewArrival(ref, "bucket", f"in/{ref}", "Scans/a.txt", 5, "md5:00", 0, NOW)._replace(**changes)


async def test_a_file_is_recorded_once_and_goes_through_its_states(ledger: Ledger) -> None:
    assert await ledger.arrivals.inboxes() == []
    first = new(path="lone \ud800 surrogate")
    (recorded,) = await ledger.arrivals.record("scans", [first])
    assert recorded.new == first._replace(path="lone \\ud800 surrogate")
    assert (recorded.state, recorded.place, recorded.is_placed) == ("waiting", b"", False)
    await ledger.arrivals.placing(first.ref, b"a\xff.txt", HUGE, 7)
    (placing,) = await ledger.arrivals.record("scans", [first])
    assert (placing.state, placing.place, placing.ino, placing.mtime_ns) == ("placing", b"a\xff.txt", HUGE, 7)
    assert await ledger.arrivals.inboxes() == [InboxSummary("scans", 1, 0, 0, None)]
    await ledger.arrivals.placed(first.ref, NOW)
    (placed,) = await ledger.arrivals.record("scans", [first])
    assert (placed.state, placed.is_placed) == ("placed", True)
    await ledger.arrivals.acked([first.ref, "other"])
    (done,) = await ledger.arrivals.record("other", [first])
    assert (done.state, done.is_placed) == ("done", True)
    assert await ledger.arrivals.inboxes() == [InboxSummary("scans", 0, 0, 1, NOW)]


async def test_a_file_that_an_inbox_had_begun_begins_anew_in_another(ledger: Ledger) -> None:
    files = [new("a" * 16), new("b" * 16)]
    await ledger.arrivals.record("scans", files)
    await ledger.arrivals.placing(files[0].ref, b"a", 1, 2)
    await ledger.arrivals.placing(files[1].ref, b"b", 3, 4)
    await ledger.arrivals.placed(files[1].ref, NOW)
    begun, placed = await ledger.arrivals.record("other", files)
    assert (begun.state, placed.state) == ("waiting", "placed")
    assert [each.inbox for each in await ledger.arrivals.inboxes()] == ["other", "scans"]


async def test_a_stopped_file_is_counted_until_it_goes_on(ledger: Ledger) -> None:
    await ledger.arrivals.record("scans", [new()])
    await ledger.arrivals.stopped(new().ref, "wrong_bytes", "why")
    assert await ledger.arrivals.inboxes() == [InboxSummary("scans", 1, 1, 0, None)]
    (stopped,) = await ledger.arrivals.record("scans", [new()])
    assert stopped.error_code == "wrong_bytes"
    await ledger.arrivals.placing(new().ref, b"a", 1, 2)
    assert await ledger.arrivals.inboxes() == [InboxSummary("scans", 1, 0, 0, None)]


async def test_a_placed_file_is_known_by_inode_size_and_time_alone(tmp_path: Path) -> None:
    ledger = await open_ledger(tmp_path)
    known = Fingerprint(HUGE, 5, 7, 99)
    assert await ledger.arrivals.brought_in([known]) == set()
    await ledger.arrivals.record("scans", [new()])
    await ledger.arrivals.placing(new().ref, b"a", HUGE, 7)
    others = [known._replace(ino=1), known._replace(size=6), known._replace(mtime_ns=8)]
    assert await ledger.arrivals.brought_in([known, *others]) == {known}
    await ledger.close(clean=True)
    ledger = await open_ledger(tmp_path)
    assert await ledger.arrivals.brought_in([known]) == {known}, "after a restart, too"
    await ledger.arrivals.placed(new().ref, NOW)
    await ledger.prune(NOW + timedelta(seconds=1))
    assert await ledger.arrivals.brought_in([known]) == {known}, "the broker lists it still"
    await ledger.arrivals.acked([new().ref])
    await ledger.prune(NOW)
    assert await ledger.arrivals.brought_in([known]) == {known}
    await ledger.prune(NOW + timedelta(seconds=1))
    assert await ledger.arrivals.brought_in([known]) == set()
    await ledger.close(clean=True)
