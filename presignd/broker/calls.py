"""What all calls with a token share: authentication, the limit on concurrent calls, the body, refusals."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any, TypeVar

from aiohttp import web

from presignd.broker import audit, wire
from presignd.broker.access import Rejected, authenticate, client_of
from presignd.broker.config import BrokerSection, TokenConfig
from presignd.broker.fleet.activity import Activity, Call
from presignd.broker.limits import ConcurrencyLimit, GrantRates, Limits
from presignd.broker.tokens import Tokens
from presignd.runtime.clients import Connections
from presignd.system.clock import utcnow

UNAUTHORIZED = 401

A = TypeVar("A")
R = TypeVar("R")


class Calls:
    """Accepts calls: ``config`` and ``tokens`` may be replaced between them.

    ``in_flight`` is the number of those that are being answered; ``idle`` is set while there is none. ``draining``
    means that the broker is about to end.
    """

    def __init__(self, config: BrokerSection, tokens: Tokens, limits: Limits) -> None:
        self.config, self.tokens = config, tokens
        self.connections = Connections()
        self.in_flight = 0
        self.idle = asyncio.Event()
        self.idle.set()
        self._rates = GrantRates()
        self._concurrency = ConcurrencyLimit(limits.calls, limits.calls_of_one, limits.wait)
        self._body_seconds = limits.body
        self._rejected_calls = audit.RejectedCalls()
        self.activity = Activity(utcnow())
        self.draining = False

    def client(self, request: web.Request) -> str:
        """Return the client's address for the log."""
        return client_of(request, behind_proxy=self.config.behind_proxy)

    def authenticated(self, request: web.Request) -> TokenConfig:
        """Return the caller's token, and record the call; raise ``Rejected``."""
        try:
            token = authenticate(request, self.tokens, utcnow())
        except Rejected as rejected:
            if rejected.by:
                self._record_call(request, rejected.by)
            raise
        self.connections.used(request.protocol, known=True)
        self._record_call(request, token.name)
        return token

    def again(self, request: web.Request) -> TokenConfig:
        """Return the caller's token as it is now: it may have been revoked since; raise ``Rejected``."""
        return authenticate(request, self.tokens, utcnow())

    def _record_call(self, request: web.Request, token: str) -> None:
        user_agent, date = (request.headers.get(name, "") for name in ("User-Agent", "Date"))
        self.activity.called(token, Call(utcnow(), self.client(request), user_agent, date))

    async def in_turn(
        self,
        request: web.Request,
        read: Callable[[bytes], A],
        answer: Callable[[TokenConfig, A], Awaitable[R]],
        count: Callable[[A], int] = lambda _: 1,
    ) -> R:
        """Read a call's body and answer it, within the limits of its token; raise ``Rejected``.

        The caller is authenticated before the body is read. ``count`` returns how many grants a call takes of the rate.
        """
        token = self.authenticated(request)
        try:
            with self.answering(request):
                async with self._concurrency.hold(token.name):
                    asked = await self.body(request, read)
                    token = self.again(request)
                    self._take(token, count(asked))
                    return await answer(token, asked)
        except Rejected as rejected:
            rejected.by = token.name
            raise

    def _take(self, token: TokenConfig, count: int) -> None:
        if wait := self._rates.take(token.name, token.rate, count, time.monotonic()):
            raise Rejected(429, "rate_limited", "too many grants for this token", retry_after=wait)

    @contextmanager
    def answering(self, request: web.Request) -> Iterator[None]:
        """Count a request as in flight: a drain waits for it, and its connection stays open."""
        self.in_flight += 1
        self.idle.clear()
        try:
            with self.connections.answering(request.protocol):
                yield
        finally:
            self.in_flight -= 1
            if not self.in_flight:
                self.idle.set()

    def hold(self, name: str) -> AbstractAsyncContextManager[None]:
        """Hold a turn among the calls of ``name``; entering raises ``Rejected`` (503) if none becomes free in time."""
        return self._concurrency.hold(name)

    async def in_time(self, reading: Awaitable[A]) -> A:
        """Read a body; raise ``Rejected`` if it takes too long."""
        try:
            async with asyncio.timeout(self._body_seconds):
                return await reading
        except TimeoutError:
            raise Rejected(408, "timeout", f"the body took over {self._body_seconds:g} s") from None

    async def body(self, request: web.Request, read: Callable[[bytes], A]) -> A:
        """Read a JSON body by ``read``; raise ``Rejected``."""
        if request.content_type != "application/json":
            raise Rejected(415, "unsupported_media_type", "send application/json")
        body = await self.in_time(request.read())
        try:
            return read(body)
        except wire.TooMany as problem:
            raise Rejected(413, problem.code, str(problem)) from None
        except ValueError as problem:
            raise Rejected(400, "bad_request", str(problem)[:1000]) from None

    def rejected(self, request: web.Request, rejected: Rejected) -> web.Response:
        """Log a refused call and return its answer."""
        self._rejected_calls.record(self.client(request), request.path, rejected.status, rejected.code, rejected.by)
        if rejected.by:
            self.activity.answered(rejected.by, utcnow(), granted=0, refused=[rejected.code])
        headers = {"Retry-After": str(rejected.retry_after)} if rejected.retry_after else {}
        if rejected.status == UNAUTHORIZED:
            headers["WWW-Authenticate"] = 'Bearer realm="presignd"'
        return as_json(wire.error(rejected.code, rejected.message), rejected.status, headers)


def as_json(document: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """Return an answer with a JSON document."""
    body = json.dumps(document).encode()
    return web.Response(body=body, status=status, headers=headers, content_type="application/json")
