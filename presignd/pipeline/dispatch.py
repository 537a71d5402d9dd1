"""Claims queued versions for the senders, fairly, and knows every version at work.

Watches take turns; within one, new events go before the backlog (the ledger's priority); large files hold at most half
of the bodies, so small ones always get through. Only as many are claimed as sending has room for: the rest, and all
that waits for a retry or for a blocked watch, is queued in the ledger.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from datetime import datetime

from presignd.config import UploadConfig
from presignd.ledger import Ledger
from presignd.ledger.changes import Claim
from presignd.model import FileVersion
from presignd.pipeline.stage import MOST, Item
from presignd.pipeline.upload.uploader import Uploader
from presignd.runtime.heartbeat import alive, beat
from presignd.system.clock import utcnow

BATCH = 32
"""Smallest batch worth claiming while there is enough for every sender: each costs a commit."""

LOOK_SECONDS = 5.0
"""Longest time between two looks at the queue, in seconds."""


class Dispatcher:
    """Feeds the senders of one configuration. ``at_work`` has each item from its claim until it leaves, by file_id."""

    def __init__(
        self,
        ledger: Ledger,
        uploader: Uploader,
        upload: UploadConfig,
        watches: Collection[str],
        may_send: Callable[[str], bool],
    ) -> None:
        self._ledger, self._uploader, self._may_send = ledger, uploader, may_send
        self._slots = upload.concurrency
        self._large_size = upload.multipart_threshold
        self._watches = list(watches)
        self._wake = asyncio.Event()
        self._left = asyncio.Event()
        self._feeding_ended = asyncio.Event()
        self._feeding_ended.set()
        self._retired = self._draining = self._careful = False
        self.at_work: dict[str, Item] = {}

    def wake(self) -> None:
        """Look at the queue now: a version was queued, one was sent or left, or a breaker was reset."""
        self._wake.set()

    def add(self, item: Item) -> None:
        """Count ``item`` as at work."""
        self.at_work[item.version.file_id] = item

    def leave(self, item: Item) -> None:
        """Forget ``item``: its version has ended, waits for another try, or is the ledger's again."""
        self.at_work.pop(item.version.file_id, None)
        self._left.set()
        self.wake()

    async def run(self, *, careful: bool = False, max_priority: int | None = None) -> None:
        """Claim versions until ``drain`` or ``retire``; then return.

        ``careful``, after an unclean exit: claim no more than can be sent at once until no version is at work. A
        version that is in flight at three unclean exits is quarantined, so few should be. With ``max_priority``, only
        versions of at most that priority number are claimed: a command's own files.
        """
        self._careful = careful
        self._feeding_ended.clear()
        try:
            await self._run(max_priority)
        finally:
            self._feeding_ended.set()

    async def _run(self, max_priority: int | None) -> None:
        with alive("dispatcher") as heart:
            while not (self._draining or self._retired):
                heart.beat()
                self._wake.clear()
                now = utcnow()
                if not await self._feed(now, max_priority):
                    await self._rest(now)

    async def _feed(self, now: datetime, max_priority: int | None) -> int:
        """Claim versions for the room there is, watch by watch; return how many."""
        total = 0
        open_watches = [name for name in self._watches if self._may_send(name)]
        for turn, name in enumerate(open_watches):
            for below_size, limit in self._limits(len(open_watches) - turn):
                due = await self._ledger.due(name, limit, now, below_size=below_size, max_priority=max_priority)
                total += await self._claim(self._without_too_many_large(due))
        self._watches.append(self._watches.pop(0))
        return total

    async def _claim(self, versions: Sequence[FileVersion]) -> int:
        """Read those that are tiny, claim all in one commit with what their objects will be, and send them."""
        if not versions:
            return 0
        items = await self._uploader.read(versions)
        claims = [Claim(item.version, self._uploader.intent(item)) for item in items]
        claimed = await self._ledger.claim(claims)
        if self._draining:
            return 0  # claimed while the drain began: recovery puts them back in the queue
        for item, now in zip(items, claimed, strict=True):
            if now is not None:
                item.retried = item.version.etag != ""
                item.version, item.previous = now.version, now.previous
                self.add(item)
                self._uploader.queue.put_nowait(item)
        return len(versions)

    def _limits(self, watches: int) -> list[tuple[int | None, int]]:
        """Return what one of so many ``watches`` may claim now: the size to stay below (None: any), and how many.

        A body that is not read yet is claimed once a sender is free for it: so the ledger's order and fairness hold
        for it until then, and a drain begins none.
        """
        unsent = self._unsent()
        room = (self._slots if self._careful else max(MOST, self._slots)) - len(self.at_work)
        enough = len(unsent) >= 2 * self._slots
        if room <= 0 or (enough and room < BATCH):
            return []
        bodies = min(room, self._slots - sum(size > self._uploader.tiny for size in unsent))
        share = -(-bodies // watches)
        limits = [(None if self._large_room(unsent) > 0 else self._large_size, share)]
        if not self._careful:
            limits.append((self._uploader.tiny + 1, room // watches - share))
        return [(below_size, limit) for below_size, limit in limits if limit > 0]

    def _unsent(self) -> list[int]:
        return [item.version.size for item in self.at_work.values() if item.unsent]

    def _large_room(self, unsent: Sequence[int]) -> int:
        return max(1, self._slots // 2) - sum(size >= self._large_size for size in unsent)

    def _without_too_many_large(self, due: Sequence[FileVersion]) -> list[FileVersion]:
        room = self._large_room(self._unsent())
        large = [version for version in due if version.size >= self._large_size]
        too_many = {version.file_id for version in large[max(0, room) :]}
        return [version for version in due if version.file_id not in too_many]

    async def _rest(self, looked_at: datetime) -> None:
        """Wait until ``wake``, until a retry becomes due that was not due at ``looked_at``, or ``LOOK_SECONDS``.

        Versions already due wait for room; an item that was sent or left wakes the loop.
        """
        seconds = LOOK_SECONDS
        if not self.at_work:
            self._careful = False
        if self._limits(1):
            due = await self._ledger.next_due([name for name in self._watches if self._may_send(name)], looked_at)
            seconds = _until(due, utcnow())
        beat(within=seconds)
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return

    async def retire(self) -> None:
        """Claim nothing more, and return when nothing is at work."""
        self._retired = True
        self.wake()
        await self._feeding_ended.wait()
        await self._until_none()

    async def drain(self, seconds: float) -> bool:
        """Claim nothing more; return whether nothing is at work after ``seconds``."""
        self._draining = True
        self.wake()
        try:
            async with asyncio.timeout(seconds):
                await self._until_none()
        except TimeoutError:
            return False
        return True

    async def _until_none(self) -> None:
        while self.at_work:
            self._left.clear()
            await self._left.wait()


def _until(due: datetime | None, now: datetime) -> float:
    if due is None:
        return LOOK_SECONDS
    return min(LOOK_SECONDS, max(0.01, (due - now).total_seconds()))
