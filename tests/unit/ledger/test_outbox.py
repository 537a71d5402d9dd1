"""The ledger's outbox: a message is there exactly if its change is, for the webhooks that want it, in order."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from presignd.ledger import Ledger, LostUpdate, open_ledger
from presignd.ledger.changes import Change
from presignd.ledger.outbox import STORE, LedgerOutbox
from presignd.model import State
from presignd.states import Event
from presignd.system.clock import utcnow
from presignd.webhooks.outbox import Hook, Message
from tests.versions import LATER, MARK, NOW, claim, linking, new

CHAT = Hook("chat", ("file.done", "file.quarantined"), b"1")
PAGER = Hook("pager", ("file.quarantined", "store.unreachable"), b"2")


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    opened = await open_ledger(tmp_path / "ledger")
    yield opened
    await opened.close(clean=True)


async def due(outbox: LedgerOutbox, webhook: str = "chat", most: int = 100) -> list[Message]:
    return await outbox.due(webhook, utcnow() + timedelta(seconds=1), most)


async def finish(ledger: Ledger, *paths: bytes) -> None:
    await ledger.enqueue([new(path) for path in paths])
    claimed = await claim(ledger, "drop", len(paths), LATER)
    verified = await ledger.apply_all([Change(one, (Event.VERIFY,), {"checksum": "md5:00"}) for one in claimed])
    await ledger.record_linked([linking(one, done_at=NOW) for one in verified], MARK)


async def quarantine(ledger: Ledger, path: bytes) -> None:
    await ledger.enqueue([new(path)])
    (claimed,) = await claim(ledger, "drop", 1, LATER)
    await ledger.apply(claimed, Event.QUARANTINE, error_code="too_large", error="it is large")


async def test_each_end_is_told_to_those_who_want_it_and_none_without_webhooks(ledger: Ledger) -> None:
    outbox = ledger.outbox()
    await finish(ledger, b"before")
    await outbox.configure([CHAT, PAGER], NOW)
    await finish(ledger, b"a", b"\xff")
    await quarantine(ledger, b"q")
    await ledger.enqueue([new(b"stopped", state=State.QUARANTINED, error_code="unreadable")])
    await ledger.enqueue([new(b"q")])  # supersedes
    await ledger.record_gone("drop", [b"q"], LATER)
    told = [(bytes.fromhex(one.data["path"]), one.event, one.data["state"]) for one in await due(outbox)]
    assert told == [  # of each path the first
        (b"a", "file.done", "finished"),
        (b"\xff", "file.done", "finished"),
        (b"q", "file.quarantined", "quarantined"),
        (b"stopped", "file.quarantined", "quarantined"),
    ]
    assert [bytes.fromhex(one.data["path"]) for one in await due(outbox, "pager")] == [b"q", b"stopped"]
    await outbox.settle([one.number for one in await due(outbox)], {})
    [superseded] = await due(outbox)
    await outbox.settle([superseded.number], {})
    [vanished] = await due(outbox)
    assert [superseded.data["state"], vanished.data["state"]] == ["superseded", "vanished"]


async def test_new_versions_that_are_told_of_have_their_keys_and_are_told_of_once(ledger: Ledger) -> None:
    """A message is inserted after each; a list with a path that is not new is recorded again, one by one."""
    outbox = ledger.outbox()
    await outbox.configure([CHAT], NOW)
    await ledger.enqueue([new(b"1"), new(b"2"), new(b"3")])
    await ledger.enqueue([new(path, state=State.QUARANTINED, error_code="unreadable") for path in (b"x", b"y")])
    others = await ledger.enqueue([new(b"other", key="x"), new(b"another", key="y")])
    assert [one.version.key for one in others] == ["x~2", "y~2"]
    await ledger.enqueue([new(b"z", state=State.QUARANTINED, error_code="unreadable"), new(b"1", key="other")])
    told = [(bytes.fromhex(one.data["path"]), one.data["state"]) for one in await due(outbox)]
    assert told == [(b"x", "quarantined"), (b"y", "quarantined"), (b"z", "quarantined"), (b"1", "superseded")]


async def test_a_change_that_fails_leaves_no_message(ledger: Ledger) -> None:
    outbox = ledger.outbox()
    await outbox.configure([CHAT], NOW)
    await ledger.enqueue([new(b"a"), new(b"b")])
    first, second = await claim(ledger, "drop", 2, LATER)
    moved_on = second._replace(state=State.QUEUED)
    with pytest.raises(LostUpdate):
        await ledger.apply_all([Change(first, (Event.VANISH,)), Change(moved_on, (Event.VANISH,))])
    assert await outbox.waiting() == {}


async def test_both_webhooks_get_an_event_under_one_id(ledger: Ledger) -> None:
    outbox = ledger.outbox()
    await outbox.configure([CHAT, PAGER], NOW)
    await quarantine(ledger, b"q")
    [[one], [other]] = [await due(outbox, "chat"), await due(outbox, "pager")]
    assert (one.id, one.number) == (other.id, other.number - 1)


async def test_a_failed_message_waits_and_holds_up_those_of_its_path_alone(ledger: Ledger) -> None:
    outbox = ledger.outbox()
    await outbox.configure([CHAT], NOW)
    await finish(ledger, b"a")
    await finish(ledger, b"a")
    await finish(ledger, b"b")
    first, other = await due(outbox)
    later = utcnow() + timedelta(hours=1)
    await outbox.settle([], {first.number: later})
    assert await due(outbox) == [other]
    assert await outbox.next_try("chat", utcnow() + timedelta(seconds=1)) == later
    assert await outbox.has_failed("chat")
    again, *_ = await outbox.due("chat", later, 1)
    assert (again.id, again.tries) == (first.id, 1) or again == other
    await outbox.settle([first.number], {})
    assert not await outbox.has_failed("chat")
    assert len(await due(outbox)) == 2
    assert await outbox.next_try("chat", utcnow() + timedelta(seconds=1)) is None


async def test_what_is_being_sent_is_not_returned_again(ledger: Ledger) -> None:
    outbox = ledger.outbox()
    await outbox.configure([CHAT], NOW)
    await finish(ledger, b"a", b"b", b"c")
    first, *others = await due(outbox)
    now = utcnow() + timedelta(seconds=1)
    assert await outbox.due("chat", now, 1, {first.number}) == others[:1]
    assert await outbox.due("chat", now, 9, {first.number}) == others


async def test_what_was_due_for_too_long_is_dropped_and_the_rest_stays(ledger: Ledger) -> None:
    outbox = ledger.outbox()
    await outbox.configure([CHAT, PAGER], NOW)
    await quarantine(ledger, b"a")
    await quarantine(ledger, b"b")
    [first, _] = await due(outbox)
    soon = utcnow() + timedelta(hours=1)
    await outbox.settle([], {first.number: soon})
    assert await outbox.drop("chat", soon) == 1
    assert {name: found.messages for name, found in (await outbox.waiting()).items()} == {"chat": 1, "pager": 2}


async def test_what_no_change_tells_of_is_added(ledger: Ledger) -> None:
    outbox = ledger.outbox()
    await outbox.configure([CHAT, PAGER], NOW)
    await outbox.add("store.unreachable", STORE, {"error_code": "dns"})
    assert await due(outbox) == []
    [told] = await due(outbox, "pager")
    assert (told.event, told.subject, told.data) == ("store.unreachable", STORE, {"error_code": "dns"})
    waiting = (await outbox.waiting())["pager"]
    assert (waiting.messages, waiting.oldest) == (1, told.at)


async def test_a_webhook_that_is_off_records_nothing_until_it_is_on_or_moves(tmp_path: Path) -> None:
    ledger = await open_ledger(tmp_path / "ledger")
    outbox = ledger.outbox()
    assert await outbox.configure([CHAT, PAGER], NOW) == {}
    await quarantine(ledger, b"q")
    assert await outbox.switch_off(CHAT, NOW) == 1
    await quarantine(ledger, b"r")
    assert await due(outbox) == []
    assert len(await due(outbox, "pager")) == 2
    await ledger.close(clean=True)
    ledger = await open_ledger(tmp_path / "ledger")
    outbox = ledger.outbox()
    assert await outbox.configure([CHAT, PAGER], NOW) == {"chat": NOW}
    assert [await outbox.off_since(hook.name) for hook in (CHAT, PAGER)] == [NOW, None]
    await finish(ledger, b"a")
    assert await due(outbox) == []
    await outbox.switch_on(CHAT)
    await finish(ledger, b"b")
    await quarantine(ledger, b"s")
    assert len(await due(outbox)) == 2
    assert len(await due(outbox, "pager")) == 3
    await outbox.switch_off(CHAT, NOW)
    assert await outbox.configure([CHAT._replace(address=b"3")], NOW) == {}
    await finish(ledger, b"c")
    assert len(await due(outbox)) == 1
    assert await due(outbox, "pager") == []  # it is configured no more
    assert await outbox.configure([], NOW) == {}
    await finish(ledger, b"d")
    assert await outbox.waiting() == {}
    await ledger.close(clean=True)


async def test_a_wrong_clock_does_not_put_a_try_off_for_years(ledger: Ledger) -> None:
    outbox = ledger.outbox()
    await outbox.configure([CHAT], NOW)
    await finish(ledger, b"a")
    [message] = await due(outbox)
    await outbox.settle([], {message.number: utcnow() + timedelta(days=400)})
    assert await due(outbox) == []
    await outbox.configure([CHAT], utcnow())
    assert len(await due(outbox)) == 1
