"""Claims queued versions for free slots, fairly, and runs a worker task for each.

Watches take turns; within one, new events go before the backlog (the ledger's priority); large files
hold at most half of the slots, so small ones always get through. Tiny files are claimed before a slot is free, and
hold one for their request only: so many of them share one commit and one fsync.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from datetime import datetime
from itertools import chain

from presignd.config import UploadConfig
from presignd.ledger import Ledger
from presignd.model import FileVersion
from presignd.pipeline.upload.whole import TINY
from presignd.pipeline.worker import Worker
from presignd.runtime.heartbeat import alive, beat
from presignd.system.clock import utcnow

AHEAD = 128
"""Most versions at work, tiny ones included: after a crash these may be uploaded again (docs/guarantees.md, 3)."""

MIN_AHEAD = 32
"""Smallest batch worth claiming ahead while all slots are busy; with free slots any number is claimed.

Smaller batches would cost a commit for each version that ends.
"""

LOOK_SECONDS = 5.0
"""Longest time between two looks at the queue, in seconds."""


class Dispatcher:
    """Runs up to ``concurrency`` workers, on versions that are due and whose watch is not blocked.

    ``tiny`` (bytes) is the size up to which a file counts as tiny; with 0, none does.
    """

    def __init__(
        self,
        ledger: Ledger,
        worker: Worker,
        upload: UploadConfig,
        watches: Collection[str],
        may_send: Callable[[str], bool],
        *,
        tiny: int = TINY,
    ) -> None:
        self._ledger, self._worker, self._may_send = ledger, worker, may_send
        self._slots = upload.concurrency
        self._large_size = upload.multipart_threshold
        self._tiny = min(tiny, upload.memory // AHEAD)
        self._watches = list(watches)
        self._tasks: dict[asyncio.Task[None], int] = {}
        self._wake = asyncio.Event()
        self._worker_error: BaseException | None = None
        self._retired = False
        self._claiming_ended = asyncio.Event()
        self._claiming_ended.set()
        self.draining = False
        self._careful = False

    def wake(self) -> None:
        """Look at the queue now: a version was queued or ended, or a breaker was reset."""
        self._wake.set()

    def start(self, version: FileVersion) -> None:
        """Start a worker for a version that is claimed already."""
        task = asyncio.create_task(self._worker.process(version), name=f"worker {version.file_id}")
        self._tasks[task] = version.size
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task)
        self.wake()
        if not task.cancelled() and (error := task.exception()):
            self._worker_error = error

    async def run(self, *, careful: bool = False, max_priority: int | None = None) -> None:
        """Claim versions and start workers until ``drain`` or ``retire``; raise what a worker could not record.

        ``careful``, after an unclean exit: claim nothing ahead until no version is at work. A version that is in
        flight at three unclean exits is quarantined, so few should be. With ``max_priority``, only versions of at
        most that priority number are claimed: a command's own files.
        """
        self._careful = careful
        self._claiming_ended.clear()
        try:
            await self._run(max_priority)
        finally:
            self._claiming_ended.set()

    async def _run(self, max_priority: int | None) -> None:
        with alive("dispatcher") as heart:
            while not (self.draining or self._retired):
                heart.beat()
                self._wake.clear()
                now = utcnow()
                claimed = await self._claim(now, max_priority)
                if self._worker_error:
                    raise self._worker_error
                if not claimed:
                    await self._rest(now)

    async def _claim(self, now: datetime, max_priority: int | None) -> int:
        """Claim versions for free slots, watch by watch; return how many were started."""
        total = 0
        open_watches = [name for name in self._watches if self._may_send(name)]
        for turn, name in enumerate(open_watches):
            limits = self._claim_limits(len(open_watches) - turn)
            claims = [
                self._ledger.claim(name, limit, now, below_size=below_size, max_priority=max_priority)
                for below_size, limit in limits
            ]
            versions = list(chain.from_iterable(await asyncio.gather(*claims)))
            if self.draining:
                return 0  # claimed while the drain began: recovery puts them back in the queue
            for version in versions:
                self.start(version)
            total += len(versions)
        self._watches.append(self._watches.pop(0))
        return total

    def _claim_limits(self, watches: int) -> list[tuple[int | None, int]]:
        """Return what one of so many ``watches`` may claim now: the size to stay below (None: any), and how many."""
        sizes = self._tasks.values()
        slots_left = self._slots - sum(size > self._tiny for size in sizes)
        large_left = max(1, self._slots // 2) - sum(size >= self._large_size for size in sizes)
        max_at_work = max(AHEAD, self._slots) if self._tiny and not self._careful else self._slots
        free = min(slots_left, max_at_work - len(self._tasks))
        share = -(-free // watches)
        limits = [(self._large_size, share) if large_left <= 0 else (None, min(share, large_left))]
        ahead = (max_at_work - len(self._tasks)) // watches - limits[0][1]
        if max_at_work > self._slots and (ahead >= MIN_AHEAD or len(self._tasks) < self._slots):
            limits.append((self._tiny + 1, ahead))
        return [(below_size, limit) for below_size, limit in limits if limit > 0]

    async def _rest(self, looked_at: datetime) -> None:
        """Wait until ``wake``, until a retry becomes due that was not due at ``looked_at``, or ``LOOK_SECONDS``.

        Versions already due wait for a slot; a worker that ends wakes the loop.
        """
        seconds = LOOK_SECONDS
        if not self._tasks:
            self._careful = False
        if self._claim_limits(1):
            due = await self._ledger.next_due([name for name in self._watches if self._may_send(name)], looked_at)
            seconds = _until(due, utcnow())
        beat(within=seconds)
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return

    async def retire(self) -> None:
        """Claim nothing more, and return when all workers have ended; raise as ``run`` does."""
        self._retired = True
        self.wake()
        await self._claiming_ended.wait()
        while self._tasks:
            await asyncio.wait(list(self._tasks))
        if self._worker_error:
            raise self._worker_error

    async def drain(self, seconds: float) -> bool:
        """Claim nothing more and wait for the workers; cancel them after ``seconds``, and return False then."""
        self.draining = True
        self.wake()
        tasks = list(self._tasks)
        if not tasks:
            return True
        _, pending = await asyncio.wait(tasks, timeout=seconds)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        return not pending


def _until(due: datetime | None, now: datetime) -> float:
    if due is None:
        return LOOK_SECONDS
    return min(LOOK_SECONDS, max(0.01, (due - now).total_seconds()))
