"""``presignd webhook`` and ``presignd broker webhook``: what they print, and how they end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from presignd.broker.control import serving
from presignd.broker.load import load
from presignd.broker.state.links import Links, NewLink, hash_of
from presignd.broker.state.outbox import StateOutbox
from presignd.broker.state.sqlite import SqliteDatabase
from presignd.broker.webhook_commands import WebhookCommands
from presignd.cli.broker_state import ask_broker
from presignd.config import WebhookConfig
from presignd.control.peer import Peer
from presignd.control.server import Answered
from presignd.errors import CODES, Unavailable
from presignd.webhooks.outbox import Hook, Message
from presignd.webhooks.signature import encoded
from presignd.webhooks.webhooks import Webhooks, hook_of
from tests.canary import assert_no_secrets
from tests.integration.test_commands import Done, presignd
from tests.receivers import PATH, SECRET, Receiver, receiver
from tests.served import Served, served

__all__ = ["served"]

NOW = datetime(2026, 11, 29, 12, 0, 0, tzinfo=UTC)
LINK = NewLink(hash_of("one"), "scanner-1", "b", "k", "", 5, "", "a.pdf", "attachment", "", "", NOW, None, None)


@pytest.fixture
async def chat() -> AsyncIterator[Receiver]:
    async with receiver() as found:
        yield found


async def text(message: Message, _webhook: WebhookConfig) -> bytes:
    return encoded(message.event, message.at, message.data)


async def ended(served: Served, *arguments: str | Path, code: int) -> Done:
    done = await presignd(served, *arguments)
    assert done.code == code, done.err
    assert_no_secrets(done.out + done.err, SECRET, PATH)
    return done


# --- the daemon's -----------------------------------------------------------------------------------
@pytest.fixture
async def hooked(served: Served, chat: Receiver) -> AsyncIterator[Served]:
    """Yield a daemon's socket with one webhook, "chat"."""
    webhooks = Webhooks(served.view.ledger.outbox(), text)
    await webhooks.switch(webhooks.prepare([chat.webhook()]))
    served.view.webhooks = webhooks
    yield served
    await webhooks.close()


async def test_test_prints_how_the_receiver_answered_and_ends_with_3_if_it_did_not_take_it(
    hooked: Served, chat: Receiver
) -> None:
    done = await ended(hooked, "webhook", "test", code=0)
    assert done.out.startswith("chat: delivered (204), ")
    assert [got.type for got in chat.got] == ["webhook.test"]
    chat.answer = lambda _: 500
    failed = await ended(hooked, "webhook", "test", "chat", "--json", code=3)
    found = json.loads(failed.out)
    assert (found["webhook"], found["delivered"], found["status"]) == ("chat", False, 500)
    refused = await ended(hooked, "webhook", "test", chat.url, code=3)
    assert refused.out.startswith("chat: not delivered: it answered 500, ")


async def test_a_webhook_that_is_not_there_is_refused_and_those_that_are_named(hooked: Served) -> None:
    done = await ended(hooked, "webhook", "test", "pager", code=4)
    assert "there is none of that name" in done.err
    assert "name: chat" in done.err


async def test_enable_switches_on_what_is_off_and_refuses_what_is_on(hooked: Served) -> None:
    assert "chat is not off" in (await ended(hooked, "webhook", "enable", "chat", code=4)).err
    outbox = hooked.view.ledger.outbox()
    webhooks = hooked.view.webhooks
    [(_, courier)] = webhooks._couriers.items()
    await outbox.switch_off(courier.hook, NOW)
    await webhooks.switch([courier])
    assert (await ended(hooked, "webhook", "enable", code=0)).out == "chat: on\n"
    assert await outbox.off_since("chat") is None


async def test_without_a_webhook_the_command_says_how_to_add_one(served: Served) -> None:
    served.view.webhooks = Webhooks(served.view.ledger.outbox(), text)
    assert "[[webhook]]" in (await ended(served, "webhook", "test", code=4)).err


# --- a broker's -------------------------------------------------------------------------------------
@dataclass
class Desk:
    """A broker's configuration with the webhook "desk", and its state."""

    file: Path
    database: SqliteDatabase
    webhook: WebhookConfig

    @property
    def outbox(self) -> StateOutbox:
        outbox = StateOutbox(self.database)
        outbox.want([self.hook])
        return outbox

    @property
    def hook(self) -> Hook:
        return hook_of(self.webhook)

    async def open_link(self) -> None:
        links = Links(self.database, self.outbox)
        await links.put([LINK])
        await links.open(LINK.id, NOW)


@pytest.fixture
async def desk(tmp_path: Path, chat: Receiver) -> AsyncIterator[Desk]:
    (tmp_path / "broker.toml").write_text(
        '[store]\nendpoint = "http://127.0.0.1:9"\naccess_key = "a"\nsecret_key = "b"\n'
        '[links]\nurl = "http://links.localhost"\n[state]\npath = "state.db"\n'
        f'[[webhook]]\nname = "desk"\nurl = "{chat.url}"\nsecret = "{SECRET}"\n'
    )
    (tmp_path / "broker.toml").chmod(0o600)
    database = SqliteDatabase(tmp_path / "state.db")
    yield Desk(tmp_path / "broker.toml", database, chat.webhook("desk"))
    await database.close()


async def commanded(served: Served, desk: Desk, *words: str, code: int = 0) -> Done:
    return await ended(served, "broker", "webhook", *words, "-c", desk.file, code=code)


async def test_a_brokers_test_is_sent_by_the_command_itself(served: Served, desk: Desk, chat: Receiver) -> None:
    assert (await commanded(served, desk, "test")).out.startswith("desk: delivered (204), ")
    assert [got.type for got in chat.got] == ["webhook.test"]
    chat.answer = lambda _: 302
    assert not json.loads((await commanded(served, desk, "test", "desk", "--json", code=3)).out)["delivered"]


