"""Webhooks of a broker in a process of its own: what guests send and links that are opened, told to a real receiver."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.guests import Guest, invite
from tests.receivers import SECRET, Receiver, receiver
from tests.stable import Sharing, ask, sharing
from tests.stores import Store

BODY = b"scanned in March"


@pytest.fixture
async def desk() -> AsyncIterator[Receiver]:
    async with receiver() as found:
        yield found


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not true():  # noqa: ASYNC110 - it counts what came
            await asyncio.sleep(0.02)


def metrics_of(broker: Sharing) -> str:
    with urllib.request.urlopen(f"{broker.url}/metrics", timeout=30) as answer:
        return str(answer.read(), "utf-8")


def use(broker: Sharing, *, opened: bool) -> None:
    """Send a file as a guest; or make a link, and open it."""
    if opened:
        assert ask(broker.link("one/a.txt")["url"]).status == 302
        return
    guest = Guest(invite(broker, "march")["url"], broker.secrets)
    [ticket] = guest.tickets(("a.pdf", len(BODY)))
    assert guest.put(ticket, BODY).status == 200
    assert guest.done(ticket)[1]["received"]


async def test_what_came_in_and_what_was_opened_are_told_over_a_kill(
    tmp_path: Path, seaweedfs: Store, desk: Receiver
) -> None:
    desk.answer = lambda _: 503
    bucket = seaweedfs.new_bucket()
    with sharing(tmp_path, seaweedfs, bucket) as broker:
        broker.secrets += [SECRET, desk.url]
        hook = f'[[webhook]]\nname = "desk"\nurl = "{desk.url}"\nsecret = "{SECRET}"\n'
        broker.configure(broker.file.read_text() + hook)
        broker.stop()
        broker.start()
        await asyncio.to_thread(use, broker, opened=False)
        await until(lambda: desk.got)
        assert 'presignd_webhook_waiting{webhook="desk"} 1.0' in metrics_of(broker)
        assert 'presignd_webhook_off{webhook="desk"} 0.0' in metrics_of(broker)
        desk.answer = lambda _: 204
        broker.kill()
        broker.start()
        await asyncio.to_thread(use, broker, opened=True)
        await until(lambda: {got.type for got in desk.taken()} == {"upload.received", "link.opened"})
    told = {got.type: got for got in desk.taken()}
    received = told["upload.received"]
    assert received.id == desk.got[0].id
    expected = {"invitation": "march", "path": "a.pdf", "bucket": bucket, "size": len(BODY)}
    assert {name: received.data[name] for name in expected} == expected
    assert received.data["checksum"]
    assert told["link.opened"].data["key"] == "one/a.txt"
    assert set(told["link.opened"].data) == {"ref", "token", "bucket", "key", "filename"}
