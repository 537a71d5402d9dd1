"""The status page's HTTP: what is answered, to whom, and what a browser is told about it.

Without the token anybody who can connect sees how it stands, and neither a link nor a way to change
anything. Nothing a client does here costs the uploads more than a bounded share.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING

from aiohttp import web

from presignd.errors import PresigndError, Refused, Unavailable
from presignd.ledger import Selection
from presignd.model import State
from presignd.runtime.clients import Quota
from presignd.runtime.heartbeat import overdue
from presignd.system.clock import utcnow
from presignd.telemetry.log import get_logger
from presignd.telemetry.metrics import REGISTRY, rendered
from presignd.web import health, page
from presignd.web.access import Access, is_our_host, is_same_origin

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from presignd.config.addresses import Listen
    from presignd.control.view import View
    from presignd.runtime.clients import Connections
    from presignd.web.page import Picture
    from presignd.web.snapshots import Pictures

    Parts = dict[str, tuple[str, str]]
    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

STREAMS, RESERVED_STREAMS, STREAMS_OF_ONE = 16, 8, 4
"""Open pages that are kept up to date: at most, those of them reserved for who is logged in, and at most from one
stranger's address. One more gets a 503."""
LONGEST_STREAM = 900.0
"""Seconds after which a stream ends; a browser asks again by itself."""
EACH = 1.0
SEND_TIMEOUT = 10.0
ALIVE_EVERY = 15
"""Turns without news after which a stream says so: a proxy would close it."""
USUAL = 30.0
"""Seconds between two turns of a loop at most, as for the watchdog."""
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

log = get_logger()


