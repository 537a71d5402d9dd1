"""``/i/``: the calls of guests.

Everyone who has an invitation's address may send files within its limits. The calls answer JSON, and need no CORS: the
page that sends them has the same origin. ``GET`` returns that page to a browser.
"""

from __future__ import annotations

import secrets
import time
import zlib
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, TypeVar

from aiohttp import web

from presignd.broker import wire
from presignd.broker.access import Rejected
from presignd.broker.calls import Calls, as_json
from presignd.broker.config import LinksSection
from presignd.broker.guest_page import page as guest_page
from presignd.broker.invitations import page
from presignd.broker.invitations import request as asking
from presignd.broker.invitations.desk import Desk, Issued, Signed
from presignd.broker.invitations.facts import StoreFacts
from presignd.broker.limits import GrantRates
from presignd.broker.links.api import ONE, STATE_RETRY
from presignd.broker.links.guard import MISS_WINDOW, MISSES, PIN_TRIES, PIN_WINDOW, ClientLimit, is_pass, new_pass
from presignd.broker.links.pin import Pins
from presignd.broker.links.public import HEADERS, is_browser, page_response, words_of
from presignd.broker.policy import Refusal
from presignd.broker.state.database import Database, StateAway
from presignd.broker.state.invitations import Invitation, Invitations
from presignd.broker.state.links import hash_of
from presignd.broker.state.outbox import StateOutbox
from presignd.errors import Fault
from presignd.presign import Grant
from presignd.store.signed import SignedStore
from presignd.system.clock import utcnow

RATE = 200.0
"""Files and grants a second for one invitation, at each broker. A guest with 16 MiB parts needs some ten."""

STORE_RETRY = 5
"""Retry-After in seconds while the store can't be reached."""

A = TypeVar("A")


