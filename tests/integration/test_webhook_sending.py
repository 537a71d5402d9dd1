"""Sending a webhook's messages: over TLS, to a receiver that hangs, and while a text or the outbox fails."""

from __future__ import annotations

import asyncio
import io
import json
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trustme

from presignd.config import LogConfig, WebhookConfig
from presignd.errors import fault
from presignd.ledger import Ledger, open_ledger
from presignd.ledger.outbox import STORE
from presignd.system.clock import utcnow
from presignd.telemetry import log
from presignd.webhooks.courier import Courier
from presignd.webhooks.outbox import Away, Message
from presignd.webhooks.schedule import Schedule
from presignd.webhooks.sender import Sender
from presignd.webhooks.signature import encoded
from presignd.webhooks.webhooks import hook_of
from tests.raw_servers import OK, read_request, server
from tests.receivers import SECRET, Receiver, receiver

NOW = datetime(2026, 11, 29, 12, 0, 0, tzinfo=UTC)
AT_ONCE = Schedule(pauses=[0.0] * 1000, jitter=0)


def webhook(url: str, **more: Path) -> WebhookConfig:
    return WebhookConfig(name="chat", url=url, secret=SECRET, **more)


# --- one message ------------------------------------------------------------------------------------
async def test_a_receiver_with_a_private_ca_is_trusted_by_its_ca_file_alone(tmp_path: Path) -> None:
    authority = trustme.CA()
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(OK)
        await writer.drain()
        writer.close()

    listening = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=tls)
    url = f"https://127.0.0.1:{listening.sockets[0].getsockname()[1]}/hook"
    try:
        trusting, strange = Sender(webhook(url, ca_file=tmp_path / "ca.pem")), Sender(webhook(url))
        assert (await trusting.send("msg_1", b"{}", NOW)).is_delivered
        assert "TLS" in (await strange.send("msg_1", b"{}", NOW)).why
        await trusting.close()
        await strange.close()
    finally:
        listening.close()


async def test_a_receiver_that_does_not_answer_in_time_has_failed() -> None:
    async def hang(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()
        writer.close()

    async with server(hang) as base:
        sender = Sender(webhook(f"{base}/hook"), timeout=0.05)
        answer = await sender.send("msg_1", b"{}", NOW)
        await sender.close()
    assert (answer.status, answer.why) == (0, "no answer within 0.05 s")


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("120", 120.0),
        ("Sun, 29 Nov 2026 12:01:00 GMT", 60.0),
        ("Sun, 29 Nov 2026 11:00:00 GMT", 0.0),
        ("soon", None),
        ("", None),
    ],
)
async def test_when_a_receiver_wants_to_be_asked_again(given: str, seconds: float | None) -> None:
    async with receiver() as busy:
        busy.answer, busy.headers = lambda _: 503, {"Retry-After": given}
        sender = Sender(busy.webhook())
        answer = await sender.send("msg_1", encoded("webhook.test", NOW, {}), NOW)
        await sender.close()
    assert answer.retry_after == seconds


# --- a courier --------------------------------------------------------------------------------------
@pytest.fixture
def said() -> io.StringIO:
    stream = io.StringIO()
    log.setup(LogConfig(format="json"), stream=stream)
    return stream


def events(said: io.StringIO, name: str) -> list[dict[str, str]]:
    log.flush()
    return [event for event in map(json.loads, said.getvalue().splitlines()) if event["event"] == name]


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    opened = await open_ledger(tmp_path / "ledger")
    yield opened
    await opened.close(clean=True)


@pytest.fixture
async def chat() -> AsyncIterator[Receiver]:
    async with receiver() as found:
        yield found


@asynccontextmanager
async def delivering(courier: Courier, chat: Receiver, count: int = 1) -> AsyncIterator[None]:
    """Run a courier during the block, and until the receiver has so many messages."""
    running = asyncio.create_task(courier.run())
    yield
    async with asyncio.timeout(20):
        while len(chat.taken()) < count:  # noqa: ASYNC110 - it counts what came
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await courier.sender.close()


Render = Callable[[Message], bytes]


def courier_of(ledger: Ledger, chat: Receiver, render: Render, outbox: object = None) -> Courier:
    async def text(message: Message, _: WebhookConfig) -> bytes:
        return render(message)

    hook = chat.webhook()
    return Courier(
        hook,
        hook_of(hook),
        outbox or ledger.outbox(),  # type: ignore[arg-type] # one that fails
        text,
        Sender(hook),
        AT_ONCE,
        utcnow,
        0.02,
        away=0.0,
    )


@pytest.mark.parametrize(
    ("problem", "told"),
    [
        (fault("presigner_unreachable"), "its text can't be made now: "),
        (ZeroDivisionError("a bug"), "a bug in presignd (ZeroDivisionError)"),
    ],
)
async def test_a_message_whose_text_cannot_be_made_now_waits_until_it_can(
    ledger: Ledger, chat: Receiver, said: io.StringIO, problem: Exception, told: str
) -> None:
    fails = [problem]

    def render(message: Message) -> bytes:
        if fails:
            raise fails.pop()
        return encoded(message.event, message.at, message.data)

    courier = courier_of(ledger, chat, render)
    await ledger.outbox().configure([courier.hook], NOW)
    async with delivering(courier, chat):
        await ledger.outbox().add("store.back", STORE, {"duration_ms": 5})
    assert [(got.type, got.data) for got in chat.got] == [("store.back", {"duration_ms": 5})]
    assert told in events(said, "webhook.failing")[0]["error"]
    assert len(events(said, "unexpected_error")) == isinstance(problem, ZeroDivisionError)


async def test_while_the_outbox_is_away_nothing_ends_and_afterwards_all_is_sent(ledger: Ledger, chat: Receiver) -> None:
    class Leaving:
        """The ledger's outbox, after it was away twice."""

        def __init__(self) -> None:
            self.away = 2

        def __getattr__(self, name: str) -> object:
            return getattr(ledger.outbox(), name)

        async def due(self, webhook: str, now: datetime, most: int) -> Sequence[Message]:
            if self.away:
                self.away -= 1
                raise Away
            return await ledger.outbox().due(webhook, now, most)

    outbox = Leaving()
    courier = courier_of(ledger, chat, lambda message: encoded(message.event, message.at, message.data), outbox)
    await ledger.outbox().configure([courier.hook], NOW)
    await ledger.outbox().add("store.back", STORE, {})
    async with delivering(courier, chat):
        pass
    assert outbox.away == 0
    assert len(chat.got) == 1