async def test_a_brokers_list_shows_what_waits_and_what_is_off(served: Served, desk: Desk) -> None:
    await desk.open_link()
    [shown] = json.loads((await commanded(served, desk, "list", "--json")).out)
    assert (shown["name"], shown["host"]) == ("desk", desk.webhook.url.get_secret_value().split("/")[2])
    assert (shown["waiting"], shown["oldest"], shown["off_since"]) == (1, "2026-11-29T12:00:00.000000Z", None)
    await desk.outbox.switch_off(desk.hook, NOW)
    [row] = (await commanded(served, desk, "list")).out.splitlines()
    assert row.split("\t") == ["desk", shown["host"], "0", "0", "", "", "", "2026-11-29T12:00:00.000000Z", ""]


@asynccontextmanager
async def running(desk: Desk) -> AsyncIterator[Webhooks]:
    """Run what a broker runs of its webhooks, and its control socket."""
    webhooks = Webhooks(desk.outbox, text, look=0.02)
    await webhooks.switch(webhooks.prepare([desk.webhook]))
    config = await asyncio.to_thread(load, desk.file, environ={})
    async with serving(config, desk.database, WebhookCommands(webhooks)):
        sending = asyncio.create_task(webhooks.run())
        yield webhooks
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
    await webhooks.close()


async def test_a_running_broker_is_asked_and_tells_how_its_webhooks_do(
    served: Served, desk: Desk, chat: Receiver
) -> None:
    chat.answer = lambda _: 503
    async with running(desk) as webhooks:
        await desk.open_link()
        async with asyncio.timeout(20):
            while not (await webhooks.overview())[0].standing.failing_since:  # noqa: ASYNC110 - it is looked up
                await asyncio.sleep(0.01)
        desk.file.write_text("this can't be read, and need not be by others", "utf-8")
        [shown] = (await asked(desk, {"op": "webhook_list"}))["webhooks"]
        assert (shown["waiting"], shown["problem"]) == (1, f"{CODES['webhook_failed'].cause}: it answered 503")
        assert shown["failing_since"]
        assert not (await asked(desk, {"op": "webhook_test", "webhook": "desk"}))["delivered"]
        with pytest.raises(Answered, match="the broker does not know"):
            await asked(desk, {"op": "webhook_tst"})


async def asked(desk: Desk, request: dict[str, str]) -> dict[str, Any]:
    """Ask at the socket as the service's is asked: without its configuration."""
    places = {"system_file": desk.file, "system_socket": desk.file.with_name("broker-control.sock")}

    async def here(*_: object) -> dict[str, Any]:
        raise AssertionError("a broker runs")

    return await asyncio.to_thread(ask_broker, request, desk.file, here, **places)


async def test_what_another_broker_switched_off_is_shown_and_switched_on(
    served: Served, desk: Desk, chat: Receiver
) -> None:
    """A broker that did not meet the 410 itself asks the state."""
    async with running(desk):
        await desk.outbox.switch_off(desk.hook, NOW)
        [shown] = json.loads((await commanded(served, desk, "list", "--json")).out)
        assert shown["off_since"] == "2026-11-29T12:00:00.000000Z"
        assert (await commanded(served, desk, "enable")).out == "desk: on\n"
        assert await desk.outbox.off_since("desk") is None
        assert (await commanded(served, desk, "test")).out.startswith("desk: delivered (204), ")


async def test_a_state_that_is_away_is_told(tmp_path: Path, chat: Receiver) -> None:
    (tmp_path / "state.db").write_bytes(b"no database " * 1000)
    database = SqliteDatabase(tmp_path / "state.db")
    webhooks = Webhooks(StateOutbox(database), text)
    await webhooks.switch(webhooks.prepare([chat.webhook()]))
    answers = WebhookCommands(webhooks).answer({"op": "webhook_list"}, Peer.me(), ())
    with pytest.raises(Unavailable, match="the state can't be used"):
        await anext(answers)
    await webhooks.close()
    await database.close()


async def test_a_broker_that_runs_sees_that_a_command_switched_its_webhook_on(
    served: Served, desk: Desk, chat: Receiver
) -> None:
    """No reload: the broker that met the 410 asks the state now and then whether the webhook is on again."""
    chat.answer = lambda _: 410
    webhooks = Webhooks(desk.outbox, text, look=0.02)
    await webhooks.switch(webhooks.prepare([desk.webhook]))
    sending = asyncio.create_task(webhooks.run())
    await desk.open_link()
    async with asyncio.timeout(20):
        while await desk.outbox.off_since("desk") is None:  # noqa: ASYNC110 - the state has no event for it
            await asyncio.sleep(0.01)
    await desk.open_link()  # meanwhile: not told
    chat.answer = lambda _: 204
    assert (await commanded(served, desk, "enable", "desk")).out == "desk: on\n"
    await desk.open_link()
    async with asyncio.timeout(20):
        while not chat.taken():  # noqa: ASYNC110 - it counts what came
            await asyncio.sleep(0.01)
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    await webhooks.close()
    assert [got.status for got in chat.got] == [410, 204]
    assert "is not off" in (await commanded(served, desk, "enable", code=4)).err


async def test_a_broker_without_a_public_address_has_no_webhooks(served: Served, tmp_path: Path) -> None:
    file = tmp_path / "broker.toml"
    file.write_text('[store]\nendpoint = "http://127.0.0.1:9"\naccess_key = "a"\nsecret_key = "b"\n')
    file.chmod(0o600)
    assert "[links] url" in (await ended(served, "broker", "webhook", "list", "-c", file, code=2)).err
