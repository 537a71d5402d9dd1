"""The messages for a broker's webhooks: make the body of each from the data in the state."""

from __future__ import annotations

from typing import Any

from presignd.broker.state.outbox import StateOutbox
from presignd.config import WebhookConfig
from presignd.redaction.redact import redact_texts
from presignd.webhooks.outbox import Message
from presignd.webhooks.signature import encoded
from presignd.webhooks.webhooks import Webhooks

LOOK_SECONDS = 2.0
"""Seconds between two queries for messages: each request, at any of the brokers, may record some."""


def webhooks_of(outbox: StateOutbox) -> Webhooks:
    """Return the sender of a broker's messages."""
    return Webhooks(outbox, _text, look=LOOK_SECONDS)


async def _text(message: Message, webhook: WebhookConfig) -> bytes:  # noqa: ARG001 - the same for every webhook
    """Return a message's body. It has no link: a broker stores only the hash of what opens one."""
    data: dict[str, Any] = redact_texts(
        {name: value for name, value in message.data.items() if value not in ("", None)}
    )
    return encoded(message.event, message.at, data)
