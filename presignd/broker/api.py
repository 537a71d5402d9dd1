"""The broker's HTTP API (docs/broker.md; ``/openapi.json`` describes it).

Of its calls, only those of invitations send requests to the store.

A refused call is ``{"error": {"code", "message"}}`` with its status; a refused request has its error at its place in
a 200. No answer says whether an object exists: the broker does not know.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from aiohttp import web

from presignd.broker import audit, metrics, openapi, wire
from presignd.broker.access import Rejected
from presignd.broker.audit import GrantResult
from presignd.broker.calls import Calls, as_json
from presignd.broker.config import NO_LINKS, BrokerSection, LinksSection, TokenConfig
from presignd.broker.inbox.api import InboxCalls
from presignd.broker.inbox.bell import Bell
from presignd.broker.invitations.public import PublicInvitations
from presignd.broker.limits import LIMITS, ConcurrencyLimit, Limits, yielding
from presignd.broker.links.api import LinkCalls
from presignd.broker.links.public import PublicLinks
from presignd.broker.policy import Refusal, RefusalCode, UploadOwners, decide
from presignd.broker.state.database import NO_DATABASE, Database
from presignd.broker.state.links import Links
from presignd.broker.state.outbox import StateOutbox
from presignd.broker.tokens import Tokens
from presignd.config.addresses import parse_listen
from presignd.errors import Fault, PresignerFault
from presignd.presign import ON_AN_UPLOAD, Grant, GrantRequest
from presignd.presign.local import LocalPresigner
from presignd.store.signed import SignedStore
from presignd.system.clock import utcnow
from presignd.telemetry.log import get_logger
from presignd.telemetry.metrics import rendered, show_webhooks
from presignd.webhooks.outbox import Away
from presignd.webhooks.webhooks import Webhooks

STEP = 50
"""Requests signed at a time: half a millisecond of work."""

CREDENTIALS_RETRY = 5
"""Retry-After in seconds while there are no credentials to sign with."""

HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Server": "presignd"}

log = get_logger()
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Api(Calls):
    """The request handlers. ``config``, ``tokens`` and ``presigner`` may be replaced between requests."""

    def __init__(
        self,
        config: BrokerSection,
        tokens: Tokens,
        presigner: LocalPresigner,
        limits: Limits = LIMITS,
        *,
        links: LinksSection = NO_LINKS,
        database: Database = NO_DATABASE,
        store: Callable[[], SignedStore] | None = None,
        outbox: StateOutbox | None = None,
        webhooks: Webhooks | None = None,
    ) -> None:
        super().__init__(config, tokens, limits)
        self.presigner, self._webhooks = presigner, webhooks
        self._links = LinkCalls(self, links, Links(database))
        self._public = PublicLinks(self, links, database, lambda: self.presigner, store, outbox=outbox)
        # Without a store, there are no invitations.
        self._bell = Bell()
        self._invitations = self._invited(links, database, store, outbox) if store else []
        waiting = ConcurrencyLimit(limits.waiting, limits.waiting_of_one, limits.wait)
        self._inbox = InboxCalls(self, links, database, self._bell, waiting)
        self._upload_owners = UploadOwners()

    def _invited(
        self, links: LinksSection, database: Database, store: Callable[[], SignedStore], outbox: StateOutbox | None
    ) -> list[web.RouteDef]:
        def origin(bucket: str) -> str:
            return self.presigner.public_origin(bucket)

        return PublicInvitations(
            self, links, database, store, origin, on_received=self._bell.ring, outbox=outbox
        ).routes()

    def drain(self) -> None:
        """Answer the calls that wait, and close each connection after its answer."""
        self.draining = True
        self._bell.ring()

    def app(self) -> web.Application:
        """Return the application at ``listen``."""
        app = self._application()
        app.add_routes(
            [
                web.post("/v1/grants", self._grants),
                web.get("/v1/me", self._me, allow_head=False),
                *self._links.routes(),
                *self._inbox.routes(),
                *self._public.routes(),
                *self._invitations,
                web.get("/openapi.json", _openapi, allow_head=False),
                web.get("/healthz", _healthz),
                web.get("/readyz", self._readyz),
            ]
        )
        if not self.config.metrics_listen and parse_listen(self.config.listen).is_local:
            app.add_routes([web.get("/metrics", self._metrics_beside)])
        return app

    def metrics_app(self) -> web.Application:
        """Return the application at ``metrics_listen``."""
        app = self._application()
        app.add_routes([web.get("/metrics", self._metrics), web.get("/healthz", _healthz)])
        return app

    def _application(self) -> web.Application:
        app = web.Application(middlewares=[self._answered], client_max_size=wire.MAX_BODY)
        app.on_response_prepare.append(_add_headers)
        return app

    @web.middleware
    async def _answered(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer every request with JSON and without a traceback; cut off a client that does not read the response."""
        self.connections.used(request.protocol)
        response = await self._response(request, handler)
        if self.draining:
            response.force_close()
        metrics.REQUESTS.labels(_path_label(request), response.status).inc()
        with suppress(ConnectionError):
            try:
                async with asyncio.timeout(self._body_seconds):
                    await response.prepare(request)
                    await response.write_eof()
            except TimeoutError:
                if request.transport is not None:
                    request.transport.abort()
        return response

    async def _response(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            self._public.refuse_misplaced(request)
            return await handler(request)
        except Rejected as rejected:
            return self.rejected(request, rejected)
        except web.HTTPRequestEntityTooLarge:
            return self.rejected(request, Rejected(413, "body_too_large", f"at most {wire.MAX_BODY} bytes"))
        except web.HTTPException as answer:
            allowed = {"Allow": answer.headers["Allow"]} if "Allow" in answer.headers else {}
            code = "method_not_allowed" if allowed else "no_such_path"
            return as_json(wire.error(code, answer.reason), answer.status, allowed)
        except (ConnectionError, web.RequestPayloadError):
            return as_json(wire.error("gone", "the connection broke off"), 400)
        except Exception:
            log.exception("broker.internal_error", path=request.path[:200])
            return as_json(wire.error("internal_error", "a bug in presignd; its log has the traceback"), 500)

    # --- the two calls ----------------------------------------------------------------------------
    async def _me(self, request: web.Request) -> web.Response:
        token = self.authenticated(request)
        ends = None
        with suppress(PresignerFault):  # a call for grants reports missing credentials
            ends = await self.presigner.credential_expiry()
        return as_json(wire.me(token, credential_ends=ends, links_url=self._links.config.url))

    async def _grants(self, request: web.Request) -> web.Response:
        """Answer a batch."""

        async def answer(token: TokenConfig, asked: wire.ParsedBatch) -> list[GrantResult]:
            results = await self._results(token, asked)
            refused = [str(result.code) for result in results if not isinstance(result, Grant)]
            self.activity.answered(token.name, utcnow(), granted=len(results) - len(refused), refused=refused)
            await audit.record(token.name, self.client(request), asked.grants, results)
            return results

        began = time.monotonic()
        results = await self.in_turn(request, wire.read_batch, answer, lambda asked: len(asked.grants))
        metrics.SECONDS.observe(time.monotonic() - began)
        return web.Response(body=wire.write_results(results), content_type="application/json")

    async def _results(self, token: TokenConfig, asked: wire.ParsedBatch) -> list[GrantResult]:
        places = yielding(range(len(asked.grants)))
        decided = [asked.refused.get(n) or self._decided(token, asked.grants[n]) async for n in places]
        allowed = [each for each in decided if isinstance(each, GrantRequest)]
        steps = [allowed[start : start + STEP] for start in range(0, len(allowed), STEP)]
        signed = iter([result async for step in yielding(steps) for result in await self._signed(step)])
        return [next(signed) if isinstance(each, GrantRequest) else each for each in decided]

    def _decided(self, token: TokenConfig, asked: GrantRequest) -> GrantRequest | Refusal:
        decided = decide(token, asked, utcnow())
        if isinstance(decided, Refusal) or decided.operation not in ON_AN_UPLOAD or not decided.upload_id:
            return decided
        if self._upload_owners.claim(token.name, decided):
            return decided
        return Refusal(RefusalCode.UPLOAD_REFUSED, "this upload id belongs to another token or another key")

    async def _signed(self, allowed: Sequence[GrantRequest]) -> list[GrantResult]:
        try:
            return [_result(answer) for answer in await self.presigner.grant(allowed)]
        except PresignerFault as fault:
            raise Rejected(503, fault.code, fault.message, retry_after=CREDENTIALS_RETRY) from None

    # --- for other programs -------------------------------------------------------------------------
    async def _readyz(self, _request: web.Request) -> web.Response:
        """Answer 200 if the broker can sign for every token and is not draining, else 503."""
        if self.draining:
            return as_json(wire.error("draining", "the broker is shutting down"), 503)
        if self.tokens.unlisted:
            return as_json(wire.error("tokens_unreadable", "a folder of tokens can't be opened"), 503)
        try:
            await self.presigner.credential_expiry()
        except PresignerFault as fault:
            return as_json(wire.error(fault.code, fault.message), 503)
        return as_json({"status": "ok"})

    async def _metrics(self, request: web.Request) -> web.Response:
        await self.show_gauges()
        body, content_type = rendered(metrics.REGISTRY, request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _metrics_beside(self, request: web.Request) -> web.Response:
        """Serve metrics at the main address, unless a reload has put a proxy in front."""
        if self.config.behind_proxy:
            raise web.HTTPNotFound
        return await self._metrics(request)

    async def show_gauges(self) -> None:
        """Set the gauges, which are computed when they are read, except those of webhooks while the state is away."""
        if self._webhooks is not None:
            with suppress(Away):
                found = await self._webhooks.overview()
                show_webhooks((each.name, each.waiting.messages, each.standing.off_since is not None) for each in found)
        self.tokens.refresh()
        metrics.IN_FLIGHT.set(self.in_flight)
        metrics.TOKENS.set(self.tokens.count)
        metrics.BROKEN_FILES.set(len(self.tokens.broken))
        metrics.UNLISTED.set(len(self.tokens.unlisted))
        for gauge in metrics.OF_TOKENS:
            gauge.clear()
        for token, _ in self.tokens.all():
            if token.valid_until is not None:
                metrics.TOKEN_ENDS.labels(token.name).set(token.valid_until.timestamp())
            if (call := self.activity.of(token.name).call) is not None:
                metrics.show_call(token.name, call)


def _result(answer: Grant | Exception) -> GrantResult:
    """Return a presigner's answer to one request; raise an exception that is not a ``Fault``: it is a bug."""
    if isinstance(answer, (Grant, Fault)):
        return answer
    raise answer


async def _healthz(_request: web.Request) -> web.Response:
    return as_json({"status": "ok"})


async def _openapi(_request: web.Request) -> web.Response:
    return as_json(openapi.DOCUMENT)


async def _add_headers(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)


def _path_label(request: web.Request) -> str:
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "other"
