"""The requests of ``presignd broker webhook``: a running broker answers on its socket, else the command itself.

A request is ``{"op": …}`` with the fields that its method names, the answer one JSON object. It holds only the host of
an address.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from presignd.broker.state.database import needed
from presignd.control.fields import text
from presignd.control.peer import Peer
from presignd.webhooks.shown import of_tested, of_webhook
from presignd.webhooks.webhooks import Webhooks

Request = Mapping[str, Any]
Document = dict[str, Any]


class WebhookCommands:
    """Answers requests about a broker's webhooks."""

    def __init__(self, webhooks: Webhooks) -> None:
        self._webhooks = webhooks
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
        with needed():
            yield await self._operations[text(request, "op")](request)

    async def _list(self, _request: Request) -> Document:
        """Return ``{"webhooks"}``, in the configuration's order."""
        return {"webhooks": [of_webhook(each) for each in await self._webhooks.overview()]}

    async def _test(self, request: Request) -> Document:
        """Send a signed test message; return the webhook's name and the result."""
        return of_tested(*await self._webhooks.test(text(request, "webhook")))

    async def _enable(self, request: Request) -> Document:
        """Switch a webhook that is off on again; return its name."""
        return {"webhook": await self._webhooks.enable(text(request, "webhook"))}
