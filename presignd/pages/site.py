"""The HTTP of a page: its guard, its files, logging in, and the stream that keeps an open page up to date.

A page is rendered by the server, section by section (``presignd.pages.html``). An open page gets each changed section
as a server-sent event.
"""

from __future__ import annotations

import asyncio
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from aiohttp import web

from presignd.config.addresses import Listen
from presignd.errors import PresigndError, Refused, Unavailable
from presignd.pages import layout
from presignd.pages.access import Access, is_our_host
from presignd.pages.layout import Parts
from presignd.pages.pace import Pace
from presignd.runtime.clients import Connections, Quota
from presignd.telemetry.log import get_logger

STREAMS, RESERVED_STREAMS, STREAMS_OF_ONE = 16, 8, 4
"""Open pages that are kept up to date: most in all, how many of them are reserved for clients that are logged in, and
most from one address that is not. One more gets a 503."""
SEND_TIMEOUT = 10.0
ALIVE_EVERY = 15
"""Checks without a change after which an empty event is sent: a proxy would close a silent stream."""
LARGEST_FORM = 16 << 10

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not no-referrer: with that a browser sends "Origin: null" with the retry form.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Server": "presignd",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Dated(Protocol):
    """A snapshot: what a page shows, as of ``now`` (UTC)."""

    @property
    def now(self) -> datetime:
        """When it was taken."""


S = TypeVar("S", bound=Dated)


