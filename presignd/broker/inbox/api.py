"""``/v1/inbox/``: what came in by an invitation, for tokens that may ``receive`` and ``get`` it.

A call waits until something is there. It also sees files that come in at other brokers, as it queries the state every
``LOOK_SECONDS``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import web

from presignd.broker import metrics
from presignd.broker.access import Rejected
from presignd.broker.calls import Calls, as_json
from presignd.broker.config import LinksSection, TokenConfig
from presignd.broker.inbox import wire
from presignd.broker.inbox.bell import Bell, heard
from presignd.broker.invitations import audit
from presignd.broker.limits import ConcurrencyLimit
from presignd.broker.links.api import STATE_RETRY
from presignd.broker.policy import RefusalCode, lies_within, may_receive
from presignd.broker.state.arrivals import Arrival, Arrivals
from presignd.broker.state.database import Database, StateAway
from presignd.broker.state.invitations import Invitation, Invitations
from presignd.system.clock import utcnow

LONGEST_WAIT = 30
"""Seconds that a call may wait: less than proxies do (nginx: 60)."""

LOOK_SECONDS = 1.0
"""Seconds between two queries of the state; the token is checked again at each."""

PAGE = 1000
"""Files in one answer."""

_NAME = "{invitation:[A-Za-z0-9][A-Za-z0-9._-]{0,63}}"
"""The part of a path that names an invitation."""
_LONGEST_NUMBER = 18
"""Digits of a BIGINT."""

Handler = Callable[["InboxCalls", web.Request], Awaitable[web.Response]]


def _needing_state(handler: Handler) -> Handler:
    """Answer 503 while the state is away, and 403 where this broker has no invitations."""

    async def answer(self: InboxCalls, request: web.Request) -> web.Response:
        if not self.config.url:
            self.calls.authenticated(request)
            raise Rejected(403, RefusalCode.OPERATION_REFUSED, "this broker has no invitations: [links] url is not set")
        try:
            return await handler(self, request)
        except StateAway:
            message = "what came in can't be looked up now; try again"
            raise Rejected(503, "state_unreachable", message, retry_after=STATE_RETRY) from None

    return answer


class InboxCalls:
    """The handlers; ``calls`` authenticates them.

    ``bell`` rings when something came in, and when the broker drains. ``waiting`` limits the calls that wait; these do
    not count against other limits.
    """

    def __init__(
        self, calls: Calls, config: LinksSection, database: Database, bell: Bell, waiting: ConcurrencyLimit
    ) -> None:
        self.calls, self.config = calls, config
        self._invitations, self._arrivals = Invitations(database), Arrivals(database)
        self._bell, self._waiting = bell, waiting

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of the API."""
        return [
            web.get(f"/v1/inbox/{_NAME}", self.listed, allow_head=False),
            web.post(f"/v1/inbox/{_NAME}/ack", self.ack),
        ]

    @_needing_state
    async def listed(self, request: web.Request) -> web.Response:
        """Answer with the files that came in, as soon as there are any, or after the time that the caller waits."""
        token = self.calls.authenticated(request)
        after, wait = _number(request, "after", 0), _number(request, "wait", 0)
        with self.calls.answering(request):
            try:
                async with self._waiting.hold(token.name):
                    with metrics.INBOX_WAITING.track_inprogress():
                        found = await self._wait(request, after, min(wait, LONGEST_WAIT))
            except Rejected as rejected:
                rejected.by = token.name
                raise
        return as_json(wire.shown(found, after))

    async def _wait(self, request: web.Request, after: int, seconds: float) -> list[Arrival]:
        ends = asyncio.get_running_loop().time() + seconds
        while True:
            ring = self._bell.next()
            invitation = await self._invitation(request, self.calls.again(request))
            found = await self._arrivals.after(invitation, after, PAGE)
            left = ends - asyncio.get_running_loop().time()
            if found or left <= 0 or self.calls.draining or request.transport is None:
                return found
            await heard(ring, min(LOOK_SECONDS, left))

    @_needing_state
    async def ack(self, request: web.Request) -> web.Response:
        """Take files off the list. Ids not on it are ignored: a caller whose answer was lost sends them again."""

        async def answer(token: TokenConfig, asked: wire.Acks) -> None:
            invitation = await self._invitation(request, token)
            for arrival in await self._arrivals.ack(invitation, asked.ids, utcnow()):
                audit.acked(token.name, self.calls.client(request), invitation, arrival)

        await self.calls.in_turn(request, wire.read_acks, answer)
        return web.Response(status=204)

    async def _invitation(self, request: web.Request, token: TokenConfig) -> Invitation:
        """Return the invitation of a path, ended or not; raise ``Rejected``, for another token's as for none."""
        if refusal := may_receive(token):
            raise Rejected(403, refusal.code, refusal.message)
        invitation = await self._invitations.named(request.match_info["invitation"])
        if invitation is None or not lies_within(token, invitation.new.bucket, invitation.new.prefix):
            raise Rejected(404, "unknown_invitation", "there is none of this name in the token's bucket and prefix")
        return invitation


def _number(request: web.Request, name: str, default: int) -> int:
    """Return a number of the query, the default if it is left out or empty; raise ``Rejected`` for anything else."""
    text = request.query.get(name) or str(default)
    if not (text.isascii() and text.isdigit() and len(text) <= _LONGEST_NUMBER):
        raise Rejected(400, "bad_request", f"{name}: give a number")
    return int(text)
