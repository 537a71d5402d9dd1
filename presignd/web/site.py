"""The status page's HTTP: its routes, what each client may see, and the headers for browsers.

Without the token, a client sees the status, but no link and no way to change anything. No client can cost the
uploads more than a bounded share.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from datetime import datetime
from typing import TYPE_CHECKING, Any

from aiohttp import web

from presignd.errors import PresigndError, Refused, Unavailable
from presignd.ledger import Selection
from presignd.model import State
from presignd.pages.access import Access, is_our_host, is_same_origin
from presignd.runtime.clients import Quota
from presignd.runtime.heartbeat import overdue
from presignd.system.clock import utcnow
from presignd.telemetry import metrics
from presignd.telemetry.log import get_logger
from presignd.telemetry.metrics import REGISTRY, rendered
from presignd.web import page

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from presignd.config.addresses import Listen
    from presignd.control.view import View
    from presignd.pages.pace import Pace
    from presignd.runtime.clients import Connections
    from presignd.web.page import Snapshot
    from presignd.web.snapshots import Snapshots

    Document = dict[str, Any]
    Parts = dict[str, tuple[str, str]]
    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

STREAMS, RESERVED_STREAMS, STREAMS_OF_ONE = 16, 8, 4
"""Open pages that are kept up to date: the most of all, how many of them are reserved for clients that are logged in,
and the most from the address of one that is not. One more gets a 503."""
SEND_TIMEOUT = 10.0
ALIVE_EVERY = 15
"""Looks without news after which an empty event is sent: a proxy would close a silent stream."""
USUAL = 30.0
"""Longest usual time between two turns of a loop, in seconds, as for the watchdog."""
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
    """Answers HTTP requests from one ``View``."""

    def __init__(
        self,
        view: View,
        access: Access,
        listen: Listen,
        snapshots: Snapshots,
        *,
        connections: Connections,
        pace: Pace,
    ) -> None:
        self._view, self._access, self._listen, self._snapshots = view, access, listen, snapshots
        self._connections, self._pace = connections, pace
        self._streams = Quota(STREAMS, RESERVED_STREAMS, STREAMS_OF_ONE)
        self._rendered: dict[bool, tuple[Snapshot, Parts]] = {}
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
        """Refuse foreign host names, and answer every error with one line, without a traceback."""
        self._connections.used(request.protocol, known=self._is_known(request))
        if not is_our_host(request.headers.get("Host", ""), self._listen):
            return _text(421, "this address is not presignd's: use the one it listens at, or localhost")
        try:
            return await handler(request)
        except web.HTTPException as answer:
            return _text(answer.status, answer.reason, answer.headers.get("Allow"))
        except Refused as error:
            return _text(409, error.message)
        except PresigndError as error:
            return _text(503, f"{error.message}; {error.fix}" if error.fix else error.message)
        except Exception:
            log.exception("web.internal_error", path=request.path)
            return _text(500, "a bug in presignd; its log has the traceback")

    # --- the page -------------------------------------------------------------------------------
    async def _page(self, request: web.Request) -> web.Response:
        snapshot = await self._snapshots.now()
        return web.Response(text=page.document(snapshot, full=self._is_known(request)), content_type="text/html")

    async def _status(self, _request: web.Request) -> web.Response:
        snapshot = await self._snapshots.now()
        return web.Response(body=json.dumps(snapshot.status).encode(), content_type="application/json")

    async def _events(self, request: web.Request) -> web.StreamResponse:
        """Send each change of the page as a server-sent event, until the client disconnects."""
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

    async def _live(self, *, full: bool) -> tuple[Snapshot, Parts]:
        """Return the current sections, rendered once for all open pages."""
        snapshot = await self._snapshots.now()
        if full not in self._rendered or self._rendered[full][0] is not snapshot:
            self._rendered[full] = snapshot, page.live(snapshot, full=full)
        return self._rendered[full]

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(self._pace.look):
                await self._closing.wait()
        except TimeoutError:
            return

    async def _end_streams(self, _app: web.Application) -> None:
        self._closing.set()

    # --- for other programs ---------------------------------------------------------------------
    async def _healthz(self, _request: web.Request) -> web.Response:
        """Answer 503 if a loop missed its turn: from memory alone, so a hung disk can't hang the answer."""
        return _health([f"{name}: no turn in time" for name in overdue(USUAL)])

    async def _readyz(self, _request: web.Request) -> web.Response:
        snapshot = await self._snapshots.now()
        return _health(unready(snapshot.status, self._view.phase))

    async def _metrics(self, request: web.Request) -> web.Response:
        if self._view.config.web.metrics_auth and not self._is_known(request):
            return _text(401, "metrics_auth is on: send the token of web.token_file as Authorization: Bearer")
        snapshot = await self._snapshots.now()
        show_gauges(snapshot.status, utcnow())
        body, content_type = rendered(REGISTRY, request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    # --- log in, and retry ------------------------------------------------------------------------
    def _is_known(self, request: web.Request) -> bool:
        return self._access.has_bearer(request.headers) or self._access.has_cookie(request.cookies)

    async def _login(self, request: web.Request) -> web.Response:
        """Log a browser in by a code from ``presignd web``, or by the token, which older addresses have."""
        by_code = request.method == "GET" and self._access.codes.spend(request.query.get("code", ""))
        if not (by_code or self._access.is_token(request.query.get("token", ""))):
            return _text(403, "this address is used up, or old: presignd web prints a new one to log in with")
        # Relative: a proxy may have the page below a path.
        answer = web.Response(status=303, headers={"Location": "."})
        secure = request.headers.get("X-Forwarded-Proto") == "https"
        access = self._access
        answer.set_cookie(access.cookie_name, access.cookie, httponly=True, samesite="Strict", secure=secure)
        return answer

    async def _retry(self, request: web.Request) -> web.Response:
        """Put one quarantined file back in the queue, or, with an empty ``file_id``, all of them."""
        if not self._access.has_bearer(request.headers) and not is_same_origin(request.headers):
            return _text(403, "this request came from another site")
        if not self._is_known(request):
            return _text(403, "log in first: presignd web prints the address")
        file_id = await _field(request, "file_id")
        if file_id is None:
            return _text(400, "file_id is missing, or this is no form")
        back = await self._view.requeue(await self._selection(file_id))
        self._snapshots.stale()
        log.info("web.retried", count=len(back))
        if "text/html" in request.headers.get("Accept", ""):
            return web.Response(status=303, headers={"Location": "."})
        return _text(200, "1 file is queued again." if len(back) == 1 else f"{len(back)} files are queued again.")

    async def _selection(self, file_id: str) -> Selection:
        if not file_id:
            return Selection()
        version = await self._view.ledger.by_id(file_id)
        if version is None or version.state is not State.QUARANTINED:
            raise Refused("that file is not quarantined any more")
        return Selection(path=(version.watch, version.path))


async def _field(request: web.Request, name: str) -> str | None:
    """Return a field of the form that was sent; None if it is missing or not UTF-8, or if this is not a form."""
    try:
        value = (await request.post()).get(name)
    except (web.HTTPException, ConnectionError):
        raise
    except Exception:  # noqa: BLE001 - aiohttp raises many for a bad boundary, charset or coding
        return None
    return value if isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value) else None