class PublicInvitations:
    """The handlers. ``store`` returns the one in use: a reload replaces it; ``origin`` returns that of a bucket.

    ``on_received`` is called when a file came in.
    """

    def __init__(
        self,
        calls: Calls,
        config: LinksSection,
        database: Database,
        store: Callable[[], SignedStore],
        origin: Callable[[str], str],
        *,
        on_received: Callable[[], None] = lambda: None,
        outbox: StateOutbox | None = None,
    ) -> None:
        self.calls, self._config, self._database = calls, config, database
        self._invitations, self._origin = Invitations(database), origin
        self._on_received = on_received
        self._facts = StoreFacts(store, config.url)
        self._desk = Desk(database, store, self._facts.honoured, outbox)
        self._pins, self._rates = Pins(), GrantRates()
        self._misses = ClientLimit(MISSES, MISS_WINDOW)
        self._tries = ClientLimit(PIN_TRIES, PIN_WINDOW)
        self._secret = b""

    def routes(self) -> list[web.RouteDef]:
        """Return the public routes; none where this broker has no public address."""
        if not self._config.url:
            return []
        place = f"/i/{ONE}"
        calls = {"pin": self.pin, "files": self.files, "sign": self.sign, "done": self.done, "cancel": self.cancel}
        return [
            web.get(place, self.get),  # HEAD too
            *(web.post(f"{place}/{name}", handler) for name, handler in calls.items()),
            *(web.get(f"{guest_page.PLACE}{name}", _asset) for name in guest_page.ASSETS),
            web.get("/i/{else:[^/]*}", self.other),
        ]

    # --- the page -------------------------------------------------------------------------------------
    async def get(self, request: web.Request) -> web.StreamResponse:
        """Answer with what the invitation allows."""
        try:
            with self._answering(request):
                invitation = await self._invitation(request, utcnow())
        except Rejected as rejected:
            return self._refused(request, rejected)
        if is_browser(request):
            response = page_response(request, 200, page.offer_page(invitation))
            store = self._origin(invitation.new.bucket)
            response.headers["Content-Security-Policy"] = guest_page.security_policy(store)
            return response
        checksums = (await self._facts.of(invitation.new.bucket, invitation.new.prefix)).checksums
        return as_json(asking.allowed(invitation, checksums._asdict()), headers={"Vary": "Accept"})

    async def other(self, request: web.Request) -> web.StreamResponse:
        """Answer that there is no such invitation."""
        self._misses.take(self.calls.client(request), utcnow())
        return self._refused(request, _unknown())

    def _refused(self, request: web.Request, rejected: Rejected) -> web.StreamResponse:
        """Answer a browser with a page; raise ``Rejected`` for others."""
        if not is_browser(request):
            raise rejected
        response = page_response(request, rejected.status, page.refusal_page(rejected.code, words_of(request)))
        if rejected.retry_after:
            response.headers["Retry-After"] = str(rejected.retry_after)
        return response

    @contextmanager
    def _answering(self, request: web.Request) -> Iterator[None]:
        """Answer 503 while the state or the store is away."""
        try:
            with self.calls.answering(request):
                yield
        except StateAway:
            raise Rejected(503, "state_unreachable", "try again in a moment", retry_after=STATE_RETRY) from None
        except Fault as fault:
            raise Rejected(503, fault.code, fault.message, retry_after=STORE_RETRY) from None

    # --- the calls ------------------------------------------------------------------------------------
    async def pin(self, request: web.Request) -> web.StreamResponse:
        """Answer the right PIN with a pass, within the limits on tries of this invitation and of this client."""
        with self._answering(request):
            invitation = await self._invitation(request, utcnow())
            asked = await self.calls.body(request, asking.read_pin)
            if invitation.new.pin:
                await self._check_pin(invitation, asked.pin, self.calls.client(request))
            secret = await self._pass_secret()
        return as_json({"pass": new_pass(secret, invitation.new.id, invitation.new.ends_at)})

    async def _check_pin(self, invitation: Invitation, pin: str, client: str) -> None:
        await self._take_try(invitation, client, utcnow())
        if not await self._pins.is_right(pin, invitation.new.pin):
            raise Rejected(403, "wrong_pin", "this PIN is wrong")
        self._tries.forgive(client)
        await self._invitations.forgive(invitation.new.id)

    async def _take_try(self, invitation: Invitation, client: str, now: datetime) -> None:
        wait = self._tries.wait(client, now)
        self._tries.take(client, now)
        most, window = PIN_TRIES, PIN_WINDOW
        if wait or not await self._invitations.take_pin_try(invitation.new.id, now, most=most, window=window):
            seconds = wait or int(window.total_seconds())
            raise Rejected(429, "rate_limited", "too many tries of this PIN", retry_after=seconds)

    async def _pass_secret(self) -> bytes:
        """Return the secret of the passes, which all brokers share."""
        self._secret = self._secret or await self._database.secret("invitation pass", secrets.token_bytes(32))
        return self._secret

    async def files(self, request: web.Request) -> web.StreamResponse:
        """Reserve room for files, and answer with their tickets."""

        async def answer(invitation: Invitation, asked: asking.Files) -> dict[str, Any]:
            client = self.calls.client(request)
            answers = await self._desk.files(invitation, asked, client, utcnow())
            return {"files": [_file(each) for each in answers]}

        return await self._in_turn(request, asking.read_files, answer, lambda asked: len(asked.files))

    async def sign(self, request: web.Request) -> web.StreamResponse:
        """Sign requests for tickets."""

        async def answer(invitation: Invitation, asked: asking.SignRequests) -> dict[str, Any]:
            return {"grants": [_grant(each) for each in await self._desk.sign(invitation, asked, utcnow())]}

        return await self._in_turn(request, asking.read_sign, answer, lambda asked: len(asked.requests))

    async def done(self, request: web.Request) -> web.StreamResponse:
        """Check in the store that a file is there."""

        async def answer(invitation: Invitation, asked: asking.DoneRequest) -> dict[str, Any]:
            receipt = await self._desk.done(invitation, asked, self.calls.client(request), utcnow())
            if isinstance(receipt, Refusal):
                raise _conflict(receipt)
            self._on_received()
            return {"received": True, "size": receipt.size, "checksum": receipt.checksum or None}

        return await self._in_turn(request, asking.read_done, answer)

    async def cancel(self, request: web.Request) -> web.StreamResponse:
        """End a ticket."""

        async def answer(invitation: Invitation, asked: asking.CancelRequest) -> dict[str, Any]:
            if refusal := await self._desk.cancel(invitation, asked.ticket, utcnow()):
                raise _conflict(refusal)
            return {"cancelled": True}

        return await self._in_turn(request, asking.read_cancel, answer)

    async def _in_turn(
        self,
        request: web.Request,
        read: Callable[[bytes], A],
        answer: Callable[[Invitation, A], Awaitable[dict[str, Any]]],
        count: Callable[[A], int] = lambda _: 1,
    ) -> web.Response:
        """Read a call's body and answer it, within the limits of its invitation. Authenticate the guest before this."""
        with self._answering(request):
            invitation = await self._admitted(request)
            async with self.calls.hold(f"/i/{invitation.ref}"):
                asked = await self.calls.body(request, read)
                if wait := self._rates.take(invitation.ref, RATE, count(asked), time.monotonic()):
                    raise Rejected(429, "rate_limited", "too many requests for this invitation", retry_after=wait)
                return as_json(await answer(invitation, asked))

    # --- whether it opens -----------------------------------------------------------------------------
    async def _admitted(self, request: web.Request) -> Invitation:
        """Return the invitation, if its PIN was given or it has none."""
        now = utcnow()
        invitation = await self._invitation(request, now)
        given = request.headers.get("X-Pass", "")
        if invitation.new.pin and not is_pass(given, await self._pass_secret(), invitation.new.id, now):
            raise Rejected(403, "pin_needed", "send the pass that /pin answered, as X-Pass")
        self.calls.connections.used(request.protocol, known=True)
        return invitation

    async def _invitation(self, request: web.Request, now: datetime) -> Invitation:
        """Return the invitation of a path, if it is open; raise ``Rejected``."""
        client = self.calls.client(request)
        if wait := self._misses.wait(client, now):
            raise Rejected(429, "rate_limited", "too many tries", retry_after=wait)
        invitation = await self._invitations.find(hash_of(request.match_info["id"]))
        if invitation is None:
            self._misses.take(client, now)
            raise _unknown()
        if not invitation.is_open(now):
            raise Rejected(410, "invitation_ended", "this invitation has expired, or was revoked")
        return invitation


