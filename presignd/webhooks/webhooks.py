"""All webhooks of one program: record their events, send their messages, and show their state."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias
from urllib.parse import urlsplit

from presignd.config import WebhookConfig
from presignd.errors import Refused
from presignd.redaction import redact
from presignd.runtime.heartbeat import resting
from presignd.runtime.tasks import looping
from presignd.system.clock import utcnow
from presignd.telemetry.log import get_logger
from presignd.webhooks.outbox import Hook, Outbox, Waiting
from presignd.webhooks.schedule import Answer, Schedule
from presignd.webhooks.signature import encoded

if TYPE_CHECKING:
    from presignd.webhooks.courier import Courier, Render, Standing

LOOK_SECONDS = 60.0
"""The longest time between two queries for messages, if only this process records some."""
TEST = "webhook.test"
LEAST_PATH = 12
"""Least length of an address's path and query at which these, without the host, are redacted in the log."""

log = get_logger()

Prepared: TypeAlias = "list[Courier]"
"""Webhooks that are ready to be switched to."""


class WebhookView(NamedTuple):
    """The state of one webhook, for people. ``host`` is all that is shown of its address."""

    name: str
    host: str
    waiting: Waiting
    standing: Standing


class Webhooks:
    """Sends the messages of an outbox to the webhooks of the configuration in effect.

    ``render`` makes a message's body.
    """

    def __init__(
        self,
        outbox: Outbox,
        render: Render,
        *,
        schedule: Schedule | None = None,
        now: Callable[[], datetime] = utcnow,
        look: float = LOOK_SECONDS,
    ) -> None:
        self._outbox, self._render, self._schedule = outbox, render, schedule or Schedule()
        self._now, self._look = now, look
        self._couriers: dict[str, Courier] = {}
        self._retired: list[Courier] = []
        self._changed = asyncio.Event()

    def prepare(self, webhooks: Sequence[WebhookConfig]) -> Prepared:
        """Prepare webhooks for ``switch``, which can't fail. Raises ``UsageError`` for an unusable CA file."""
        return [self._courier(webhook) for webhook in webhooks]

    async def switch(self, prepared: Prepared) -> None:
        """Record and send for these webhooks from now on; those that did not change continue."""
        off = await self._outbox.configure([courier.hook for courier in prepared], self._now())
        for courier in prepared:
            courier.standing.off_since = off.get(courier.hook.name)
        before, self._couriers = self._couriers, {courier.hook.name: courier for courier in prepared}
        self._retired += [courier for courier in before.values() if courier not in prepared]
        self._changed.set()

    def _courier(self, webhook: WebhookConfig) -> Courier:
        known = self._couriers.get(webhook.name)
        if known is not None and known.webhook == webhook:
            return known
        # It imports aiohttp, which a daemon without webhooks loads later.
        from presignd.webhooks.courier import Courier  # noqa: PLC0415 - as above
        from presignd.webhooks.sender import Sender  # noqa: PLC0415 - as above

        register(webhook)
        hook = hook_of(webhook)
        sender = Sender(webhook)
        return Courier(webhook, hook, self._outbox, self._render, sender, self._schedule, self._now, self._look)

    async def run(self) -> None:
        """Send the messages, until cancelled."""
        while True:
            self._changed.clear()
            async with looping() as loops:
                for name, courier in self._couriers.items():
                    loops.start(f"webhook {name}", courier.run())
                with resting():
                    await self._changed.wait()
            await self._close_retired()

    async def _close_retired(self) -> None:
        while self._retired:
            await self._retired.pop().sender.close()

    def wake(self) -> None:
        """Look for messages now: some may have been recorded."""
        for courier in self._couriers.values():
            courier.wake()

    def wants(self, event: str) -> bool:
        """Return whether any webhook wants an event."""
        return any(event in courier.hook.events for courier in self._couriers.values())

    async def close(self) -> None:
        """Close every connection."""
        self._retired += self._couriers.values()
        await self._close_retired()

    # --- for people -----------------------------------------------------------------------------------
    async def overview(self) -> list[WebhookView]:
        """Return the state of each webhook, in the configuration's order. Another broker may have switched one off."""
        if not self._couriers:
            return []
        waiting = await self._outbox.waiting()
        off = {name: await self._outbox.off_since(name) for name in self._couriers}
        return [
            WebhookView(
                name,
                host_of(courier.webhook),
                waiting.get(name, Waiting()).held_until(courier.breaker.until),
                replace(courier.standing, off_since=off.get(name)),
            )
            for name, courier in self._couriers.items()
        ]

    async def test(self, named: str) -> tuple[str, Answer]:
        """Send a signed ``webhook.test`` to a webhook, by its name or address; "" means the only one there is."""
        courier = self._named(named)
        now = self._now()
        data: Mapping[str, Any] = {"webhook": courier.hook.name}
        answer = await courier.sender.send(f"msg_{secrets.token_hex(16)}", encoded(TEST, now, data), now)
        log.info("webhook.tested", webhook=courier.hook.name, delivered=answer.is_delivered, answered=answer.status)
        return courier.hook.name, answer

    async def enable(self, named: str) -> str:
        """Switch a webhook on again that answered 410; return its name."""
        courier = self._named(named)
        if await self._outbox.off_since(courier.hook.name) is None:  # another broker may have switched it off
            raise Refused(f"webhook: {courier.hook.name} is not off")
        await self._outbox.switch_on(courier.hook)
        courier.note_on()
        return courier.hook.name

    def _named(self, named: str) -> Courier:
        if not self._couriers:
            raise Refused("webhook: there is none", fix="add a [[webhook]] to the configuration (docs/webhooks.md)")
        if not named and len(self._couriers) == 1:
            return next(iter(self._couriers.values()))
        for name, courier in self._couriers.items():
            if named in {name, courier.webhook.url.get_secret_value()}:
                return courier
        names = ", ".join(self._couriers)
        raise Refused(
            "webhook: which one?" if not named else "webhook: there is none of that name", fix=f"name: {names}"
        )


def hook_of(webhook: WebhookConfig) -> Hook:
    """Return a webhook as an outbox needs it."""
    address = sha256(webhook.url.get_secret_value().encode()).digest()
    return Hook(webhook.name, webhook.events, address)


def host_of(webhook: WebhookConfig) -> str:
    """Return the host of a webhook's address, all of it that is shown."""
    return urlsplit(webhook.url.get_secret_value()).netloc


def register(webhook: WebhookConfig) -> None:
    """Register a webhook's secret and address for redaction: the addresses of chats and of ntfy's topics open them."""
    url, secret = webhook.url.get_secret_value(), webhook.secret.get_secret_value()
    parts = urlsplit(url)
    path = f"{parts.path}?{parts.query}" if parts.query else parts.path
    for text in (secret, secret.removeprefix("whsec_"), url, path if len(path) >= LEAST_PATH else ""):
        redact.register(text)
