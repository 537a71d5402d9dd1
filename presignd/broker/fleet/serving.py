"""The fleet page of a broker, served beside its grants."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from presignd.broker.fleet.site import FleetSite
from presignd.broker.fleet.snapshots import CountLinks, LinkCounts, Snapshots
from presignd.pages.access import Access, SignedCodes
from presignd.pages.pace import PACE, Pace
from presignd.pages.serving import PageServer

if TYPE_CHECKING:
    from presignd.broker.api import Api
    from presignd.broker.config import FleetSection
    from presignd.runtime.clients import Connections


class FleetPage(PageServer):
    """The fleet page of one broker; ``count_links`` counts the stable links where there is a state."""

    name = "fleet"
    title = "fleet page"

    def __init__(
        self, config: FleetSection, api: Api, count_links: CountLinks | None = None, pace: Pace = PACE
    ) -> None:
        assert config.token_file is not None, "load() names one"
        super().__init__(config.listen, config.token_file, pace)
        self._api, self._links = api, LinkCounts(count_links)

    def access(self, token: str, port: int | None) -> Access:
        """Return who may see the page: ``presignd broker fleet`` makes login codes, from the token's file."""
        return Access(token, port, self.name, SignedCodes(token))

    def site(self, access: Access, connections: Connections) -> FleetSite:
        """Return the site."""
        snapshots = Snapshots(self._api.tokens, self._api.activity, self._links, self._pace)
        gauges = self._api.show_gauges
        return FleetSite(snapshots, gauges, access, self._listen, connections=connections, pace=self._pace)

    async def work(self) -> None:
        """Wait: the broker itself records what the page shows."""
        try:
            await asyncio.Event().wait()
        finally:
            await self._links.close()
