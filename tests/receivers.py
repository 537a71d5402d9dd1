"""A receiver of webhooks in the test's own process: it verifies each signature, and answers as the test wants."""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from aiohttp import web

from presignd.config import WebhookConfig

SECRET = "whsec_" + base64.b64encode(b"a canary that signs what it sings").decode()
PATH = "/services/T0CANARY/B0CANARY/XcanaryXcanary"


class Got(NamedTuple):
    """One try that came in: its headers, its body, and how it was answered."""

    id: str
    timestamp: str
    document: dict[str, Any]
    status: int

    @property
    def type(self) -> str:
        return str(self.document["type"])

    @property
    def data(self) -> dict[str, Any]:
        found: dict[str, Any] = self.document["data"]
        return found


def is_signed(headers: Any, body: bytes, secret: str = SECRET) -> bool:
    """Return whether a message is signed, written apart from presignd's own code."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    text = headers["webhook-id"].encode() + b"." + headers["webhook-timestamp"].encode() + b"." + body
    wanted = "v1," + base64.b64encode(hmac.new(key, text, "sha256").digest()).decode()
    return hmac.compare_digest(headers["webhook-signature"], wanted)


@dataclass
class Receiver:
    """What came in. ``answer`` decides each status by the message; ``headers`` go with each answer."""

    base: str
    got: list[Got] = field(default_factory=list)
    answer: Callable[[dict[str, Any]], int] = lambda _: 204
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Its address, which is secret."""
        return self.base + PATH

    def taken(self, *types: str) -> list[Got]:
        """Return what it took, of these types (all without any)."""
        return [got for got in self.got if 200 <= got.status < 300 and (not types or got.type in types)]

    def webhook(self, name: str = "chat", **more: Any) -> WebhookConfig:
        """Configure a webhook that sends here."""
        return WebhookConfig(**{"name": name, "url": self.url, "secret": SECRET, **more})

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        assert is_signed(request.headers, body)
        document = json.loads(body)
        status = self.answer(document)
        self.got.append(Got(request.headers["webhook-id"], request.headers["webhook-timestamp"], document, status))
        return web.Response(status=status, headers=self.headers, text="an answer that nobody reads " * 10)


@asynccontextmanager
async def receiver(port: int = 0) -> AsyncIterator[Receiver]:
    """Receive until the block is left."""
    app = web.Application()
    runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
    receiver = Receiver("")
    app.router.add_post(PATH, receiver.handle)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    receiver.base = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield receiver
    finally:
        await runner.cleanup()
