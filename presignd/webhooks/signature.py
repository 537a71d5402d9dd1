"""Standard Webhooks' signature: HMAC-SHA256 over the message's id, the time of the try, and the body. Pure."""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Mapping
from datetime import datetime
from hashlib import sha256
from typing import Any

from presignd.config.rules import SECRET_PREFIX
from presignd.units import rfc3339


def key_of(secret: str) -> bytes:
    """Return the key in a secret that was checked (``rules.check_signing_secret``)."""
    return base64.b64decode(secret.removeprefix(SECRET_PREFIX))


def signed_headers(key: bytes, message_id: str, body: bytes, now: datetime) -> dict[str, str]:
    """Return the three headers of one try; ``now`` is when it is sent, by which receivers refuse repeats."""
    timestamp = str(int(now.timestamp()))
    signature = hmac.digest(key, f"{message_id}.{timestamp}.".encode() + body, sha256)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": f"v1,{base64.b64encode(signature).decode()}",
    }


def encoded(event: str, at: datetime, data: Mapping[str, Any]) -> bytes:
    """Return the body of a message: the event's type, when it happened, and its data."""
    document = {"type": event, "timestamp": rfc3339(at), "data": data}
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