async def _asset(request: web.Request) -> web.Response:
    """Answer with a file of the page. The browser revalidates it each time, so a new version is seen at once."""
    name = request.path.rpartition("/")[2]
    body = guest_page.asset(name)
    etag = f'"{zlib.crc32(body):08x}"'
    headers = {**HEADERS, "Cache-Control": "no-cache", "ETag": etag, "X-Content-Type-Options": "nosniff"}
    if request.headers.get("If-None-Match") == etag:
        return web.Response(status=304, headers=headers)
    return web.Response(body=body, content_type=guest_page.ASSETS[name], charset="utf-8", headers=headers)


def _unknown() -> Rejected:
    return Rejected(404, "unknown_invitation", "there is no such invitation")


def _conflict(refusal: Refusal) -> Rejected:
    return Rejected(409, refusal.code, refusal.message)


def _file(answer: Issued | Refusal) -> dict[str, Any]:
    if isinstance(answer, Refusal):
        return wire.error(answer.code, answer.message)
    return {"ticket": answer.ticket, "key": answer.key, "part_size": answer.part_size}


def _grant(answer: Signed) -> dict[str, Any]:
    """Return a grant without Content-Length, which a browser sends by itself and lets no page set."""
    if not isinstance(answer, Grant):
        return wire.error(answer.code, answer.message)
    document = answer.to_json()
    sent = {name: value for name, value in document["headers"].items() if name != "Content-Length"}
    return document | {"headers": sent}
