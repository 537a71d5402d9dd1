"""The status page of a daemon, served beside the uploads."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from presignd.pages.access import Access, LoginCodes
from presignd.pages.pace import PACE, Pace
from presignd.pages.serving import PageServer, running
from presignd.web.site import StatusSite
from presignd.web.snapshots import Snapshots

if TYPE_CHECKING:
    from presignd.control.view import View
    from presignd.model import Link
    from presignd.runtime.clients import Connections


class StatusPage(PageServer):
    """The status page of one daemon."""

    name = "web"
    title = "status page"

    def __init__(self, view: View, pace: Pace = PACE) -> None:
        super().__init__(view.config.web.listen, view.config.web_token, pace)
        self._view = view
        self._snapshots: Snapshots | None = None

    def hear(self, link: Link) -> None:
        """Count a new link; neither blocks nor raises."""
        if self._snapshots is not None:
            self._snapshots.hear(link)

    def access(self, token: str, port: int | None) -> Access:
        """Return who may log in: the control socket hands out codes."""
        return Access(token, port, self.name, LoginCodes())

    def site(self, access: Access, connections: Connections) -> StatusSite:
        """Return the site over fresh snapshots."""
        self._snapshots = Snapshots(self._view, self._pace)
        return StatusSite(self._view, access, self._listen, self._snapshots, connections=connections, pace=self._pace)

    async def work(self) -> None:
        """Sample the uploads' progress."""
        assert self._snapshots is not None
        try:
            await self._snapshots.run()
        finally:
            snapshots, self._snapshots = self._snapshots, None
            await snapshots.close()


def serving(view: View, pace: Pace = PACE) -> contextlib.AbstractAsyncContextManager[StatusPage]:
    """Run the status page beside the body."""
    return running(StatusPage(view, pace))