class Site(ABC, Generic[S]):
    """Answers the HTTP requests of one page; a subclass has the snapshots and renders them."""

    name: ClassVar[str]
    """Section of the configuration; its events begin with it."""
    command: ClassVar[str]
    """The command that prints an address to log in with."""
    is_private: ClassVar[bool] = False
    """Whether a client sees nothing before it is logged in."""

    def __init__(self, access: Access, listen: Listen, *, connections: Connections, pace: Pace) -> None:
        self._access, self._listen = access, listen
        self._connections, self._pace = connections, pace
        self._streams = Quota(STREAMS, RESERVED_STREAMS, STREAMS_OF_ONE)
        self._rendered: dict[bool, tuple[S, Parts]] = {}
        self._closing = asyncio.Event()
        self._log = get_logger()

    @abstractmethod
    def routes(self) -> Iterable[web.RouteDef]:
        """Return the routes of this page alone."""

    @abstractmethod
    async def snapshot(self) -> S:
        """Return a current snapshot; raise ``Unavailable``."""

    @abstractmethod
    def document(self, snapshot: S, *, full: bool) -> str:
        """Return the whole page; ``full`` for a client that is logged in."""

    @abstractmethod
    def live(self, snapshot: S, *, full: bool) -> Parts:
        """Return the update of an open page."""

    def app(self) -> web.Application:
        """Return the application."""
        app = web.Application(middlewares=[self._guard], client_max_size=LARGEST_FORM)
        app.on_response_prepare.append(_add_headers)
        app.on_shutdown.append(self._end_streams)
        app.add_routes(
            [
                web.get("/", self._page),
                web.get("/login", self._login),
                web.get("/events", self._events),
                *self.routes(),
                *(web.get(f"/{name}", _asset) for name in layout.ASSETS),
            ]
        )
        return app

    def is_known(self, request: web.Request) -> bool:
        """Return whether a client is logged in, or sends the token."""
        return self._access.has_bearer(request.headers) or self._access.has_cookie(request.cookies)

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse foreign host names, and strangers if the page is private."""
        known = self.is_known(request)
        self._connections.used(request.protocol, known=known)
        if not is_our_host(request.headers.get("Host", ""), self._listen):
            return text(421, "this address is not presignd's: use the one it listens at, or localhost")
        if self.is_private and not known and request.path not in _OPEN:
            return text(401, f"log in first: {self.command} prints the address", {"WWW-Authenticate": "Bearer"})
        return await self._answer(request, handler)

    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer every error with one line, without a traceback."""
        try:
            return await handler(request)
        except web.HTTPException as answer:
            allowed = answer.headers.get("Allow")
            return text(answer.status, answer.reason, {"Allow": allowed} if allowed else None)
        except Refused as error:
            return text(409, error.message)
        except PresigndError as error:
            return text(503, f"{error.message}; {error.fix}" if error.fix else error.message)
        except Exception:  # noqa: BLE001 - logged with its traceback
            self._log.exception(f"{self.name}.internal_error", path=request.path)
            return text(500, "a bug in presignd; its log has the traceback")

    async def _page(self, request: web.Request) -> web.Response:
        snapshot = await self.snapshot()
        return web.Response(text=self.document(snapshot, full=self.is_known(request)), content_type="text/html")

    async def _login(self, request: web.Request) -> web.Response:
        """Log a browser in by a code, or by the token, which older addresses have."""
        by_code = request.method == "GET" and self._access.codes.spend(request.query.get("code", ""))
        if not (by_code or self._access.is_token(request.query.get("token", ""))):
            return text(403, f"this address is used up, or old: {self.command} prints a new one to log in with")
        # Relative: a proxy may have the page below a path.
        answer = web.Response(status=303, headers={"Location": "."})
        secure = request.headers.get("X-Forwarded-Proto") == "https"
        access = self._access
        answer.set_cookie(access.cookie_name, access.cookie, httponly=True, samesite="Strict", secure=secure)
        return answer

    # --- the stream -------------------------------------------------------------------------------
    async def _events(self, request: web.Request) -> web.StreamResponse:
        """Send each change of the page as a server-sent event, until the client disconnects."""
        who, known = request.remote, self.is_known(request)
        if not self._streams.take(who, privileged=known):
            raise Unavailable(
                "too many pages are open", fix=f"close some, or log in: {self.command} prints the address"
            )
        try:
            with self._connections.answering(request.protocol):
                return await self._stream(request, full=known)
        finally:
            self._streams.give_back(who, privileged=known)

    async def _stream(self, request: web.Request, *, full: bool) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"})
        await self._live(full=full)  # raises before a status is sent, so that the client gets a 503
        try:
            await response.prepare(request)
            await self._send_news(response, full=full)
        except (OSError, TimeoutError):
            if request.transport is not None:
                request.transport.abort()  # disconnected, or too slow
        except Unavailable:
            return response  # the browser opens a new stream, and gets a 503
        return response

    async def _send_news(self, response: web.StreamResponse, *, full: bool) -> None:
        sent: dict[str, str] = {}
        quiet, end = 0, time.monotonic() + self._pace.longest_stream
        while not self._closing.is_set() and time.monotonic() < end:
            snapshot, parts = await self._live(full=full)
            news = {name: part for name, part in parts.items() if sent.get(name) != _key(part)}
            quiet = 0 if news else quiet + 1
            if quiet % ALIVE_EVERY == 0:
                async with asyncio.timeout(SEND_TIMEOUT):
                    await response.write(_event(snapshot, news))
            sent |= {name: _key(part) for name, part in news.items()}
            await self._pause()

    async def _live(self, *, full: bool) -> tuple[S, Parts]:
        """Return the current sections, rendered once for all open pages."""
        snapshot = await self.snapshot()
        if full not in self._rendered or self._rendered[full][0] is not snapshot:
            self._rendered[full] = snapshot, self.live(snapshot, full=full)
        return self._rendered[full]

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(self._pace.look):
                await self._closing.wait()
        except TimeoutError:
            return

    async def _end_streams(self, _app: web.Application) -> None:
        self._closing.set()


_OPEN = frozenset({"/login", *(f"/{name}" for name in layout.ASSETS)})
"""Paths of a private page that need no login."""


async def _asset(request: web.Request) -> web.Response:
    name = request.path.removeprefix("/")
    return web.Response(body=layout.asset(name), content_type=layout.ASSETS[name], charset="utf-8")


async def _add_headers(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)


def text(status: int, words: str, headers: Mapping[str, str] | None = None) -> web.Response:
    """Return an answer of one line."""
    return web.Response(status=status, text=words + "\n", headers=headers)


def as_json(document: Any) -> web.Response:
    """Return a JSON document."""
    return web.Response(body=json.dumps(document).encode(), content_type="application/json")


def _key(part: tuple[str, str]) -> str:
    """Return the key by which a part is compared: its version or, without one, its text."""
    return part[0] or part[1]


def _event(snapshot: Dated, news: Parts) -> bytes:
    data = json.dumps({"now": snapshot.now.isoformat(), "parts": news})
    return f"event: page\ndata: {data}\n\n".encode()
