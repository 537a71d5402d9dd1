"""settle: hold each candidate until it is whole, and record what is new in the ledger.

One lane a watch, so a folder that hangs holds up only itself. Nothing here is durable: a crash loses only
hints, and the next start's scan brings them again.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from presignd.model import Candidate, Source, State
from presignd.pipeline.settle.decide import LOCAL_GRAIN, NETWORK_GRAIN, Rules
from presignd.pipeline.settle.lane import Lane, MakeVersion, Settling, Tools
from presignd.pipeline.settle.looker import Looker
from presignd.pipeline.settle.partners import Unfinished
from presignd.states import is_recorded
from presignd.system.filesystem import has_fine_times, is_network

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
    from datetime import datetime

    from presignd.config import WatchConfig
    from presignd.ledger import Enqueued, Ledger
    from presignd.model import Fingerprint
    from presignd.pipeline.files.folder import Folder
    from presignd.pipeline.files.lease import WriterCheck

__all__ = ["Lane", "MakeVersion", "Settler", "Settling", "Tools"]


class Settler:
    """All lanes. ``offer`` and ``offer_scanned`` are called on the event loop that runs ``run``."""

    def __init__(
        self,
        ledger: Ledger,
        make_version: MakeVersion,
        on_enqueued: Callable[[list[Enqueued]], Awaitable[None]],
        *,
        monotonic: Callable[[], float] = time.monotonic,
        time_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._tools = Tools(ledger, make_version, on_enqueued, monotonic, time_ns)
        self._lanes: dict[str, Lane] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._running: dict[str, asyncio.Task[None]] = {}

    def add(self, watch: WatchConfig, folder: Folder, check: WriterCheck, unfinished: Unfinished | None = None) -> None:
        """Settle a watch's candidates from now on, before ``run`` or while it runs.

        Files wait for the downloads that ``unfinished`` knows of. Said again, it changes how: the folder may be on
        another filesystem by now.
        """
        rules = Rules(watch.settle, _grain(folder.fd))
        tools = self._tools
        look = Looker(
            folder,
            check,
            watch.ready_marker,
            unfinished=unfinished or Unfinished(),
            monotonic=tools.monotonic,
            time_ns=tools.time_ns,
        )
        if (lane := self._lanes.get(watch.name)) is not None:
            lane.look_by(rules, look)
        else:
            self.add_lane(Lane(watch, rules, look, tools))

    def add_lane(self, lane: Lane) -> None:
        """Take a lane as it is."""
        self._lanes[lane.watch] = lane
        if self._tasks is not None:
            self._start(lane, self._tasks)

    def _start(self, lane: Lane, tasks: asyncio.TaskGroup) -> None:
        self._running[lane.watch] = tasks.create_task(lane.run(), name=f"settle:{lane.watch}")

    async def remove(self, watch: str) -> None:
        """Settle nothing more of a watch; what it was about to record is recorded."""
        self._lanes.pop(watch, None)
        if (task := self._running.pop(watch, None)) is not None:
            task.cancel()
            await asyncio.wait({task})

    async def run(self) -> None:
        """Run every lane until cancelled; a lane that crashes ends all (the process restarts)."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            for lane in self._lanes.values():
                self._start(lane, tasks)
            await asyncio.Event().wait()

    def offer(self, candidates: Iterable[Candidate]) -> None:
        """Take hints: cheap, many for one path are one. Those of unknown watches are dropped."""
        for candidate in candidates:
            if (lane := self._lanes.get(candidate.watch)) is not None:
                lane.offer(candidate.path, candidate.source, closed=candidate.closed)

    async def room(self, watch: str) -> None:
        """Return once not too many scanned files wait for their first look."""
        await self._lanes[watch].room()

    async def offer_scanned(
        self,
        watch: str,
        found: Sequence[tuple[bytes, Fingerprint]],
        source: Source,
        *,
        ignore_before: datetime | None = None,
    ) -> int:
        """Take up to 500 files of a scan, after one look into the ledger; return how many need settling.

        Files unknown to the ledger whose ctime is before ``ignore_before`` are recorded as ignored
        (``existing = "ignore"`` at the very first start).
        """
        lane = self._lanes[watch]
        known = await self._tools.ledger.known(watch, [path for path, _ in found])
        fresh = [one for one in found if not is_recorded(known.get(one[0]), one[1])]
        if ignore_before is not None:
            before_ns = int(ignore_before.timestamp() * 1e9)
            old = {path: one for path, one in fresh if one.ctime_ns < before_ns and path not in known}
            await self._record_ignored(watch, old)
            fresh = [one for one in fresh if one[0] not in old]
        for path, _ in fresh:
            lane.offer(path, source)
        return len(fresh)

    async def _record_ignored(self, watch: str, old: Mapping[bytes, Fingerprint]) -> None:
        versions = [self._tools.make_version(watch, path, one, Source.BACKLOG) for path, one in old.items()]
        if versions:
            # Without a key: what is never sent keeps none from others.
            await self._tools.ledger.enqueue(
                [replace(one, state=State.IGNORED, key=None, error_code="", error="") for one in versions]
            )

    def settling(self, watch: str, path: bytes) -> Settling | None:
        """Say how a path settles; None when it doesn't."""
        lane = self._lanes.get(watch)
        return None if lane is None else lane.settling(path)

    def counts(self) -> dict[str, int]:
        """Return how many paths are settling, by watch."""
        return {watch: lane.count for watch, lane in self._lanes.items()}

    def snapshot(self, limit: int = 1000) -> list[Settling]:
        """Return up to ``limit`` paths a watch that are settling, and why each waits."""
        return [one for lane in self._lanes.values() for one in lane.snapshot(limit)]


def _grain(folder: int) -> float:
    """Return for how many seconds after its last change a file may change again and look the same."""
    if is_network(folder):
        return NETWORK_GRAIN
    return 0.0 if has_fine_times(folder) else LOCAL_GRAIN