async def _asset(request: web.Request) -> web.Response:
    name = request.path.removeprefix("/")
    return web.Response(body=page.asset(name), content_type=page.ASSETS[name], charset="utf-8")


async def _add_headers(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)


def _text(status: int, words: str, allow: str | None = None) -> web.Response:
    return web.Response(status=status, text=words + "\n", headers={"Allow": allow} if allow else None)


def _health(problems: Sequence[str]) -> web.Response:
    return _text(503, "\n".join(problems)) if problems else _text(200, "ok")


def _key(part: tuple[str, str]) -> str:
    """Return what a part is compared by: its version, or, where it has none, the text."""
    return part[0] or part[1]


def _event(snapshot: Snapshot, news: Parts) -> bytes:
    data = json.dumps({"now": snapshot.now.isoformat(), "parts": news})
    return f"event: page\ndata: {data}\n\n".encode()


def unready(status: Document, phase: str) -> list[str]:
    """Return why files get no links now: the phase, lost folders, and what is blocked."""
    if phase != "ready":
        return [phase]
    lost = [f"watch {watch['name']}: its folder is away" for watch in status["watches"] if watch["lost"]]
    return lost + [f"{found['what']}: {found['code']}: {found['cause']}" for found in status["blocked"]]


def show_gauges(status: Document, now: datetime) -> None:
    """Set the gauges that are read from the status; those of removed watches are cleared."""
    watched = (
        metrics.PENDING,
        metrics.OLDEST_PENDING,
        metrics.QUARANTINED,
        metrics.SETTLING,
        metrics.OLDEST_SETTLING,
    )
    for gauge in watched:
        gauge.clear()
    settling = Counter(found["watch"] for found in status["settling"])
    for watch in status["watches"]:
        name, counts = watch["name"], watch["counts"]
        metrics.export_watch(name)
        metrics.PENDING.labels(name).set(sum(counts[s] for s in ("queued", "uploading", "verified", "linked")))
        metrics.OLDEST_PENDING.labels(name).set(_age([watch["oldest_queued_at"]], now))
        metrics.QUARANTINED.labels(name).set(counts["quarantined"])
        metrics.SETTLING.labels(name).set(settling[name])
        since = (found["since"] for found in status["settling"] if found["watch"] == name)
        metrics.OLDEST_SETTLING.labels(name).set(_age(since, now))
    metrics.INFLIGHT.set(len(status["in_flight"]))
    metrics.STORE_UP.set(not any(found["part"] == "store" for found in status["blocked"]))


def _age(times: Iterable[str | None], now: datetime) -> float:
    ages = [(now - datetime.fromisoformat(time)).total_seconds() for time in times if time]
    return max([0.0, *ages])
