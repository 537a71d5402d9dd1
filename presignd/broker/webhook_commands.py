"""What ``presignd broker webhook`` asks: a running broker answers it over its control socket, else the command itself.

A request is ``{"op": …}`` with the fields its method names, the answer one JSON object. Of an address only the host is
in it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from presignd.broker.state.database import StateAway
from presignd.broker.state.outbox import StateOutbox
from presignd.control.fields import text
from presignd.control.peer import Peer
from presignd.errors import Unavailable
from presignd.units import rfc3339
from presignd.webhooks.shown import of_tested, of_webhook
from presignd.webhooks.webhooks import Webhooks

Request = Mapping[str, Any]
Document = dict[str, Any]


class WebhookCommands:
    """Answers requests about a broker's webhooks, whose messages are in ``outbox``."""

    def __init__(self, webhooks: Webhooks, outbox: StateOutbox) -> None:
        self._webhooks, self._outbox = webhooks, outbox
        self._operations = {
            "webhook_list": self._list,
            "webhook_test": self._test,
            "webhook_enable": self._enable,
        }

    def knows(self, request: Request) -> bool:
        """Return whether a request is about webhooks."""
        return text(request, "op") in self._operations

    async def answer(self, request: Request, _peer: Peer, _fds: Sequence[int]) -> AsyncGenerator[Document, None]:
        """Answer one request that it ``knows``; raise ``PresigndError``."""
        try:
            yield await self._operations[text(request, "op")](request)
        except StateAway as away:
            raise Unavailable(f"the state can't be used: {away}", fix=away.fix) from None

    async def _list(self, _request: Request) -> Document:
        """Return ``{"webhooks"}``, in the configuration's order. Another broker may have switched one off."""
        found = [of_webhook(each) for each in await self._webhooks.overview()]
        for each in found:
            since = await self._outbox.off_since(each["name"])
            each["off_since"] = rfc3339(since) if since else None
        return {"webhooks": found}

    async def _test(self, request: Request) -> Document:
        """Send a signed test message; return which webhook it went to, and how that ended."""
        return of_tested(*await self._webhooks.test(text(request, "webhook")))

    async def _enable(self, request: Request) -> Document:
        """Switch a webhook on again that is off; return which."""
        return {"webhook": await self._webhooks.enable(text(request, "webhook"))}
