"""Claims queued versions for the senders, fairly, and knows every version at work.

Suspects are sent first, one at a time (``suspects.py``). Otherwise watches take turns; within one, new events go before
the backlog (the ledger's priority). Large files hold at most half of the bodies, so small ones always get through. Only
as many versions are claimed as the senders have room for. All others are queued in the ledger, also those that wait for
a retry or for a blocked watch.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from math import inf

from presignd.config import UploadConfig
from presignd.ledger import Enqueued, Ledger
from presignd.ledger.changes import Claim
from presignd.model import FileVersion, NewVersion, State
from presignd.pipeline.files.hash import Prepared
from presignd.pipeline.stage import MOST, TURN, Item
from presignd.pipeline.suspects import Suspects, Turn
from presignd.pipeline.upload.breakers import Breakers
from presignd.pipeline.upload.uploader import Uploader
from presignd.runtime.heartbeat import alive, beat
from presignd.system.clock import utcnow

BATCH = 32
"""Smallest batch worth claiming while there is enough for every sender: each costs a commit."""

ROOM_SECONDS = 0.2
"""How long ``TURN`` new versions wait for room, in seconds, before they are queued, which costs one more commit. A more
urgent file may have to wait as long."""

LOOK_SECONDS = 5.0
"""Longest time between two looks at the queue, in seconds."""

SUSPECT_SECONDS = 0.2
"""The longest time while a suspect is alone: no event says that it was verified or that a part of it was recorded."""


class Dispatcher:
    """Feeds the senders of one configuration. ``at_work`` has each item from its claim until it leaves, by file_id.

    ``_waits`` are the watches whose queue may hold versions that can be sent, ``_tiny_waits`` those whose queue may
    hold tiny ones. ``_alone``: a suspect is alone or will be, so nothing else may be claimed.
    """

    def __init__(
        self,
        ledger: Ledger,
        uploader: Uploader,
        upload: UploadConfig,
        breakers: Breakers,
        suspects: Suspects,
    ) -> None:
        self._ledger, self._uploader, self._may_send = ledger, uploader, breakers.may_send
        self._suspects = suspects
        self._slots = upload.concurrency
        self._most = max(MOST, self._slots)
        self._large_size = upload.multipart_threshold
        self._watches = list(breakers.watches)
        self._waits, self._tiny_waits, self._changes = set[str](), set[str](), 0
        self._wake = asyncio.Event()
        self._left = asyncio.Event()
        self._feeding_ended = asyncio.Event()
        self._feeding_ended.set()
        self._retired = self._draining = self._alone = False
        self._max_priority: int | None = None
        self._reserved = 0
        self.at_work: dict[str, Item] = {}

    def wake(self) -> None:
        """Look at the queue now: another version may be due."""
        self._found_waiting(self._watches, tiny=True)

    def _found_waiting(self, watches: Iterable[str], *, tiny: bool) -> None:
        self._changes += 1
        self._waits.update(watches)
        if tiny:
            self._tiny_waits.update(watches)
        self._wake.set()

    def sent(self) -> None:
        """Use the room that there is now."""
        if self._waits:
            self._wake.set()

    def add(self, items: Iterable[Item]) -> None:
        """Count items as at work."""
        self.at_work |= {item.version.file_id: item for item in items}

    def leave(self, items: Iterable[Item]) -> None:
        """Forget items: their versions have ended, wait for another try, or are back in the ledger's queue."""
        for item in items:
            self.at_work.pop(item.version.file_id, None)
        self._left.set()
        self.sent()

    async def run(self, *, max_priority: int | None = None) -> None:
        """Claim versions until ``drain`` or ``retire``; then return.

        With ``max_priority``, only versions of at most that priority number are claimed: a command's own files.
        """
        self._max_priority = max_priority
        self.wake()
        self._feeding_ended.clear()
        try:
            with alive("dispatcher") as heart:
                while not self._ends:
                    heart.beat()
                    self._wake.clear()
                    now = utcnow()
                    if not await self._feed(now):
                        await self._rest(now)
        finally:
            self._feeding_ended.set()

    @property
    def _ends(self) -> bool:
        return self._draining or self._retired

    # --- from the queue ---------------------------------------------------------------------------
    async def _feed(self, now: datetime) -> int:
        """Claim as many versions as there is room for: a suspect alone, else watch by watch; return how many."""
        self._alone = bool(self._suspects)
        if self._alone:
            turn = await self._turn(now)
            if turn.suspect:
                return await self._claim([turn.suspect])
            self._alone = not turn.others
        return 0 if self._alone else await self._feed_all(now)

    async def _turn(self, now: datetime) -> Turn:
        """Return what may be claimed now.

        No version skips the queue during the call; those that skipped it before count.
        """
        recording = self._reserved
        found, uploading = await self._ledger.suspects_left(
            self._suspects.file_ids, now, max_priority=self._max_priority
        )
        seconds = asyncio.get_running_loop().time()
        return self._suspects.turn(found, uploading + recording, self._may_go, seconds)

    def _may_go(self, watch: str) -> bool:
        return watch in self._watches and self._may_send(watch) and self._room() > 0

    async def _feed_all(self, now: datetime) -> int:
        total = 0
        watches = self._open(self._waits)
        for turn, name in enumerate(watches):
            for below_size, limit in self._limits(name, len(watches) - turn):
                if name not in (self._tiny_waits if below_size == self._uploader.tiny + 1 else self._waits):
                    continue
                total += await self._claim(await self._due(name, limit, now, below_size))
        self._watches = [*self._watches[1:], *self._watches[:1]]
        return total

    def _open(self, watches: Collection[str]) -> list[str]:
        """Return those of ``watches`` that may send, in the order of their turns."""
        return [name for name in self._watches if name in watches and self._may_send(name)]

    async def _due(self, watch: str, limit: int, now: datetime, below_size: int | None) -> list[FileVersion]:
        """Return the versions that are due and have room, and note whether more wait."""
        changes = self._changes
        due = await self._ledger.due(watch, limit, now, below_size=below_size, max_priority=self._max_priority)
        chosen = self._without_too_many_large(due)
        if len(due) < limit and changes == self._changes:
            self._tiny_waits.discard(watch)
            self._left.set()
            if below_size is None and len(chosen) == len(due):
                self._waits.discard(watch)
        return chosen

    async def _claim(self, versions: Sequence[FileVersion]) -> int:
        """Read the tiny ones, claim all in one commit together with their checksums, and send them."""
        if not versions:
            return 0
        items = await self._uploader.read(versions)
        claims = [Claim(item.version, item.intent) for item in items]
        claimed = await self._ledger.claim(claims)
        if self._draining:
            return 0  # claimed while the drain began: recovery puts them back in the queue
        begun = list[Item]()
        for item, now in zip(items, claimed, strict=True):
            if now is not None:
                item.retried = item.version.etag != ""
                item.version, item.previous = now
                begun.append(item)
        self._send(begun)
        return len(versions)

    def _send(self, items: Sequence[Item]) -> None:
        gives_way = self._alone and len(self._suspects) > 1
        for item in items:
            item.gives_way = gives_way
        self.add(items)
        self._uploader.queue.put_all(items)

    def _limits(self, watch: str, watches: int) -> list[tuple[int | None, int]]:
        """Return what ``watch``, one of so many, may claim now: the size to stay below (None: any), and how many.

        A body that is not read yet is claimed once a sender is free for it. Until then the ledger's order and fairness
        apply to it, and a drain does not begin it. While nobody knows what a watch's store supports, none of its
        bodies can be read.
        """
        room = self._room()
        if room <= 0:
            return []
        unsent = self._unsent()
        tiny, reads_ahead = self._uploader.tiny, self._uploader.knows_store(watch)
        unread = [size for size in unsent if size > tiny]
        if not reads_ahead:
            unread += [size for size in self._unsent(watch) if size <= tiny]
        bodies = max(0, min(room, self._slots - len(unread)))
        share = -(-bodies // watches)
        limits = [(None if self._large_room(unsent) > 0 else self._large_size, share)]
        if reads_ahead and (room >= BATCH or len(unsent) < 2 * self._slots):
            limits.append((tiny + 1, room // watches - share))
        return [(below_size, limit) for below_size, limit in limits if limit > 0]

    def _room(self) -> int:
        return self._most - len(self.at_work) - self._reserved

    def _unsent(self, watch: str = "") -> list[int]:
        """Return the sizes of the items, of one ``watch`` or of all, that wait for a sender or have one."""
        return [
            item.version.fingerprint.size  # no property, here and below: this list is made many times in a burst
            for item in self.at_work.values()
            if item.receipt is None
            and item.version.state is State.UPLOADING
            and (not watch or item.version.watch == watch)
        ]

    def _large_room(self, unsent: Sequence[int]) -> int:
        return max(1, self._slots // 2) - len([size for size in unsent if size >= self._large_size])

    def _without_too_many_large(self, due: Sequence[FileVersion]) -> list[FileVersion]:
        room = self._large_room(self._unsent())
        large = [version for version in due if version.size >= self._large_size]
        too_many = {version.file_id for version in large[max(0, room) :]}
        return [version for version in due if version.file_id not in too_many]

    async def _rest(self, looked_at: datetime) -> None:
        """Wait until ``wake``, until a retry becomes due that was not due at ``looked_at``, or ``LOOK_SECONDS``.

        Versions already due wait for room; an item that was sent or left wakes the loop.
        """
        seconds = SUSPECT_SECONDS if self._alone else LOOK_SECONDS
        if not self._alone and not self._open(self._waits):
            due = await self._ledger.next_due(self._open(self._watches), looked_at)
            if due is not None:
                seconds = min(LOOK_SECONDS, max(0.01, (due - utcnow()).total_seconds()))
        beat(within=seconds)
        timer = asyncio.get_running_loop().call_later(seconds, self.wake)
        try:
            await self._wake.wait()
        finally:
            timer.cancel()

    # --- past the queue ---------------------------------------------------------------------------
    @asynccontextmanager
    async def room_for(
        self, versions: Sequence[NewVersion], contents: Mapping[str, Prepared]
    ) -> AsyncIterator[dict[str, str]]:
        """Choose the new versions that can be sent at once, and keep room for them until ``begin``.

        Yields their intents, by file_id. These are tiny files that were read (``contents``, by file_id), while no tiny
        version waits in the queue. For many that are equally urgent, wait a moment until the queue is empty and there
        is room: the queue would send them no sooner.
        """
        most = inf if self._max_priority is None else self._max_priority
        may_send = self._open({new.watch for new in versions})
        chosen = [
            new
            for new in versions
            if new.file_id in contents
            and new.state is State.QUEUED
            and new.key is not None
            and new.priority <= most
            and new.watch in may_send
        ]
        if len(chosen) >= TURN and len({version.priority for version in versions}) == 1:
            await self._wait_for_room(TURN)
        chosen = chosen[: self._room_past_queue()]
        self._reserved += len(chosen)
        try:
            yield {new.file_id: self._uploader.intent(new, contents[new.file_id]) for new in chosen}
        finally:
            self._reserved -= len(chosen)
            self._left.set()

    @property
    def _feeds(self) -> bool:
        return not (self._ends or self._alone or self._feeding_ended.is_set())

    def _room_past_queue(self) -> int:
        """Return how many versions may skip the queue; some room is left for larger ones."""
        if not self._feeds or self._open(self._tiny_waits):
            return 0
        return max(0, self._room() - min(self._slots, self._most // 2))

    async def _wait_for_room(self, wanted: int) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(ROOM_SECONDS):
                while self._feeds and self._room_past_queue() < wanted:
                    self._left.clear()
                    await self._left.wait()

    def begin(self, done: Sequence[Enqueued], contents: Mapping[str, Prepared], intents: Mapping[str, str]) -> None:
        """Send the versions that were claimed as they were recorded; the others wait in the queue."""
        begun = list[Item]()
        for version, _, previous in done:
            file_id = version.file_id
            if version.state is State.QUEUED:
                self._found_waiting([version.watch], tiny=version.size <= self._uploader.tiny)
            elif version.state is State.UPLOADING and not self._draining:
                begun.append(Item(version, previous, prepared=contents[file_id], intent=intents[file_id]))
        self._send(begun)

    # --- its end ------------------------------------------------------------------------------------
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
        while self.at_work or self._reserved:
            self._left.clear()
            await self._left.wait()
