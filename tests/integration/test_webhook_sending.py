"""Sending a webhook's messages: over TLS, to a receiver that hangs, and while a text or the outbox fails."""

from __future__ import annotations

import asyncio
import io
import json
import ssl
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme

from presignd.broker.state.links import Links, NewLink, hash_of, ref_of
from presignd.broker.state.outbox import StateOutbox
from presignd.broker.state.sqlite import SqliteDatabase
from presignd.config import LogConfig, WebhookConfig
from presignd.errors import fault
from presignd.ledger import Ledger, open_ledger
from presignd.ledger.outbox import STORE
from presignd.system.clock import utcnow
from presignd.telemetry import log
from presignd.webhooks.courier import Courier
from presignd.webhooks.outbox import Away, Message
from presignd.webhooks.schedule import Breaker, Schedule
from presignd.webhooks.sender import Sender
from presignd.webhooks.signature import encoded
from presignd.webhooks.webhooks import hook_of
from tests.raw_servers import OK, read_request, server
from tests.receivers import SECRET, Receiver, receiver

NOW = datetime(2026, 11, 29, 12, 0, 0, tzinfo=UTC)
AT_ONCE = Schedule(pauses=[0.0] * 1000, probes=[0.0], jitter=0)


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


def events(said: io.StringIO, name: str) -> list[dict[str, Any]]:
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


async def until(is_so: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not is_so():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)


@asynccontextmanager
async def delivering(courier: Courier, chat: Receiver, count: int = 1) -> AsyncIterator[None]:
    """Run a courier during the block, and until the receiver has so many messages."""
    running = asyncio.create_task(courier.run())
    yield
    await until(lambda: len(chat.taken()) >= count)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await courier.sender.close()


Render = Callable[[Message], bytes]


def told(message: Message) -> bytes:
    return encoded(message.event, message.at, message.data)


def courier_of(ledger: Ledger, chat: Receiver, render: Render = told, outbox: object = None, **more: Any) -> Courier:
    async def text(message: Message, _: WebhookConfig) -> bytes:
        return render(message)

    hook = chat.webhook()
    return Courier(
        hook,
        hook_of(hook),
        outbox or ledger.outbox(),  # type: ignore[arg-type] # one that fails
        text,
        Sender(hook),
        **{"schedule": AT_ONCE, "now": utcnow, "look": 0.02, "away": 0.0, **more},
    )


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (fault("presigner_unreachable"), "its text can't be made now: "),
        (ZeroDivisionError("a bug"), "a bug in presignd (ZeroDivisionError)"),
    ],
)
async def test_a_message_whose_text_cannot_be_made_now_waits_until_it_can(
    ledger: Ledger, chat: Receiver, said: io.StringIO, problem: Exception, words: str
) -> None:
    fails = [problem]

    def render(message: Message) -> bytes:
        if fails:
            raise fails.pop()
        return told(message)

    courier = courier_of(ledger, chat, render)
    await ledger.outbox().configure([courier.hook], NOW)
    async with delivering(courier, chat):
        await ledger.outbox().add("store.back", STORE, {"duration_ms": 5})
    assert [(got.type, got.data) for got in chat.got] == [("store.back", {"duration_ms": 5})]
    assert words in events(said, "webhook.failing")[0]["error"]
    assert len(events(said, "unexpected_error")) == isinstance(problem, ZeroDivisionError)


async def test_while_the_outbox_is_away_nothing_ends_and_afterwards_all_is_sent(ledger: Ledger, chat: Receiver) -> None:
    class Leaving:
        """The ledger's outbox, after it was away twice."""

        def __init__(self) -> None:
            self.away = 2

        def __getattr__(self, name: str) -> object:
            return getattr(ledger.outbox(), name)

        async def due(self, webhook: str, now: datetime, most: int, besides: Collection[int]) -> Sequence[Message]:
            if self.away:
                self.away -= 1
                raise Away
            return await ledger.outbox().due(webhook, now, most, besides)

    outbox = Leaving()
    courier = courier_of(ledger, chat, outbox=outbox)
    await ledger.outbox().configure([courier.hook], NOW)
    await ledger.outbox().add("store.back", STORE, {})
    async with delivering(courier, chat):
        pass
    assert outbox.away == 0
    assert len(chat.got) == 1


