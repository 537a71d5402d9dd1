"""One inbox with a broker and a store in this process: what it does on each error of its folder, and on a bug."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from presignd.config import InboxConfig
from presignd.errors import fault
from presignd.inbox.folder import InboxFolder
from presignd.inbox.inbox import Inbox
from presignd.ledger import Ledger, open_ledger
from presignd.presign.broker_inbox import Arrived
from tests.unit.inbox.test_fetch import BODY, Store

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)


class Broker:
    """A broker's list; ``faults`` are raised first, one a call."""

    def __init__(self, *paths: str) -> None:
        self.listed = [
            Arrived(id=f"{n:016}", path=path, bucket="bucket", key="in/a", size=len(BODY), received_at=NOW)
            for n, path in enumerate(paths)
        ]
        self.asked: list[str] = []
        self.acked: list[str] = []
        self.faults: list[str] = []
        self.closed = False
        self.more = asyncio.Event()

    async def arrived(self, after: str, _wait: int) -> tuple[list[Arrived], str]:
        await asyncio.sleep(0)
        self.asked.append(after)
        if self.faults:
            raise fault(self.faults.pop())
        if after != "0":
            await self.more.wait()
        return self.listed, str(int(after) + 1)

    async def ack(self, refs: list[str]) -> None:
        if self.faults:
            raise fault(self.faults.pop())
        self.acked += refs

    async def close(self) -> None:
        self.closed = True


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    found = await open_ledger(tmp_path / "state")
    yield found
    await found.close(clean=True)


@asynccontextmanager
async def running(folder: Path, ledger: Ledger, broker: Broker, store: Store | None = None) -> AsyncIterator[Inbox]:
    (folder / "in").mkdir(exist_ok=True)
    config = InboxConfig(name="scans", path=folder / "in", invitation="march")
    inbox = Inbox(
        config,
        broker,  # type: ignore[arg-type] # in its place
        ledger.arrivals,
        lambda: store or Store(),  # type: ignore[arg-type, return-value] # in its place
        backoff=lambda *_, **__: 0.0,
    )
    task = asyncio.create_task(inbox.run())
    try:
        yield inbox
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert broker.closed


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not true():  # noqa: ASYNC110 - a condition of several objects
            await asyncio.sleep(0)


def once(monkeypatch: pytest.MonkeyPatch, name: str, error: BaseException) -> None:
    """Let a method of the folder fail once."""
    real = getattr(InboxFolder, name)

    def fail(*args: Any) -> Any:
        monkeypatch.setattr(InboxFolder, name, real)
        raise error

    monkeypatch.setattr(InboxFolder, name, fail)


@pytest.mark.parametrize(
    ("number", "place"),
    [
        (errno.EXDEV, "a.txt"),
        (errno.EINVAL, "file"),
        (errno.EILSEQ, "file"),
        (errno.EEXIST, "Scans/a.txt"),
        (errno.EACCES, "Scans/a.txt"),
    ],
)
async def test_an_error_of_the_folder_is_gone_around_or_waited_for(
    tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, number: int, place: str
) -> None:
    broker = Broker("Scans/a.txt")
    once(monkeypatch, "put_in_place", OSError(number, os.strerror(number)))
    with capture_logs() as said:
        async with running(tmp_path, ledger, broker):
            await until(lambda: broker.acked)
    assert (tmp_path / "in" / place).read_bytes() == BODY
    blocked = [event for event in said if event["event"] == "inbox.blocked"]
    assert len(blocked) == (number == errno.EACCES)


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EINVAL])
async def test_an_error_that_stays_with_the_easiest_name_is_waited_for(
    tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    broker = Broker("file")
    once(monkeypatch, "put_in_place", OSError(number, os.strerror(number)))
    with capture_logs() as said:
        async with running(tmp_path, ledger, broker):
            await until(lambda: broker.acked)
    (blocked,) = [event for event in said if event["event"] == "inbox.blocked"]
    assert blocked["error_code"] == "inbox_failed"


async def test_a_bug_stops_its_file_and_no_other(
    tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = Broker("a.txt", "b.txt")
    choose = InboxFolder.choose

    def failing(folder: InboxFolder, names: list[str]) -> bytes:
        if names == ["a.txt"]:
            raise ZeroDivisionError
        return choose(folder, names)

    monkeypatch.setattr(InboxFolder, "choose", failing)
    with capture_logs() as said:
        async with running(tmp_path, ledger, broker):
            await until(lambda: broker.acked)
            await until(lambda: [event for event in said if event["event"] == "inbox.failed"])
    (failed,) = [event for event in said if event["event"] == "inbox.failed"]
    assert failed["error_code"] == "internal_error"
    assert broker.acked == ["0000000000000001"]


async def test_a_file_that_was_given_up_is_tried_again_and_told_once(tmp_path: Path, ledger: Ledger) -> None:
    broker, store = Broker("a.txt"), Store(BODY + b"x")
    broker.more.set()
    with capture_logs() as said:
        async with running(tmp_path, ledger, broker, store) as inbox:
            await until(lambda: inbox._given_up.total() > 2)
            store.body = BODY
            await until(lambda: broker.acked)
    assert (tmp_path / "in" / "a.txt").read_bytes() == BODY
    (failed,) = [event for event in said if event["event"] == "inbox.failed"]
    assert failed["error_code"] == "wrong_bytes"


async def test_a_file_that_another_host_fetched_is_not_tried_again(tmp_path: Path, ledger: Ledger) -> None:
    broker, store = Broker("a.txt"), Store(BODY + b"x")
    async with running(tmp_path, ledger, broker, store) as inbox:
        await until(lambda: inbox._given_up)
        store.body, broker.listed = BODY, []
        broker.more.set()
        await until(lambda: broker.asked.count("0") > 1)
        await until(lambda: len(broker.asked) > 9)
    assert broker.acked == []
    assert not inbox._rests, "the list is not asked for it again and again"


async def test_a_fault_of_the_list_begins_it_anew_and_an_expired_grant_is_no_outage(
    tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker, store = Broker("a.txt"), Store()
    broker.faults = ["presigner_unreachable", "presigner_unreachable"]
    grant, expired = store.grant, [fault("expired_grant")]

    async def first_expired(request: Any) -> Any:
        if expired:
            raise expired.pop()
        return await grant(request)

    monkeypatch.setattr(store, "grant", first_expired)
    with capture_logs() as said:
        async with running(tmp_path, ledger, broker, store):
            await until(lambda: broker.acked)
            broker.faults = ["presigner_unreachable"]
            broker.more.set()
            await until(lambda: len([each for each in broker.asked if each == "0"]) > 3)
    codes = {event["error_code"] for event in said if event["event"] == "inbox.blocked"}
    assert codes == {"presigner_unreachable"}
    assert broker.acked == ["0000000000000000"], "what is known is taken once"


async def test_a_lost_acknowledgement_is_sent_again(tmp_path: Path, ledger: Ledger) -> None:
    broker = Broker("a.txt")
    async with running(tmp_path, ledger, broker):
        await until(lambda: broker.acked)
    again = Broker("a.txt")
    async with running(tmp_path, ledger, again):
        await until(lambda: again.acked)
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["a.txt"]
    (summary,) = await ledger.arrivals.inboxes()
    assert summary.received == 1
