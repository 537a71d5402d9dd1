"""Sends one message once. The address is a secret: errors and logs hold only its host."""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
from yarl import URL

from presignd.config import WebhookConfig
from presignd.connection import client_session, connection_fault, proxy_for, read_at_most
from presignd.errors import UsageError
from presignd.system.clock import utcnow
from presignd.webhooks.schedule import Answer
from presignd.webhooks.signature import key_of, signed_headers

TIMEOUT = 15.0
"""Seconds for one try, connecting included."""
MOST_READ = 16 << 10
"""Most bytes of an answer that are read (and ignored), so that its connection can be reused."""


class Sender:
    """Sends messages to one webhook, over connections of its own. Raises ``UsageError`` for an unusable CA file."""

    def __init__(self, webhook: WebhookConfig, *, timeout: float = TIMEOUT) -> None:
        self._url, self._timeout = webhook.url.get_secret_value(), timeout
        self._key = key_of(webhook.secret.get_secret_value())
        self._tls = _tls(webhook) if self._url.startswith("https:") else None
        self._session: aiohttp.ClientSession | None = None

    async def send(self, message_id: str, body: bytes, now: datetime) -> Answer:
        """Sign a message as of ``now`` and send it; redirects are not followed."""
        headers = {"Content-Type": "application/json", **signed_headers(self._key, message_id, body, now)}
        return await self._ask("POST", URL(self._url, encoded=True), now, data=body, headers=headers)

    async def reach(self) -> Answer:
        """Send an OPTIONS request, which no receiver takes for a message, to its host; the path is not sent."""
        return await self._ask("OPTIONS", URL(self._url, encoded=True).origin(), utcnow())

    async def _ask(self, method: str, url: URL, now: datetime, **request: Any) -> Answer:
        began = time.monotonic()
        try:
            async with (
                asyncio.timeout(self._timeout),
                self._open_session().request(
                    method, url, allow_redirects=False, proxy=proxy_for(self._url, ""), **request
                ) as answer,
            ):
                await read_at_most(answer, MOST_READ)
                retry_after = _retry_after(answer.headers.get("Retry-After", ""), now)
                return Answer(answer.status, "", retry_after, time.monotonic() - began)
        except TimeoutError:
            return Answer(0, f"no answer within {self._timeout:g} s", took=time.monotonic() - began)
        except (aiohttp.ClientError, OSError, ValueError) as problem:
            return Answer(0, connection_fault(problem).message, took=time.monotonic() - began)

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = client_session(self._tls)
        return self._session

    async def close(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()
            self._session = None


def _retry_after(value: str, now: datetime) -> float | None:
    """Return the seconds of a Retry-After, also from a date; None if it has none."""
    if re.fullmatch("[0-9]{1,9}", value):
        return float(value)
    try:
        until = parsedate_to_datetime(value)
        return max(0.0, (until if until.tzinfo else until.replace(tzinfo=UTC)).timestamp() - now.timestamp())
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _tls(webhook: WebhookConfig) -> ssl.SSLContext:
    context = ssl.create_default_context()
    try:
        if webhook.ca_file:
            context.load_verify_locations(cafile=webhook.ca_file)
    except OSError:  # OpenSSL's errors are OSErrors too
        problem = f"webhook.{webhook.name}.ca_file: {webhook.ca_file} can't be used; it must be a PEM file"
        raise UsageError(problem, problems=(problem,)) from None
    return context
