"""settle: hold each candidate until it is complete, and record what is new in the ledger.

Each watch has a lane of its own, so a folder that hangs holds up only itself. Nothing here is durable: a crash
loses only hints, and the scan of the next start finds the files again.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from presignd.model import Fingerprint, Listed, Source
from presignd.pipeline.intake import ignored, make_version
from presignd.pipeline.settle.lane import Lane, OnReturn, Record, SettlingPath
from presignd.pipeline.settle.looker import Looker, ReadAhead

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from collections.abc import Set as AbstractSet
    from datetime import datetime

    from presignd.config import WatchConfig
    from presignd.ledger import Ledger
    from presignd.pipeline.files.folder import Folder
    from presignd.pipeline.files.ignore import Unfinished
    from presignd.pipeline.files.lease import WriterCheck
    from presignd.pipeline.unit.folders import Markers

IGNORED_AT_ONCE = 500
"""Files that one commit records as ignored."""


class Settler:
    """The lanes of all watches. Its methods are called on the event loop that runs ``run``.

    ``markers`` are those of folders that are linked as a whole.
    """

    def __init__(
        self,
        ledger: Ledger,
        record: Record,
        *,
        markers: Markers,
        on_return: OnReturn,
        ahead: ReadAhead,
    ) -> None:
        self._ledger, self._record, self._on_return = ledger, record, on_return
        self._markers, self._ahead = markers, ahead
        self._lanes: dict[str, Lane] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._running: dict[str, asyncio.Task[None]] = {}

    def add(self, watch: WatchConfig, folder: Folder, check: WriterCheck, unfinished: Unfinished) -> None:
        """Settle a watch's candidates from now on, before ``run`` or while it runs.

        If the watch already has a lane, that lane gets the new looker: the folder may be on another filesystem now.
        Files wait for the downloads in ``unfinished``.
        """
        looker = Looker(
            watch,
            folder,
            check,
            unfinished=unfinished,
            ahead=self._ahead,
            markers=self._markers.of(watch.name) if watch.links_folders else None,
        )
        if (lane := self._lanes.get(watch.name)) is not None:
            lane.looker = looker
        else:
            self.add_lane(Lane(watch, looker, self._ledger, record=self._record, on_return=self._on_return))

    def add_lane(self, lane: Lane) -> None:
        """Run a lane that the caller made."""
        self._lanes[lane.watch] = lane
        if self._tasks is not None:
            self._start(lane, self._tasks)

    def _start(self, lane: Lane, tasks: asyncio.TaskGroup) -> None:
        self._running[lane.watch] = tasks.create_task(lane.run(), name=f"settle:{lane.watch}")

    async def remove(self, watch: str) -> None:
        """End the lane of a watch, after it has recorded what it was recording."""
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

    def submit(self, watch: str, paths: Collection[bytes], *, closed: AbstractSet[bytes] = frozenset()) -> None:
        """Queue paths of a watch that may hold something new: hints, never facts. Unknown watches are ignored.

        Cheap, and many for one path cost one look. ``closed``: as for ``Lane.submit``.
        """
        if (lane := self._lanes.get(watch)) is not None:
            lane.submit(paths, Source.EVENT, closed=closed)

    async def wait_for_room(self, watch: str) -> None:
        """Return once fewer scanned files wait for their first look than a lane has room for."""
        await self._lanes[watch].wait_for_room()

    async def submit_scanned(
        self, watch: str, listed: Sequence[Listed], source: Source, *, ignore_before: datetime | None = None
    ) -> int:
        """Queue those files of a scan that the ledger does not have as they are; return how many.

        Files unknown to the ledger whose ctime is before ``ignore_before`` are recorded as ignored
        (``existing = "ignore"`` at the very first start).
        """
        lane = self._lanes[watch]
        fresh = await self._ledger.differing(watch, listed)
        if ignore_before is not None:
            fresh = await self._ignore_old(lane, fresh, int(ignore_before.timestamp() * 1e9))
        lane.submit([path for path, *_ in fresh], source)
        return len(fresh)

    async def _ignore_old(self, lane: Lane, fresh: Sequence[Listed], before_ns: int) -> list[Listed]:
        """Record unknown files with a ctime before ``before_ns`` as ignored; return the others."""
        known = await self._ledger.known(lane.watch, [path for path, *_ in fresh])
        old, young = list[Listed](), list[Listed]()
        for each in fresh:
            path, *_, ctime_ns = each
            (old if ctime_ns < before_ns and path not in known else young).append(each)
        for start in range(0, len(old), IGNORED_AT_ONCE):
            some = old[start : start + IGNORED_AT_ONCE]
            await self._ledger.enqueue(
                [ignored(make_version(lane.config, path, Fingerprint(*seen), Source.BACKLOG)) for path, *seen in some]
            )
        return young

    def settling(self, watch: str, path: bytes) -> SettlingPath | None:
        """Return a path if it is settling."""
        lane = self._lanes.get(watch)
        return lane.settling(path) if lane else None

    def snapshot(self) -> list[SettlingPath]:
        """Return the first paths of each watch that are settling, and why each waits."""
        return [each for lane in self._lanes.values() for each in lane.snapshot()]
