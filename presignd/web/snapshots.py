"""Take snapshots for the status page: at most one a second for all clients, fewer if a snapshot is costly."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from presignd.control.documents import overview
from presignd.control.links import LATEST
from presignd.errors import Fault, Unavailable
from presignd.links import last_links
from presignd.system.clock import utcnow
from presignd.web.page import Snapshot

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from presignd.control.view import View
    from presignd.model import Link
    from presignd.pages.pace import Pace

HISTORY = 2000
"""Links read back at start, for the last hour's throughput."""
MINUTES = 60


@dataclass(frozen=True, slots=True)
class Minute:
    """One minute: when it began (seconds since 1970), the bytes sent in it and the files linked."""

    began: int
    sent: int
    files: int


class Throughput:
    """Counts the bytes sent and the files linked in each minute of the last hour; times are seconds since 1970. Pure.

    Each byte of a file counts once: when it is seen to be sent, or, if it never was, with the file's link.
    """

    def __init__(self) -> None:
        self._sent: dict[int, int] = defaultdict(int)
        self._files: dict[int, int] = defaultdict(int)
        self._seen: dict[str, int] = {}

    def moving(self, sent: Mapping[str, int], now: float) -> None:
        """Count what was sent since the last call, by upload in progress; forget uploads that ended."""
        for file_id, total in sent.items():
            self._sent[_minute(now)] += max(0, total - self._seen.get(file_id, 0))
        self._seen = {file_id: max(total, self._seen.get(file_id, 0)) for file_id, total in sent.items()}
        self._forget(now)

    def linked(self, file_id: str, size: int, when: float) -> None:
        """Count a linked file."""
        self._sent[_minute(when)] += max(0, size - self._seen.get(file_id, 0))
        self._files[_minute(when)] += 1
        self._seen[file_id] = size

    def minutes(self, now: float) -> list[Minute]:
        """Return the last hour, oldest minute first; the last one is still running."""
        last = _minute(now)
        return [
            Minute(m * 60, self._sent.get(m, 0), self._files.get(m, 0)) for m in range(last - MINUTES + 1, last + 1)
        ]

    def _forget(self, now: float) -> None:
        for counts in (self._sent, self._files):
            for minute in [known for known in counts if known <= _minute(now) - MINUTES]:
                del counts[minute]


class Snapshots:
    """Takes snapshots and keeps the last one for a second; ``run`` samples the throughput."""

    def __init__(self, view: View, pace: Pace) -> None:
        self._view, self._pace = view, pace
        self._throughput = Throughput()
        self._last: Snapshot | None = None
        self._next = 0.0
        self._taking: asyncio.Task[Snapshot] | None = None
        self._next_look = 0.0
        self._looking: asyncio.Task[None] | None = None

    def hear(self, link: Link) -> None:
        """Count a new link."""
        self._throughput.linked(link.file_id, link.size, time.time())

    async def run(self) -> None:
        """Sample the uploads' progress, until cancelled."""
        for link in await asyncio.to_thread(last_links, self._view.config.links.file, HISTORY):
            self._read_back(link)
        while True:
            sent = {upload.version.file_id: upload.sent for upload in self._view.in_flight()}
            self._throughput.moving(sent, time.time())
            await asyncio.sleep(self._pace.sample)

    def _read_back(self, link: dict[str, Any]) -> None:
        try:
            when = datetime.fromisoformat(link["time"]).timestamp()
            self._throughput.linked(str(link["file_id"]), int(link["size"]), when)
        except (KeyError, TypeError, ValueError):
            return  # a damaged line: one bar less

    async def now(self) -> Snapshot:
        """Return a current snapshot; raise ``Unavailable`` where the ledger doesn't answer in time."""
        if self._last is not None and time.monotonic() < self._next:
            return self._last
        if self._taking is None:
            self._taking = asyncio.create_task(self._take(), name="status snapshot")
            self._taking.add_done_callback(self._taken)
        try:
            async with asyncio.timeout(self._pace.patience):
                return await asyncio.shield(self._taking)
        except TimeoutError:
            raise Unavailable("the ledger does not answer", fix="look at its disk") from None

    def _taken(self, task: asyncio.Task[Snapshot]) -> None:
        self._taking = None
        if not task.cancelled():
            task.exception()  # the clients that waited got it

    async def _take(self) -> Snapshot:
        began = time.monotonic()
        status = await overview(self._view)
        links = await asyncio.to_thread(last_links, self._view.config.links.file, LATEST)
        links = [link | {"revoked": self._view.links.revocations.has(link)} for link in links]
        self._last = Snapshot(status, links, self._throughput.minutes(time.time()), utcnow())
        rest = (time.monotonic() - began) / self._pace.snapshot_share
        self._next = time.monotonic() + max(self._pace.snapshot, rest)
        return self._last

    def stale(self) -> None:
        """Take a new snapshot next time: something was changed."""
        self._next = 0.0

    def look_at(self, links: Sequence[dict[str, Any]]) -> None:
        """Query the broker from time to time for revoked links of an open page; a later snapshot shows them."""
        if time.monotonic() >= self._next_look and (self._looking is None or self._looking.done()):
            self._next_look = time.monotonic() + self._pace.links
            self._looking = asyncio.create_task(self._look(links), name="look at links")

    async def _look(self, links: Sequence[dict[str, Any]]) -> None:
        with suppress(Fault):  # shown as they were known
            await self._view.links.look(links)
            self.stale()

    async def close(self) -> None:
        """Cancel a snapshot that is being taken, and a query to the broker."""
        tasks = [task for task in (self._taking, self._looking) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _minute(time: float) -> int:
    return int(time // 60)
