"""Webhooks of a daemon, from the file to a receiver that verifies each signature."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from presignd.config import Config, WebhookConfig
from presignd.control.peer import Peer
from presignd.control.requests import Responder
from presignd.errors import Refused
from presignd.webhooks.schedule import AT_ONCE as ROOM
from presignd.webhooks.schedule import Schedule
from tests.faulty_s3 import FaultyS3
from tests.raw_servers import OK, read_request, server
from tests.receivers import SECRET, Got, Receiver, receiver
from tests.running import Running, config, running, watch

AT_ONCE = Schedule(pauses=[0.0] * 20, probes=[0.0], jitter=0)


@pytest.fixture
async def chat() -> AsyncIterator[Receiver]:
    async with receiver() as found:
        yield found


async def taken(daemon: Running, chat: Receiver, count: int, *types: str) -> list[Got]:
    await daemon.until(lambda: len(chat.taken(*types)) >= count, f"{count} messages")
    return chat.taken(*types)


async def settled(daemon: Running) -> None:
    """Wait until nothing waits for any webhook."""
    outbox = daemon.ledger.outbox()
    while await outbox.waiting():  # noqa: ASYNC110 - the ledger has no event for it
        await asyncio.sleep(0.01)


async def asked(daemon: Running, **request: Any) -> dict[str, Any]:
    answers = [answer async for answer in Responder(daemon.view).answer(request, Peer.me(), [])]
    return answers[-1]


async def test_each_file_that_is_done_is_told_once_without_its_link(
    tmp_path: Path, faulty_s3: FaultyS3, chat: Receiver
) -> None:
    async with running(config(tmp_path, faulty_s3, webhooks=[chat.webhook()])) as daemon:
        daemon.drop("grüße.txt", b"hello")
        [done] = await daemon.done()
        [got] = await taken(daemon, chat, 1)
        await settled(daemon)
    assert got.type == "file.done"
    assert got.data == {
        name: done[name]
        for name in ("file_id", "watch", "path", "bucket", "key", "size", "checksum", "etag", "attempt")
    } | {name: got.data[name] for name in ("queued_at", "done_at", "expires_at", "content_type")} | {"status": "linked"}
    assert got.data["expires_at"] == done["expires_at"]
    assert "X-Amz-" not in json.dumps(got.document)
    assert len(chat.got) == 1


async def test_with_include_link_the_receiver_can_download(tmp_path: Path, faulty_s3: FaultyS3, chat: Receiver) -> None:
    async with running(config(tmp_path, faulty_s3, webhooks=[chat.webhook(include_link=True)])) as daemon:
        daemon.drop("a.txt")
        await daemon.done()
        [got] = await taken(daemon, chat, 1)
    [line] = (tmp_path / "links.jsonl").read_text().splitlines()
    assert got.data["url"] == json.loads(line)["url"]


async def test_a_quarantined_file_is_told_with_cause_and_fix(
    tmp_path: Path, faulty_s3: FaultyS3, chat: Receiver
) -> None:
    watched = watch(tmp_path, max_size=3)
    async with running(config(tmp_path, faulty_s3, watched, webhooks=[chat.webhook()])) as daemon:
        daemon.drop("large.bin", b"four")
        [got] = await taken(daemon, chat, 1)
        [said] = await daemon.said_by_now("file.quarantined")
    assert got.type == "file.quarantined"
    assert {name: got.data[name] for name in ("path", "error_code", "error", "fix", "status")} == {
        **{name: said[name] for name in ("path", "error_code", "error", "fix")},
        "status": "quarantined",
    }


async def test_an_outage_of_the_store_and_its_end_are_told_in_their_order(
    tmp_path: Path, faulty_s3: FaultyS3, chat: Receiver
) -> None:
    events = ["store.unreachable", "store.back"]
    async with running(config(tmp_path, faulty_s3, webhooks=[chat.webhook(events=events)])) as daemon:
        faulty_s3.stop()
        daemon.drop("a.txt")
        [away] = await taken(daemon, chat, 1)
        faulty_s3.start()
        await daemon.done()
        [_, back] = await taken(daemon, chat, 2)
    assert (away.type, back.type) == ("store.unreachable", "store.back")
    assert away.data["error_code"] == daemon.codes("store.unreachable")[0]
    assert back.data["duration_ms"] >= 0


async def test_a_refused_message_is_tried_again_with_the_same_id_and_signed_anew(
    tmp_path: Path, faulty_s3: FaultyS3, chat: Receiver
) -> None:
    chat.answer = lambda _: 204 if len(chat.got) >= 3 else (302, 503, 404)[len(chat.got)]
    chat.headers = {"Location": f"{chat.base}/elsewhere"}
    async with running(config(tmp_path, faulty_s3, webhooks=[chat.webhook()]), schedule=AT_ONCE) as daemon:
        daemon.drop("a.txt")
        await taken(daemon, chat, 1)
        await daemon.said_by_now("webhook.back")
    assert [got.status for got in chat.got] == [302, 503, 404, 204]
    assert len({got.id for got in chat.got}) == 1
    assert len(daemon.events("webhook.failing")) == 1
    assert daemon.codes("webhook.failing") == ["webhook_failed"]


async def test_a_redirect_leads_no_message_elsewhere(tmp_path: Path, faulty_s3: FaultyS3, chat: Receiver) -> None:
    async with receiver() as elsewhere:
        chat.answer = lambda _: 307 if len(chat.got) < 2 else 204
        chat.headers = {"Location": elsewhere.url}
        async with running(config(tmp_path, faulty_s3, webhooks=[chat.webhook()]), schedule=AT_ONCE) as daemon:
            daemon.drop("a.txt")
            await taken(daemon, chat, 1)
    assert [got.status for got in chat.got] == [307, 307, 204]
    assert elsewhere.got == []


async def test_what_no_try_delivers_is_given_up_and_said(tmp_path: Path, faulty_s3: FaultyS3, chat: Receiver) -> None:
    chat.answer = lambda _: 500
    schedule = Schedule(pauses=[0.0], jitter=0)
    async with running(config(tmp_path, faulty_s3, webhooks=[chat.webhook()]), schedule=schedule) as daemon:
        daemon.drop("a.txt")
        [lost] = await daemon.said_by_now("webhook.gave_up")
        status = await asked(daemon, op="status")
    assert len(chat.got) == 2
    assert (lost["told"], lost["message_id"]) == ("file.done", chat.got[0].id)
    assert (status["webhooks"][0]["given_up"], status["webhooks"][0]["waiting"]) == (1, 0)


async def test_410_switches_a_webhook_off_over_restarts_until_it_is_enabled(
    tmp_path: Path, faulty_s3: FaultyS3, chat: Receiver
) -> None:
    chat.answer = lambda _: 410
    configured = config(tmp_path, faulty_s3, webhooks=[chat.webhook()])
    async with running(configured) as daemon:
        daemon.drop("a.txt")
        await daemon.said_by_now("webhook.off")
        daemon.drop("b.txt")
        await daemon.done(2)
    chat.answer = lambda _: 204
    async with running(configured) as daemon:
        assert (await asked(daemon, op="status"))["webhooks"][0]["off_since"]
        daemon.drop("c.txt")
        await daemon.done()
        assert (await asked(daemon, op="webhook_enable", webhook="chat")) == {"webhook": "chat"}
        with pytest.raises(Refused, match="is not off"):
            await asked(daemon, op="webhook_enable")
        daemon.drop("d.txt")
        [got] = await taken(daemon, chat, 1)
    assert got.data["key"] == "d.txt"
    assert len(chat.got) == 2


async def test_another_address_is_on_again(tmp_path: Path, faulty_s3: FaultyS3, chat: Receiver) -> None:
    chat.answer = lambda _: 410
    async with running(config(tmp_path, faulty_s3, webhooks=[chat.webhook()])) as daemon:
        daemon.drop("a.txt")
        await daemon.said_by_now("webhook.off")
    async with receiver() as moved, running(config(tmp_path, faulty_s3, webhooks=[moved.webhook()])) as daemon:
        daemon.drop("b.txt")
        await taken(daemon, moved, 1)


async def test_what_waits_is_sent_after_a_restart_with_the_same_id(
    tmp_path: Path, faulty_s3: FaultyS3, chat: Receiver
) -> None:
    chat.answer = lambda _: 503
    configured = config(tmp_path, faulty_s3, webhooks=[chat.webhook()])
    async with running(configured, schedule=AT_ONCE) as daemon:
        daemon.drop("a.txt")
        await daemon.until(lambda: chat.got, "a try")
    chat.answer = lambda _: 204
    async with running(configured, schedule=AT_ONCE) as daemon:
        [got] = await taken(daemon, chat, 1)
        await settled(daemon)
    assert {one.id for one in chat.got} == {got.id}


async def test_a_files_events_stay_in_order_and_other_files_go_on(
    tmp_path: Path, faulty_s3: FaultyS3, chat: Receiver
) -> None:
    blocked = True
    chat.answer = lambda message: 503 if blocked and message["data"]["key"] == "a.txt" else 204
    async with running(config(tmp_path, faulty_s3, webhooks=[chat.webhook()]), schedule=AT_ONCE) as daemon:
        daemon.drop("a.txt", b"first")
        await daemon.done(1)
        daemon.drop("a.txt", b"second one")
        daemon.drop("b.txt")
        await daemon.done(3)
        await daemon.until(lambda: [got.data["key"] for got in chat.taken()] == ["b.txt"], "b.txt")
        blocked = False
        await taken(daemon, chat, 3)
    sizes = [got.data["size"] for got in chat.taken() if got.data["key"] == "a.txt"]
    assert sizes == [5, 10]


async def test_a_receiver_that_hangs_holds_up_neither_uploads_nor_another_webhook(
    tmp_path: Path, faulty_s3: FaultyS3, chat: Receiver
) -> None:
    hanging = asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await hanging.wait()
        writer.close()

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    stuck = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook"
    count = 2 * ROOM + 1
    webhooks = [chat.webhook(), chat.webhook("stuck", url=stuck)]
    async with running(config(tmp_path, faulty_s3, webhooks=webhooks)) as daemon:
        for number in range(count):
            daemon.drop(f"{number}.txt")
        await daemon.done(count)
        await taken(daemon, chat, count)
        hanging.set()
    server.close()


async def test_without_webhooks_nothing_is_recorded(tmp_path: Path, faulty_s3: FaultyS3) -> None:
    async with running(config(tmp_path, faulty_s3)) as daemon:
        daemon.drop("a.txt")
        await daemon.done()
        assert await daemon.ledger.outbox().waiting() == {}


async def test_a_reload_brings_webhooks_and_takes_them_away(
    tmp_path: Path, faulty_s3: FaultyS3, chat: Receiver
) -> None:
    now = [config(tmp_path, faulty_s3)]
    async with receiver() as other, running(now[0], load=lambda: now[0]) as daemon:
        await reload(daemon, now, config(tmp_path, faulty_s3, webhooks=[chat.webhook()]))
        daemon.drop("a.txt")
        await taken(daemon, chat, 1)
        await settled(daemon)
        await reload(daemon, now, config(tmp_path, faulty_s3, webhooks=[chat.webhook(), other.webhook("other")]))
        daemon.drop("b.txt")
        await taken(daemon, chat, 2)
        await taken(daemon, other, 1)
        await settled(daemon)
        await reload(daemon, now, config(tmp_path, faulty_s3, webhooks=[other.webhook("other")]))
        daemon.drop("c.txt")
        await taken(daemon, other, 2)
    assert len(chat.got) == 2
    assert [got.id for got in chat.got[1:]] == [got.id for got in other.got[:1]]


async def reload(daemon: Running, now: list[Config], configured: Config) -> None:
    count = len(daemon.events("config.reloaded"))
    now[0] = configured
    await daemon.until(lambda: daemon.events("daemon.ready"), "start")
    daemon.reload.set()
    await daemon.said_by_now("config.reloaded", count + 1)


async def test_a_test_message_is_signed_and_its_answer_told(
    tmp_path: Path, faulty_s3: FaultyS3, chat: Receiver
) -> None:
    async with running(config(tmp_path, faulty_s3, webhooks=[chat.webhook(), chat.webhook("b")])) as daemon:
        found = await asked(daemon, op="webhook_test", webhook="b")
        assert (found["webhook"], found["delivered"], found["status"], found["error"]) == ("b", True, 204, None)
        assert (await asked(daemon, op="webhook_test", webhook=chat.url))["webhook"] == "chat"
        chat.answer = lambda _: 500
        failed = await asked(daemon, op="webhook_test", webhook="b")
        assert not failed["delivered"]
        assert "answered 500" in failed["error"]
        for named in ("", "none"):
            with pytest.raises(Refused):
                await asked(daemon, op="webhook_test", webhook=named)
    assert chat.got[0].type == "webhook.test"
    assert chat.got[0].data == {"webhook": "b"}


async def test_the_link_of_a_message_that_comes_too_late_is_left_out(
    tmp_path: Path, faulty_s3: FaultyS3, chat: Receiver
) -> None:
    """A link is not told once it has expired: the receiver could do nothing with it."""
    chat.answer = lambda message: 204 if "url" not in message["data"] else 503
    configured = config(tmp_path, faulty_s3, webhooks=[chat.webhook(include_link=True)], get_expires=1)
    async with running(configured, schedule=Schedule(pauses=[0.05] * 1000, probes=[0.0], jitter=0)) as daemon:
        daemon.drop("a.txt")
        [got] = await taken(daemon, chat, 1)
    assert datetime.fromisoformat(got.document["timestamp"]) < datetime.fromisoformat(got.data["expires_at"])


async def test_the_documented_lines_verify_what_is_sent(
    tmp_path: Path, faulty_s3: FaultyS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/webhooks.md's verification, as it stands there, takes a real message and refuses a forged one."""
    page = (Path(__file__).parents[2] / "docs" / "webhooks.md").read_text("utf-8")
    [code] = re.findall(r"^<!-- verify -->\n```python\n(.*?)```$", page, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    is_from_presignd, seen = names["is_from_presignd"], list[tuple[Any, bytes]]()

    async def keep(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head, body = await read_request(reader)
        fields = [line.partition(b": ") for line in head.lower().splitlines()[1:-1]]
        given = {name.decode(): value.decode() for name, _, value in fields}
        # The signature's case matters, the names' does not.
        given["webhook-signature"] = re.search(rb"(?i)webhook-signature: (.*)\r", head)[1].decode()  # type: ignore[index]
        seen.append((given, body))
        writer.write(OK)
        await writer.drain()

    async with server(keep) as base:
        webhook = WebhookConfig(name="chat", url=f"{base}/hook", secret=SECRET)
        async with running(config(tmp_path, faulty_s3, webhooks=[webhook])) as daemon:
            await asked(daemon, op="webhook_test")
    [(headers, body)] = seen
    assert is_from_presignd(headers, body, SECRET)
    assert not is_from_presignd(headers, body + b" ", SECRET)
    assert not is_from_presignd(headers, body, "whsec_" + "A" * 32)
    monkeypatch.setattr(names["time"], "time", lambda: int(headers["webhook-timestamp"]) + 301)
    assert not is_from_presignd(headers, body, SECRET)