# --- a receiver that takes nothing --------------------------------------------------------------------
@dataclass
class Clock:
    """A clock that stands until it is put forward."""

    time: datetime

    def __call__(self) -> datetime:
        return self.time

    def forward(self, **how: float) -> None:
        self.time += timedelta(**how)


async def waiting_for(ledger: Ledger, chat: Receiver, count: int) -> tuple[Courier, Clock]:
    """Return a courier with so many messages, and its clock."""
    clock = Clock(utcnow() + timedelta(seconds=1))
    courier = courier_of(ledger, chat, schedule=Schedule(jitter=0), now=clock)
    outbox = ledger.outbox()
    await outbox.configure([courier.hook], NOW)
    for number in range(count):
        await outbox.add("store.back", f"{number}", {"number": number})
    return courier, clock


async def test_a_receiver_that_takes_nothing_is_probed_by_one_message_at_a_time_and_then_gets_all(
    ledger: Ledger, chat: Receiver
) -> None:
    courier, clock = await waiting_for(ledger, chat, 30)
    chat.answer = lambda _: 503
    async with delivering(courier, chat, 30):
        for pause in (5, 10, 20):
            await until(lambda: not courier.breaker.room(clock()))
            clock.forward(seconds=pause)
        await until(lambda: not courier.breaker.room(clock()))
        chat.answer = lambda _: 204
        clock.forward(seconds=40)
    assert len(chat.got) == 8 + 3 + 30
    assert len({got.data["number"] for got in chat.got[:11]}) == 11, "one bad message is not the only probe"


async def test_what_waited_for_three_days_is_given_up_if_the_receiver_took_nothing_all_the_while(
    ledger: Ledger, chat: Receiver, said: io.StringIO
) -> None:
    courier, clock = await waiting_for(ledger, chat, 30)
    chat.answer = lambda _: 503
    async with delivering(courier, chat, 0):
        await until(lambda: not courier.breaker.room(clock()))
        clock.forward(days=3, seconds=5)
        await until(lambda: courier.standing.given_up)
    assert len(chat.got) == 9
    assert courier.standing.given_up == 30 - 9, "what was tried has its own end"
    [gone] = events(said, "webhook.gave_up")
    assert (gone["dropped"], gone["error_code"]) == (30 - 9, "webhook_failed")


async def test_a_webhook_that_is_switched_on_again_is_taken_for_good(ledger: Ledger, chat: Receiver) -> None:
    courier, clock = await waiting_for(ledger, chat, 9)
    courier.breaker = Breaker(in_a_row=8, since=clock(), until=clock() + timedelta(hours=1))
    async with delivering(courier, chat, 9):
        courier.note_on()


async def test_a_backlog_at_a_broker_waits_for_no_lease(ledger: Ledger, chat: Receiver, tmp_path: Path) -> None:
    """What is leased and not sent would come again only after a minute."""
    database = SqliteDatabase(tmp_path / "state.db")
    outbox = StateOutbox(database)
    courier = courier_of(ledger, chat, outbox=outbox)
    outbox.want([courier.hook])
    links, names = Links(database, outbox), [hash_of(f"{number}") for number in range(60)]
    terms = ("scanner-1", "b", "k", "", 5, "", "a.pdf", "attachment", "", "", NOW, None, None)
    await links.put([NewLink(name, *terms) for name in names])
    for name in names:
        await links.open(name, NOW)
    others = asyncio.Event()

    async def text(message: Message, _: WebhookConfig) -> bytes:
        if message.subject == ref_of(names[0]):
            await others.wait()
        return told(message)

    courier.render = text
    async with delivering(courier, chat, 60):
        await until(lambda: len(chat.taken()) == 59)
        others.set()
    await database.close()
