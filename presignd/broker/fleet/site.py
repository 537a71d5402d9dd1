"""The fleet page's HTTP: the page, its JSON and its metrics, all of it only with the token."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING

from aiohttp import web

from presignd.broker import metrics
from presignd.broker.fleet import sections
from presignd.broker.fleet.snapshots import Snapshot, Snapshots, to_json
from presignd.pages.access import Access
from presignd.pages.site import Site, as_json
from presignd.telemetry.metrics import rendered

if TYPE_CHECKING:
    from presignd.config.addresses import Listen
    from presignd.pages.layout import Parts
    from presignd.pages.pace import Pace
    from presignd.runtime.clients import Connections


class FleetSite(Site[Snapshot]):
    """Answers HTTP requests from snapshots; ``show_gauges`` sets the broker's gauges."""

    name = "fleet"
    command = "presignd broker fleet"
    is_private = True

    def __init__(
        self,
        snapshots: Snapshots,
        show_gauges: Callable[[], Awaitable[None]],
        access: Access,
        listen: Listen,
        *,
        connections: Connections,
        pace: Pace,
    ) -> None:
        super().__init__(access, listen, connections=connections, pace=pace)
        self._snapshots, self._show_gauges = snapshots, show_gauges

    def routes(self) -> Iterable[web.RouteDef]:
        """Return the routes of the fleet page alone."""
        return [web.get("/api/fleet", self._fleet), web.get("/metrics", self._metrics)]

    async def snapshot(self) -> Snapshot:
        """Return a current snapshot."""
        return await self._snapshots.now()

    def document(self, snapshot: Snapshot, *, full: bool) -> str:  # noqa: ARG002 - only those logged in see it
        """Return the whole page."""
        return sections.document(snapshot)

    def live(self, snapshot: Snapshot, *, full: bool) -> Parts:  # noqa: ARG002
        """Return each section and the headline."""
        return sections.live(snapshot)

    async def _fleet(self, _request: web.Request) -> web.Response:
        return as_json(to_json(await self.snapshot()))

    async def _metrics(self, request: web.Request) -> web.Response:
        snapshot = await self.snapshot()
        await self._show_gauges()
        metrics.show_links({view.token.name: view.links for view in snapshot.tokens if view.links is not None})
        body, content_type = rendered(metrics.REGISTRY, request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})
