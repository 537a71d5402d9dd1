"""``check`` and ``broker check`` of webhooks: each host is asked, and no receiver gets what may be an event to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web

from presignd.broker.config import BrokerConfig
from presignd.broker.load import load as load_broker
from presignd.broker.state.outbox import StateOutbox
from presignd.broker.state.place import database_at
from presignd.checks import Outcome, context_of, local_checks, run_checks
from presignd.checks.base import Check, CheckResult
from presignd.checks.broker import check_broker
from presignd.checks.webhooks import check_receivers, check_webhooks
from presignd.config import Config, WebhookConfig, load
from presignd.demo.seaweedfs import free_ports
from presignd.ledger import FILE, open_ledger
from presignd.ledger.lock import DaemonLock
from presignd.system.clock import utcnow
from presignd.webhooks.webhooks import hook_of
from tests.canary import assert_no_secrets
from tests.receivers import PATH, SECRET

CHECKS = (Check("webhooks", check_webhooks), Check("receivers", check_receivers, needs=("webhooks",), remote=True))


@dataclass
class Host:
    """A host that takes any request at any path; ``asked`` are their methods, paths and bodies."""

    port: int = 0
    asked: list[tuple[str, str, bytes]] = field(default_factory=list)


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    found = Host()

    async def take(request: web.Request) -> web.Response:
        found.asked.append((request.method, request.path_qs, await request.read()))
        return web.Response(status=404)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", take)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    found.port = runner.addresses[0][1]
    yield found
    await runner.cleanup()


def chat(port: int, **more: Path) -> WebhookConfig:
    return WebhookConfig(name="chat", url=f"http://127.0.0.1:{port}{PATH}", secret=SECRET, **more)


def configured(folder: Path, *webhooks: WebhookConfig) -> Config:
    file = folder / "config.toml"
    file.write_text('[[watch]]\nname = "drop"\npath = "drop"\nbucket = "test-bucket"\n')
    return load(file, environ={"HOME": str(folder)}).config.model_copy(update={"webhooks": webhooks})


async def told(config: Config) -> list[CheckResult]:
    async with context_of(config) as context:
        found = [result async for result in run_checks(context, CHECKS)]
    assert_no_secrets(repr(found).encode(), SECRET, PATH)
    return found


async def test_the_host_is_asked_and_its_receiver_gets_nothing(tmp_path: Path, host: Host) -> None:
    [result] = await told(configured(tmp_path, chat(host.port)))
    assert (result.name, result.outcome, result.remote) == ("webhook chat", Outcome.OK, True)
    assert host.asked == [("OPTIONS", "/", b"")]


async def test_a_receiver_that_is_away_fails_and_the_others_are_told(tmp_path: Path, host: Host) -> None:
    (closed,) = free_ports(1)
    away, here = chat(closed).model_copy(update={"name": "away"}), chat(host.port)
    first, second = await told(configured(tmp_path, away, here))
    assert (first.name, first.outcome, first.remote) == ("webhook away", Outcome.FAIL, True)
    assert first.detail.startswith(f"127.0.0.1:{closed}: nothing listens")
    assert second.outcome is Outcome.OK
    assert len(host.asked) == 1


async def test_a_ca_file_that_is_none_fails_before_anything_is_sent(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    private = WebhookConfig(name="chat", url=f"https://127.0.0.1:9{PATH}", secret=SECRET, ca_file=tmp_path / "ca.pem")
    broken, skipped = await told(configured(tmp_path, private))
    assert (broken.name, broken.outcome, broken.remote) == ("webhook chat", Outcome.FAIL, False)
    assert "webhook.chat.ca_file" in broken.detail
    assert skipped.outcome is Outcome.SKIPPED


async def test_a_webhook_that_is_off_is_warned_of_while_the_daemon_has_the_ledger_open(
    tmp_path: Path, host: Host
) -> None:
    here, moved = chat(host.port), chat(host.port).model_copy(update={"name": "moved"})
    config = configured(tmp_path, here, moved)
    with DaemonLock(config.ledger.path):
        ledger = await open_ledger(config.ledger.path)
        outbox, before = ledger.outbox(), hook_of(moved)._replace(address=b"another")
        await outbox.configure([hook_of(here), before], utcnow())
        for hook in (hook_of(here), before):
            await outbox.switch_off(hook, utcnow())
        off, first, second = await told(config)
        assert (off.name, off.outcome, off.remote) == ("webhook chat", Outcome.WARN, False)
        assert off.fix == "if its receiver is there again: presignd webhook enable chat"
        assert (first.outcome, second.outcome) == (Outcome.OK, Outcome.OK)
        await outbox.switch_on(hook_of(here))
        assert [result.outcome for result in await told(config)] == [Outcome.OK, Outcome.OK]
        await ledger.close(clean=True)


async def test_a_ledger_that_cant_be_read_is_left_to_its_own_check(tmp_path: Path, host: Host) -> None:
    config = configured(tmp_path, chat(host.port))
    config.ledger.path.mkdir(parents=True)
    (config.ledger.path / FILE).write_bytes(b"no database" * 99)
    [result] = await told(config)
    assert result.outcome is Outcome.OK


def test_nothing_is_sent_offline() -> None:
    assert [check.name for check in local_checks() if check.name in ("webhooks", "receivers")] == ["webhooks"]


async def broker_with(folder: Path, webhooks: str) -> BrokerConfig:
    """Return the configuration of a broker with these webhooks and a store that is away."""
    file = folder / "broker.toml"
    file.write_text(
        '[store]\nendpoint = "http://127.0.0.1:9"\naccess_key = "a"\nsecret_key = "b"\n'
        f'[links]\nurl = "http://links.localhost"\n{webhooks}'
    )
    file.chmod(0o600)
    return await asyncio.to_thread(load_broker, file, environ={})


async def test_a_brokers_check_names_its_own_commands_and_a_secret_that_others_can_read(
    tmp_path: Path, host: Host
) -> None:
    (tmp_path / "secret").write_text(SECRET)
    (tmp_path / "secret").chmod(0o644)
    (tmp_path / "ca.pem").write_text("no certificate")
    hook = f'[[webhook]]\nname = "desk"\nurl = "http://127.0.0.1:{host.port}{PATH}"\nsecret_file = "secret"\n'
    private = f'[[webhook]]\nname = "own"\nurl = "https://localhost/"\nsecret = "{SECRET}"\nca_file = "ca.pem"\n'
    config = await broker_with(tmp_path, hook + private)
    found = [result async for result in check_broker(config)]
    assert_no_secrets(repr(found).encode(), SECRET, PATH)
    by_name = {result.name: result for result in found if result.name.startswith("webhook")}
    assert (by_name["webhook desk"].outcome, by_name["webhook own"].outcome) == (Outcome.OK, Outcome.FAIL)
    assert "presignd broker webhook test desk" in by_name["webhook desk"].detail
    assert [result.detail for result in found if result.name == "config" and "secret_file" in result.detail] == [
        f"webhook.desk.secret_file: {tmp_path}/secret can be read by others; chmod 600 {tmp_path}/secret"
    ]
    assert host.asked == [("OPTIONS", "/", b"")]


async def test_a_brokers_check_warns_of_a_webhook_that_is_off(tmp_path: Path, host: Host) -> None:
    hook = f'[[webhook]]\nname = "desk"\nurl = "http://127.0.0.1:{host.port}{PATH}"\nsecret = "{SECRET}"\n'
    config = await broker_with(tmp_path, hook)
    database = database_at(config.state)
    await StateOutbox(database).switch_off(hook_of(config.webhooks[0]), utcnow())
    await database.close()
    found = [result async for result in check_broker(config)]
    [off, _] = [result for result in found if result.name == "webhook desk"]
    assert (off.outcome, off.fix.rpartition(": ")[2]) == (Outcome.WARN, "presignd broker webhook enable desk")