class Site:
    """Answers over one ``View``."""

    def __init__(
        self,
        view: View,
        access: Access,
        listen: Listen,
        pictures: Pictures,
        *,
        connections: Connections,
        longest_stream: float,
    ) -> None:
        self._view, self._access, self._listen, self._pictures = view, access, listen, pictures
        self._connections, self._longest_stream = connections, longest_stream
        self._streams = Quota(STREAMS, RESERVED_STREAMS, STREAMS_OF_ONE)
        self._rendered: dict[bool, tuple[Picture, Parts]] = {}
        self._closing = asyncio.Event()

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
                web.get("/api/status", self._status),
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
                web.get("/metrics", self._metrics),
                web.post("/retry", self._retry),
                *(web.get(f"/{name}", _asset) for name in page.ASSETS),
            ]
        )
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse foreign names, and turn whatever goes wrong into words without a traceback."""
        self._connections.used(request.protocol, known=self._is_known(request))
        if not is_our_host(request.headers.get("Host", ""), self._listen):
            return _said(421, "this address is not presignd's: use the one it listens at, or localhost")
        try:
            return await handler(request)
        except web.HTTPException as answer:
            return _said(answer.status, answer.reason, answer.headers.get("Allow"))
        except Refused as error:
            return _said(409, error.message)
        except PresigndError as error:
            return _said(503, f"{error.message}; {error.fix}" if error.fix else error.message)
        except Exception:
            log.exception("web.internal_error", path=request.path)
            return _said(500, "a bug in presignd; its log has the traceback")

    # --- seeing ---------------------------------------------------------------------------------
    async def _page(self, request: web.Request) -> web.Response:
        picture = await self._pictures.now()
        return web.Response(text=page.document(picture, full=self._is_known(request)), content_type="text/html")

    async def _status(self, _request: web.Request) -> web.Response:
        picture = await self._pictures.now()
        return web.Response(body=json.dumps(picture.status).encode(), content_type="application/json")

    async def _events(self, request: web.Request) -> web.StreamResponse:
        """Send what changes, as it changes, until the client goes."""
        who, known = request.remote, self._is_known(request)
        if not self._streams.take(who, privileged=known):
            raise Unavailable("too many pages are open", fix="close some, or log in: presignd web prints the address")
        try:
            with self._connections.answering(request.protocol):
                return await self._stream(request, full=known)
        finally:
            self._streams.give_back(who, privileged=known)

    async def _stream(self, request: web.Request, *, full: bool) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"})
        await self._live(full=full)  # what can't be shown at all is said by a status
        try:
            await response.prepare(request)
            await self._send_news(response, full=full)
        except (OSError, TimeoutError):
            if request.transport is not None:
                request.transport.abort()  # gone, or too slow to wait for
        except Unavailable:
            return response  # the page asks again, and is told
        return response

    async def _send_news(self, response: web.StreamResponse, *, full: bool) -> None:
        sent: dict[str, str] = {}
        quiet, end = 0, time.monotonic() + self._longest_stream
        while not self._closing.is_set() and time.monotonic() < end:
            picture, parts = await self._live(full=full)
            news = {name: part for name, part in parts.items() if sent.get(name) != _key(part)}
            quiet = 0 if news else quiet + 1
            if quiet % ALIVE_EVERY == 0:
                async with asyncio.timeout(SEND_TIMEOUT):
                    await response.write(_event(picture, news))
            sent |= {name: _key(part) for name, part in news.items()}
            await self._pause()

    async def _live(self, *, full: bool) -> tuple[Picture, Parts]:
        """Return what an open page shows now, rendered once for all that are open."""
        picture = await self._pictures.now()
        if full not in self._rendered or self._rendered[full][0] is not picture:
            self._rendered[full] = picture, page.live(picture, full=full)
        return self._rendered[full]

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(EACH):
                await self._closing.wait()
        except TimeoutError:
            return

    async def _end_streams(self, _app: web.Application) -> None:
        self._closing.set()

    # --- for other programs ---------------------------------------------------------------------
    async def _healthz(self, _request: web.Request) -> web.Response:
        """Tell whether every loop takes its turns: from memory alone, so a hung disk can't hang the answer."""
        return _verdict([f"{name}: no turn in time" for name in overdue(USUAL)])

    async def _readyz(self, _request: web.Request) -> web.Response:
        picture = await self._pictures.now()
        return _verdict(health.unready(picture.status, self._view.phase))

    async def _metrics(self, request: web.Request) -> web.Response:
        if self._view.config.web.metrics_auth and not self._is_known(request):
            return _said(401, "metrics_auth is on: send the token of web.token_file as Authorization: Bearer")
        picture = await self._pictures.now()
        health.show_gauges(picture.status, utcnow())
        body, content_type = rendered(REGISTRY, request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    # --- who is it, and what they change ----------------------------------------------------------
    def _is_known(self, request: web.Request) -> bool:
        return self._access.has_bearer(request.headers) or self._access.has_cookie(request.cookies)

    async def _login(self, request: web.Request) -> web.Response:
        """Log a browser in, by a code of ``presignd web``; by the token too, for whoever kept such an address."""
        by_code = request.method == "GET" and self._access.codes.spend(request.query.get("code", ""))
        if not (by_code or self._access.is_token(request.query.get("token", ""))):
            return _said(403, "this address is used up, or old: presignd web prints a new one to log in with")
        # Relative: a proxy may have the page below a path.
        answer = web.Response(status=303, headers={"Location": "."})
        secure = request.headers.get("X-Forwarded-Proto") == "https"
        access = self._access
        answer.set_cookie(access.cookie_name, access.cookie, httponly=True, samesite="Strict", secure=secure)
        return answer

    async def _retry(self, request: web.Request) -> web.Response:
        """Put one quarantined file, or with an empty ``file_id`` every one, back into the queue."""
        if not self._access.has_bearer(request.headers) and not is_same_origin(request.headers):
            return _said(403, "this request came from another site")
        if not self._is_known(request):
            return _said(403, "log in first: presignd web prints the address")
        file_id = await _field(request, "file_id")
        if file_id is None:
            return _said(400, "file_id is missing, or this is no form")
        back = await self._view.requeue(await self._selection(file_id))
        self._pictures.stale()
        log.info("web.retried", count=len(back))
        if "text/html" in request.headers.get("Accept", ""):
            return web.Response(status=303, headers={"Location": "."})
        return _said(200, "1 file is queued again." if len(back) == 1 else f"{len(back)} files are queued again.")

    async def _selection(self, file_id: str) -> Selection:
        if not file_id:
            return Selection()
        version = await self._view.ledger.by_id(file_id)
        if version is None or version.state is not State.QUARANTINED:
            raise Refused("that file is not quarantined any more")
        return Selection(path=(version.watch, version.path))


async def _field(request: web.Request, name: str) -> str | None:
    """Return a field of the form that was sent; None where it is missing, no UTF-8, or the form is none."""
    try:
        value = (await request.post()).get(name)
    except (web.HTTPException, ConnectionError):
        raise
    except Exception:  # noqa: BLE001 - whatever aiohttp meets in it: a boundary, a charset, a coding that is none
        return None
    return value if isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value) else None


async def _asset(request: web.Request) -> web.Response:
    name = request.path.removeprefix("/")
    return web.Response(body=page.asset(name), content_type=page.ASSETS[name], charset="utf-8")


async def _add_headers(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)


def _said(status: int, words: str, allow: str | None = None) -> web.Response:
    return web.Response(status=status, text=words + "\n", headers={"Allow": allow} if allow else None)


def _verdict(problems: Sequence[str]) -> web.Response:
    return _said(503, "\n".join(problems)) if problems else _said(200, "ok")


def _key(part: tuple[str, str]) -> str:
    """Return what tells whether a part changed: its version, or where it has none the text itself."""
    return part[0] or part[1]


def _event(picture: Picture, news: Parts) -> bytes:
    data = json.dumps({"now": picture.now.isoformat(), "parts": news})
    return f"event: page\ndata: {data}\n\n".encode()
