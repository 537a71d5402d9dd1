"""Claims queued versions for free slots, fairly, and runs a worker task for each.

Watches take turns; within one, new events go before the backlog (the ledger's priority); large files
hold at most half of the slots, so small ones always get through. Tiny files are claimed ahead of their slot,
which they hold for one request only: many of them share a commit and an fsync, where each waited for its own.
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
"""Versions at work at most, tiny ones among them: a crash may have these to do again (contract, guarantee 3)."""

FEW = 32
"""Smallest batch worth claiming ahead: smaller ones would cost a commit for each version that ends."""

LOOK_SECONDS = 5.0
"""How often the queue is looked at without a reason, at the latest."""


class Dispatcher:
    """Keeps up to ``concurrency`` workers busy with what is due and whose watch is not blocked.

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
        """Look at the queue now: something was queued, ended, or came back."""
        self._wake.set()

    def start(self, version: FileVersion) -> None:
        """Work on a version that is claimed already (what a crash left verified or linked)."""
        task = asyncio.create_task(self._worker.process(version), name=f"worker {version.file_id}")
        self._tasks[task] = version.size
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task)
        self.wake()
        if not task.cancelled() and (error := task.exception()):
            self._worker_error = error

    async def run(self, *, careful: bool = False, most_priority: int | None = None) -> None:
        """Claim and start, until draining; raise what a worker could not even record (the ledger failing).

        ``careful``, after an unclean exit, claims nothing ahead until all that was claimed has ended: what is in
        flight at three unclean exits is quarantined, so that should be few. With ``most_priority`` only versions of
        at most that priority number are claimed: a command's own files.
        """
        self._careful = careful
        self._claiming_ended.clear()
        try:
            await self._run(most_priority)
        finally:
            self._claiming_ended.set()

    async def _run(self, most_priority: int | None) -> None:
        with alive("dispatcher") as heart:
            while not (self.draining or self._retired):
                heart.beat()
                self._wake.clear()
                now = utcnow()
                claimed = await self._claim(now, most_priority)
                if self._worker_error:
                    raise self._worker_error
                if not claimed:
                    await self._rest(now)

    async def _claim(self, now: datetime, most_priority: int | None) -> int:
        """Give free slots out in turns; return how many versions were started."""
        total = 0
        open_watches = [name for name in self._watches if self._may_send(name)]
        for turn, name in enumerate(open_watches):
            limits = self._claim_limits(len(open_watches) - turn)
            claims = [
                self._ledger.claim(name, limit, now, below_size=below_size, most_priority=most_priority)
                for below_size, limit in limits
            ]
            versions = list(chain.from_iterable(await asyncio.gather(*claims)))
            if self.draining:
                return 0  # claimed while the drain began: they go back with what it cancels
            for version in versions:
                self.start(version)
            total += len(versions)
        self._watches.append(self._watches.pop(0))
        return total

    def _claim_limits(self, watches: int) -> list[tuple[int | None, int]]:
        """Return what one of so many ``watches`` may claim now: the size to stay below, and how many."""
        sizes = self._tasks.values()
        whole = self._slots - sum(size > self._tiny for size in sizes)
        half = max(1, self._slots // 2) - sum(size >= self._large_size for size in sizes)
        most = max(AHEAD, self._slots) if self._tiny and not self._careful else self._slots
        free = min(whole, most - len(self._tasks))
        share = -(-free // watches)
        limits = [(self._large_size, share) if half <= 0 else (None, min(share, half))]
        ahead = (most - len(self._tasks)) // watches - limits[0][1]
        if most > self._slots and (ahead >= FEW or len(self._tasks) < self._slots):
            limits.append((self._tiny + 1, ahead))
        return [(below_size, limit) for below_size, limit in limits if limit > 0]

    async def _rest(self, looked_at: datetime) -> None:
        """Wait until something happens, a retry is due that was not at ``looked_at``, or a few seconds are over.

        What was due then and not claimed waits for a slot, whose end wakes us: it asks for no look before.
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
        """Claim nothing more, and return once all that was claimed has ended; raise as ``run`` does."""
        self._retired = True
        self.wake()
        await self._claiming_ended.wait()
        while self._tasks:
            await asyncio.wait(list(self._tasks))
        if self._worker_error:
            raise self._worker_error

    async def drain(self, seconds: float) -> bool:
        """Claim nothing more and wait for what is in flight; cancel it after ``seconds``. True when all ended."""
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
