"""What passes between the stages: items, each one version at work, and the queue of a stage.

A stage is one loop. It takes all that waits for it as one list, does its work for the whole list, and puts the list
into the queue of the next stage. So batches form by themselves under load, and a lone version never waits for others.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from presignd.ledger import Ledger
from presignd.ledger.changes import Change
from presignd.model import FileVersion, Fingerprint, Link
from presignd.pipeline.files.hash import Prepared
from presignd.system.threads import run

T = TypeVar("T")
R = TypeVar("R")

MOST = 256
"""Most items in one list, and most versions of one configuration that are claimed and not yet linked: after a crash as
many may be uploaded again (docs/guarantees.md, 3)."""


class Receipt(NamedTuple):
    """The result of an upload, for the ledger.

    ``fingerprint`` is the file's once its content was read; ``compared``: it was still the same after the upload.
    """

    fingerprint: Fingerprint
    checksum: str
    part_size: int
    etag: str
    version_id: str
    adopted: bool
    compared: bool = False


class Ahead(NamedTuple):
    """Which new files are read by the look that finds them complete: up to ``size`` bytes, hashed by ``algorithms``."""

    size: int
    algorithms: Collection[str]


TURN = 64
"""Most files that a watch looks at, and records, as one list."""


@dataclass(slots=True, eq=False)
class Item:
    """A version at work, from its claim until it is finished, waits for another try, or is back in the ledger's queue.

    ``previous``: the newest verified version before it under its key. ``retried``: an earlier attempt committed the
    checksum of its object, and may have sent it. ``prepared``: its content, if that was read already, and ``intent``:
    then the checksum of its object. ``gives_way``: other suspects wait until it is sent, so a large file stops after
    one part. ``problem``: why it can go no further. The stages fill in ``receipt`` and ``link``. ``expires`` is its
    link's lifetime in seconds, None for a stable link without an end. ``finishes``: the link's commit finishes it, as
    its file stays as it is. ``after_link`` takes the items that were linked, or could not be. For ``status``: bytes
    ``sent``, of them ``resumed_from`` by an earlier attempt; when it ``began`` to send (0: not yet) and when the last
    bytes went (monotonic, seconds).
    """

    version: FileVersion
    previous: FileVersion | None = None
    retried: bool = False
    prepared: Prepared | None = None
    intent: str = ""
    gives_way: bool = False
    problem: Exception | None = None
    receipt: Receipt | None = None
    link: Link | None = None
    expires: int | None = None
    finishes: bool = False
    after_link: Callable[[Sequence[Item]], None] | None = None
    sent: int = 0
    resumed_from: int = 0
    began: float = 0.0
    last_progress: float = field(default_factory=time.monotonic)

    def update(self, total: int) -> None:
        """Record the bytes that the store has or is being sent; a resumed upload continues at the first number."""
        self.last_progress = time.monotonic()
        if not self.sent:
            self.resumed_from, self.began = total, self.last_progress
        self.sent = total

    def rate(self, now: float) -> float:
        """Return the bytes per second since this run began to send."""
        return (self.sent - self.resumed_from) / max(now - self.began, 0.001)


PAUSE_EACH, PAUSE_MOST = 0.002, 0.012
"""Pause from one list of a stage to its next, in seconds: so much for each item of the first list, and so much at most.
Each list costs a commit or an fsync, however short it is. Without the pause, a store that answers slower than a stage
works made lists of two."""


class Queue(Generic[T]):
    """The queue of a stage, whose one loop takes it as lists.

    The first item after a pause is taken at once. The longer a list was, the longer the next one gathers, so a lone
    item delays hardly anything. ``now`` returns seconds (monotonic).
    """

    def __init__(
        self, *, now: Callable[[], float] = time.monotonic, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self._now, self._sleep = now, sleep
        self._waiting: list[T] = []
        self._more = asyncio.Event()
        self._due = float("-inf")

    def put_all(self, items: Iterable[T]) -> None:
        """Add items at the end."""
        self._waiting.extend(items)
        self._more.set()

    async def take(self) -> list[T]:
        """Wait for items, and return all that wait, at most ``MOST``, as one list."""
        while not self._waiting:
            self._more.clear()
            await self._more.wait()
        if (left := self._due - self._now()) > 0:
            await self._sleep(left)
        taken, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
        self._due = self._now() + min(PAUSE_MOST, PAUSE_EACH * len(taken))
        return taken


class UrgentFirst:
    """The items to be sent: by the ledger's priority, then by age. New events go before a backlog claimed earlier."""

    def __init__(self) -> None:
        self._waiting: list[tuple[int, int, Item]] = []
        self._count = itertools.count()
        self._free: deque[asyncio.Future[Item]] = deque()

    def put_all(self, items: Iterable[Item]) -> None:
        """Add items; those that wait for one get the most urgent."""
        for item in items:
            heapq.heappush(self._waiting, (item.version.priority, next(self._count), item))
        while self._waiting and self._free:
            free = self._free.popleft()
            if not free.done():  # else cancelled
                free.set_result(heapq.heappop(self._waiting)[-1])

    async def get(self) -> Item:
        """Return the most urgent item, or wait for one."""
        if self._waiting:
            return heapq.heappop(self._waiting)[-1]
        free: asyncio.Future[Item] = asyncio.get_running_loop().create_future()
        self._free.append(free)
        return await free


async def outcomes(step: Callable[[T], R], items: Sequence[T], *, inline: bool) -> list[R | Exception]:
    """Return what ``step`` returns or raises for each item: one failure must not hold up the others.

    All run in one thread, unless ``inline``.
    """

    def all_of_them() -> list[R | Exception]:
        found = list[R | Exception]()
        for item in items:
            try:
                found.append(step(item))
            except Exception as error:  # noqa: BLE001 - the stage decides what each error means
                found.append(error)
        return found

    return await run(all_of_them, inline=inline)


async def apply_each(ledger: Ledger, changes: Sequence[Change]) -> list[FileVersion | Exception]:
    """Commit changes together or, if that fails, each alone. Return each version as recorded, or the error.

    So a wrong change stops its own version only (guarantee 8).
    """
    try:
        return [*await ledger.apply_all(changes)]
    except Exception as error:  # noqa: BLE001 - the stage decides what each error means
        if len(changes) == 1:
            return [error]
    return [recorded for change in changes for recorded in await apply_each(ledger, [change])]
