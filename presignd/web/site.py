"""The status page's HTTP: its snapshots, health and metrics, and putting files back in the queue.

Without the token, a client sees the status, but no link, and can change nothing. The share of the uploads' CPU time
that clients can take is bounded.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import datetime
from typing import TYPE_CHECKING, Any

from aiohttp import web

from presignd import qr
from presignd.errors import Refused
from presignd.ledger import Selection
from presignd.model import State
from presignd.pages.access import Access, is_same_origin
from presignd.pages.site import Site, as_json, text
from presignd.presign.stable import id_in
from presignd.runtime.heartbeat import USUAL, overdue
from presignd.system.clock import utcnow
from presignd.telemetry import metrics
from presignd.telemetry.log import get_logger
from presignd.telemetry.metrics import REGISTRY, rendered
from presignd.web import page
from presignd.web.page import Snapshot

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from presignd.config.addresses import Listen
    from presignd.control.view import View
    from presignd.pages.layout import Parts
    from presignd.pages.pace import Pace
    from presignd.runtime.clients import Connections
    from presignd.web.snapshots import Snapshots

    Document = dict[str, Any]

log = get_logger()


class StatusSite(Site[Snapshot]):
    """Answers HTTP requests from one ``View``."""

    name = "web"
    command = "presignd web"

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
        super().__init__(access, listen, connections=connections, pace=pace)
        self._view, self._snapshots = view, snapshots

    def routes(self) -> Iterable[web.RouteDef]:
        """Return the routes of the status page alone."""
        return [
            web.get("/api/status", self._status),
            web.get("/healthz", self._healthz),
            web.get("/readyz", self._readyz),
            web.get("/metrics", self._metrics),
            web.get("/qr/{file_id}.svg", self._qr, allow_head=False),
            web.post("/retry", self._retry),
            web.post("/revoke", self._revoke),
        ]

    async def snapshot(self) -> Snapshot:
        """Return a current snapshot; raise ``Unavailable`` where the ledger doesn't answer in time."""
        return await self._snapshots.now()

    def document(self, snapshot: Snapshot, *, full: bool) -> str:
        """Return the whole page; ``full`` with links and buttons."""
        self._snapshots.look_at(snapshot.links)
        return page.document(snapshot, full=full)

    def live(self, snapshot: Snapshot, *, full: bool) -> Parts:
        """Return each section and the headline."""
        self._snapshots.look_at(snapshot.links)
        return page.live(snapshot, full=full)

    # --- for other programs ---------------------------------------------------------------------
    async def _status(self, _request: web.Request) -> web.Response:
        return as_json((await self.snapshot()).status)

    async def _healthz(self, _request: web.Request) -> web.Response:
        """Answer 503 if a loop missed its turn: from memory alone, so a hung disk can't hang the answer."""
        return _health([f"{name}: no turn in time" for name in overdue(USUAL)])

    async def _readyz(self, _request: web.Request) -> web.Response:
        snapshot = await self.snapshot()
        return _health(unready(snapshot.status, self._view.phase))

    async def _metrics(self, request: web.Request) -> web.Response:
        if self._view.config.web.metrics_auth and not self.is_known(request):
            words = "metrics_auth is on: send the token of web.token_file as Authorization: Bearer"
            return text(401, words, {"WWW-Authenticate": "Bearer"})
        snapshot = await self.snapshot()
        show_gauges(snapshot.status, utcnow())
        body, content_type = rendered(REGISTRY, request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    # --- QR codes -----------------------------------------------------------------------------------
    async def _qr(self, request: web.Request) -> web.Response:
        """Return the QR code of a living link that the page shows; a code is a link, so it needs the token."""
        if not self.is_known(request):
            return text(403, "log in first: presignd web prints the address")
        url = await self._living_url(request.match_info["file_id"])
        if url is None:
            return text(404, "there is no such link, or it has expired")
        try:
            drawn = await asyncio.to_thread(qr.as_svg, url)
        except ValueError:
            return text(409, "this link is too long for a QR code")
        return web.Response(body=drawn, content_type="image/svg+xml")

    # --- retry --------------------------------------------------------------------------------------
    async def _retry(self, request: web.Request) -> web.Response:
        """Put one quarantined file back in the queue, or, with an empty ``file_id``, all of them."""
        file_id = await self._named(request)
        if isinstance(file_id, web.Response):
            return file_id
        back = await self._view.requeue(await self._selection(file_id))
        self._snapshots.stale()
        log.info("web.retried", count=len(back))
        return _done(request, "1 file is queued again." if len(back) == 1 else f"{len(back)} files are queued again.")

    async def _named(self, request: web.Request) -> str | web.Response:
        """Return the ``file_id`` in a form, or the refusal of a client that may change nothing."""
        if not self._access.has_bearer(request.headers) and not is_same_origin(request.headers):
            return text(403, "this request came from another site")
        if not self.is_known(request):
            return text(403, "log in first: presignd web prints the address")
        file_id = await _field(request, "file_id")
        return text(400, "file_id is missing, or this is no form") if file_id is None else file_id

    # --- links ----------------------------------------------------------------------------------
    async def _revoke(self, request: web.Request) -> web.Response:
        """Revoke the stable link of one file that the page shows."""
        file_id = await self._named(request)
        if isinstance(file_id, web.Response):
            return file_id
        link_id = id_in(await self._living_url(file_id) or "")
        if not link_id:
            raise Refused("there is no such stable link, or it opens no more")
        await self._view.links.revoke({"id": link_id})
        self._snapshots.stale()
        log.info("web.revoked", file_id=file_id)
        return _done(request, "The link is revoked. A download that began may go on for a while.")

    async def _living_url(self, file_id: str) -> str | None:
        links = page.living(await self.snapshot())
        return next((link["url"] for link in links if link["file_id"] == file_id), None)

    async def _selection(self, file_id: str) -> Selection:
        if not file_id:
            return Selection()
        version = await self._view.ledger.by_id(file_id)
        if version is None or version.state is not State.QUARANTINED:
            raise Refused("that file is not quarantined any more")
        return Selection(path=(version.watch, version.path))


def _done(request: web.Request, words: str) -> web.Response:
    if "text/html" in request.headers.get("Accept", ""):
        return web.Response(status=303, headers={"Location": "."})
    return text(200, words)


async def _field(request: web.Request, name: str) -> str | None:
    """Return a field of the form that was sent; None if it is missing or not UTF-8, or if this is not a form."""
    try:
        value = (await request.post()).get(name)
    except (web.HTTPException, ConnectionError):
        raise
    except Exception:  # noqa: BLE001 - aiohttp raises many for a bad boundary, charset or coding
        return None
    return value if isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value) else None


