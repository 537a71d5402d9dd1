"""Checks of webhooks: none is off, and each receiver's host answers.

No message is sent: ``presignd webhook test`` does that.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from presignd.checks.base import CheckResult, fail, ok, warn
from presignd.config import WebhookConfig
from presignd.errors import UsageError
from presignd.ledger import FILE
from presignd.ledger.outbox import addresses_off
from presignd.ledger.schema import LEDGER
from presignd.system.sqlite import DatabaseFile
from presignd.webhooks.schedule import Answer
from presignd.webhooks.webhooks import hook_of, host_of, register

if TYPE_CHECKING:
    from presignd.checks.base import Context
    from presignd.webhooks.sender import Sender

BY_A_PROXY = {502: "bad gateway", 503: "unavailable", 504: "gateway timeout"}
"""Statuses of a proxy whose receiver is away."""


async def check_webhooks(context: Context) -> AsyncIterator[CheckResult]:
    """Check that each webhook's CA file can be used, and that none is off; yield only problems."""
    webhooks = context.config.webhooks
    off = await asyncio.to_thread(_addresses_off, context.config.ledger.path) if webhooks else {}
    for webhook in webhooks:
        if problem := _unusable(webhook):
            yield problem
        # One that has another address now is switched on by a reload.
        if off.get(webhook.name) == hook_of(webhook).address:
            yield off_result(webhook.name)


def _addresses_off(folder: Path) -> dict[str, bytes]:
    """Read which webhooks are off from the ledger in ``folder``, also while a daemon has it open.

    Returns none if the ledger can't be read: the check of the ledger reports why.
    """
    file = DatabaseFile(folder / FILE, LEDGER)
    try:
        if not file.path.exists():  # SQLite would make it
            return {}
        with closing(file.connect()) as connection:
            return addresses_off(connection)
    except (sqlite3.Error, OSError):
        return {}


def off_result(name: str, command: str = "presignd webhook") -> CheckResult:
    """Return the warning for a webhook that is off; ``command enable`` switches it on."""
    fix = f"if its receiver is there again: {command} enable {name}"
    return warn(f"webhook {name}", "is off, as its receiver answered 410 (gone)", fix)


async def check_receivers(context: Context) -> AsyncIterator[CheckResult]:
    """Check that the host of each webhook answers."""
    for result in await receiver_results(context.config.webhooks):
        yield result


async def receiver_results(webhooks: Sequence[WebhookConfig], command: str = "presignd webhook") -> list[CheckResult]:
    """Return whether the hosts of ``webhooks`` answer; ``command test`` sends a message to one."""
    return await asyncio.gather(*(_receiver_result(webhook, command) for webhook in webhooks))


async def _receiver_result(webhook: WebhookConfig, command: str) -> CheckResult:
    register(webhook)
    if problem := _unusable(webhook):
        return problem
    sender = _sender(webhook)
    try:
        return receiver_result(webhook, await sender.reach(), command)
    finally:
        await sender.close()


def receiver_result(webhook: WebhookConfig, answer: Answer, command: str) -> CheckResult:
    """Judge what a webhook's host answered to a request that is no message. Any status is an answer."""
    name, host = f"webhook {webhook.name}", host_of(webhook)
    if not answer.status:
        fix = f"start the receiver, or correct its address; a private CA belongs in webhook.{webhook.name}.ca_file"
        return fail(name, f"{host}: {answer.why}", fix)
    if meaning := BY_A_PROXY.get(answer.status):
        fix = f"look at what is behind it, and send it a message: {command} test {webhook.name}"
        return warn(name, f"{host} answers {answer.status} ({meaning})", fix)
    return ok(name, f"{host} answers; {command} test {webhook.name} sends it a message")


def _unusable(webhook: WebhookConfig) -> CheckResult | None:
    try:
        _sender(webhook)
    except UsageError as error:
        return fail(f"webhook {webhook.name}", error.message, "name the PEM file of the CA's certificate")
    return None


def _sender(webhook: WebhookConfig) -> Sender:
    from presignd.webhooks.sender import Sender  # noqa: PLC0415 - it brings aiohttp, which --offline does not need

    return Sender(webhook)
