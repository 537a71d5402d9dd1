"""The JSON of webhooks' states: times are RFC 3339 in UTC, and only the host of an address is in it."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from presignd.units import rfc3339

if TYPE_CHECKING:
    from presignd.webhooks.schedule import Answer
    from presignd.webhooks.webhooks import WebhookView

Document = dict[str, Any]


def of_webhook(found: WebhookView) -> Document:
    """Render the state of one webhook."""
    waiting, standing = found.waiting, found.standing
    return {
        "name": found.name,
        "host": found.host,
        "waiting": waiting.messages,
        "oldest": _time(waiting.oldest),
        "next_try": _time(waiting.next_try),
        "delivered_at": _time(standing.delivered_at),
        "failing_since": _time(standing.failing_since),
        "problem": standing.problem,
        "given_up": standing.given_up,
        "off_since": _time(standing.off_since),
    }


def of_tested(name: str, answer: Answer) -> Document:
    """Render how a webhook's receiver answered a test message."""
    problem = None if answer.is_delivered else answer.problem.message
    took = round(answer.took * 1000)
    return {"webhook": name, "delivered": answer.is_delivered, "status": answer.status, "error": problem, "ms": took}


def _time(time: datetime | None) -> str | None:
    return None if time is None else rfc3339(time)