def _health(problems: Sequence[str]) -> web.Response:
    return text(503, "\n".join(problems)) if problems else text(200, "ok")


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
    metrics.show_webhooks((each["name"], each["waiting"], each["off_since"] is not None) for each in status["webhooks"])
    _show_inboxes(status["inboxes"])
    metrics.INFLIGHT.set(len(status["in_flight"]))
    metrics.STORE_UP.set(not any(found["part"] == "store" for found in status["blocked"]))


def _show_inboxes(inboxes: Sequence[Document]) -> None:
    for gauge in (metrics.INBOX_WAITING, metrics.INBOX_STOPPED, metrics.INBOX_LAST):
        gauge.clear()
    for inbox in inboxes:
        name, last = inbox["name"], inbox["last_at"]
        metrics.INBOX_WAITING.labels(name).set(inbox["waiting"])
        metrics.INBOX_STOPPED.labels(name).set(inbox["stopped"])
        metrics.INBOX_LAST.labels(name).set(datetime.fromisoformat(last).timestamp() if last else 0.0)
        for counter in (metrics.INBOX_RECEIVED, metrics.INBOX_BYTES):
            counter.labels(name)


def _age(times: Iterable[str | None], now: datetime) -> float:
    ages = [(now - datetime.fromisoformat(time)).total_seconds() for time in times if time]
    return max([0.0, *ages])
