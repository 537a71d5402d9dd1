"""What the status page shows, taken at most once a second however many ask, and less often where it is costly."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

from presignd.control.documents import overview
from presignd.errors import Unavailable
from presignd.links import last_links
from presignd.system.clock import utcnow
from presignd.web.page import Picture
from presignd.web.throughput import Throughput

if TYPE_CHECKING:
    from presignd.control.view import View
    from presignd.model import Link

AGE = 1.0
"""Seconds for which a picture is shown again."""
SHARE = 0.05
"""Of a core at most, for looking: a ledger with a million files is counted less often."""
PATIENCE = 5.0
LINKS = 20
HISTORY = 2000
"""Links read back at start, for the last hour's throughput."""
SAMPLE = 2.0


class Pictures:
    """Takes them; ``run`` watches what moves, for the throughput."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._throughput = Throughput()
        self._last: Picture | None = None
        self._next = 0.0
        self._taking: asyncio.Task[Picture] | None = None

    def hear(self, link: Link) -> None:
        """Count a new link."""
        self._throughput.linked(link.file_id, link.size, time.time())

    async def run(self) -> None:
        """Sample the uploads' progress, for ever."""
        for link in await asyncio.to_thread(last_links, self._view.config.links.file, HISTORY):
            self._read_back(link)
        while True:
            sent = {upload.version.file_id: upload.sent for upload in self._view.in_flight()}
            self._throughput.moving(sent, time.time())
            await asyncio.sleep(SAMPLE)

    def _read_back(self, link: dict[str, Any]) -> None:
        try:
            when = datetime.fromisoformat(link["time"]).timestamp()
            self._throughput.linked(str(link["file_id"]), int(link["size"]), when)
        except (KeyError, TypeError, ValueError):
            return  # a line that somebody damaged: there is one bar less

    async def now(self) -> Picture:
        """Return a picture of now; raise ``Unavailable`` where the ledger doesn't answer in time."""
        if self._last is not None and time.monotonic() < self._next:
            return self._last
        if self._taking is None:
            self._taking = asyncio.create_task(self._take(), name="status picture")
            self._taking.add_done_callback(self._taken)
        try:
            async with asyncio.timeout(PATIENCE):
                return await asyncio.shield(self._taking)
        except TimeoutError:
            raise Unavailable("the ledger does not answer", fix="look at its disk") from None

    def _taken(self, task: asyncio.Task[Picture]) -> None:
        self._taking = None
        if not task.cancelled():
            task.exception()  # whoever waited has it

    async def _take(self) -> Picture:
        began = time.monotonic()
        status = await overview(self._view)
        links = await asyncio.to_thread(last_links, self._view.config.links.file, LINKS)
        self._last = Picture(status, links, self._throughput.minutes(time.time()), utcnow())
        self._next = time.monotonic() + max(AGE, (time.monotonic() - began) / SHARE)
        return self._last

    def stale(self) -> None:
        """Take a new one next time: somebody changed something."""
        self._next = 0.0

    async def close(self) -> None:
        """Stop looking."""
        if self._taking is not None:
            self._taking.cancel()
            await asyncio.gather(self._taking, return_exceptions=True)
