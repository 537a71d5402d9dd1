"""One watch's settling: a queue of candidates, each looked at until it is whole, then shown to the ledger.

A lane takes what is due (events before scans), looks at it in one turn of a thread, decides (``decide``),
and asks the ledger about what settled.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import threading
import time
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple, Protocol

from presignd.ledger import LostUpdate
from presignd.model import Source
from presignd.pipeline.settle.decide import Rules, Seen, Settled, Verdict, Wait, against, decide, step
from presignd.pipeline.settle.unreadable import Hindered
from presignd.runtime.heartbeat import alive, beat, resting
from presignd.runtime.tasks import within
from presignd.system.threads import behind, run

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from presignd.config import WatchConfig
    from presignd.errors import FileFault
    from presignd.ledger import Enqueued, Ledger
    from presignd.model import FileVersion, Fingerprint, NewVersion
    from presignd.pipeline.settle.decide import Sight

TURN = 500
"""Files in one turn: one hop to a thread, one ledger query, one commit."""

ROOM = 5_000
"""Scanned files that may wait for their first look or to be compared: a scan goes no faster than settling."""

COMPARING = 500
"""Files at most that have a task to compare their content (``chmod -R`` over a folder); the others wait for
their turn, which costs less memory than a task."""

_AGAIN = 0.1
"""Seconds between two looks at the same file, however many events tell of it."""

_HOLD_LONGEST = 2.0
"""Seconds at most between looks while another version of the path is in flight."""

_IDLE = 1.0
"""Seconds at most that a lane sleeps: its heartbeat."""

_NEVER, _EVER = float("-inf"), float("inf")

_RANK = {Source.EVENT: 0, Source.PUT: 0, Source.SCAN: 1, Source.BACKLOG: 2}


class MakeVersion(Protocol):
    """Makes the version of a settled file: file_id, key, content type, limits. A fault quarantines it."""

    def __call__(
        self, watch: str, path: bytes, fingerprint: Fingerprint, source: Source, *, fault: FileFault | None = None
    ) -> NewVersion:
        """Return the version to record: a quarantined one where the file can't go through."""
        ...


class Look(Protocol):
    """``look.Looker``, or a test's."""

    @property
    def inline_limit(self) -> int:
        """How many paths it looks at before a thread would have begun."""
        ...

    def __call__(self, paths: Sequence[bytes]) -> list[Sight]:
        """Look at each path once."""
        ...

    def same_content(
        self, path: bytes, fingerprint: Fingerprint, known: FileVersion, stop: threading.Event
    ) -> bool | None:
        """Tell whether the content is what ``known.checksum`` says; None: look again."""
        ...


@dataclass(frozen=True, slots=True)
class Settling:
    """One path that is not settled yet: since when (UTC) it is looked at, and why it waits, in words."""

    watch: str
    path: bytes
    since: datetime
    why: str


@dataclass(frozen=True, slots=True)
class Tools:
    """What every lane works with. Clocks are seconds (monotonic) and nanoseconds since the epoch."""

    ledger: Ledger
    make_version: MakeVersion
    on_enqueued: Callable[[list[Enqueued]], Awaitable[None]]
    monotonic: Callable[[], float] = time.monotonic
    time_ns: Callable[[], int] = time.time_ns

    def utc(self) -> datetime:
        """Return the time in UTC."""
        return datetime.fromtimestamp(self.time_ns() / 1e9, UTC)


@dataclass(slots=True)
class _Entry:
    path: bytes
    source: Source
    since: datetime
    due: float
    looked_at: float = _NEVER
    seen: Seen | None = None
    why: str = "not looked at yet"
    held: int = 0
    busy: bool = False
    again: bool = False
    compares: bool = False


class _Due(NamedTuple):
    """A place in the queue; it is void where the entry has another one by now."""

    at: float
    order: int
    path: bytes


class Lane:
    """The settling of one watch."""

    def __init__(self, watch: WatchConfig, rules: Rules, look: Look, tools: Tools) -> None:
        self.watch = watch.name
        self._takes_away = watch.after != "keep"
        self._rules = rules
        self._look = look
        self._hindered = Hindered(watch)
        self._tools = tools
        self._entries: dict[bytes, _Entry] = {}
        self._queues: tuple[list[_Due], ...] = ([], [], [])
        self._order = itertools.count()
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._fresh = 0
        self._compares = 0
        self._comparing = 0
        self._parked: deque[_Entry] = deque()
        self._stop = threading.Event()
        self._one_hash = asyncio.Semaphore(1)

    def look_by(self, rules: Rules, look: Look) -> None:
        """Look at files another way from now on."""
        self._rules, self._look = rules, look

    @property
    def count(self) -> int:
        """How many paths are settling."""
        return len(self._entries)

    def settling(self, path: bytes) -> Settling | None:
        """Say how ``path`` settles; None when it doesn't."""
        entry = self._entries.get(path)
        return None if entry is None else Settling(self.watch, entry.path, entry.since, entry.why)

    def snapshot(self, limit: int) -> list[Settling]:
        """Return up to ``limit`` of what is settling, oldest first."""
        oldest = itertools.islice(self._entries.values(), limit)
        return [Settling(self.watch, entry.path, entry.since, entry.why) for entry in oldest]

    # --- in -------------------------------------------------------------------------------------
    def offer(self, path: bytes, source: Source, *, closed: bool = False) -> None:
        """Take a hint; many for one path are one, at the best of their priorities. One just ``closed`` is due now."""
        now = self._tools.monotonic()
        entry = self._entries.get(path)
        if entry is None:
            self._enter(_Entry(path, source, self._tools.utc(), now))
            return
        better = _RANK[source] < _RANK[entry.source]
        if better:
            entry.source = source
        entry.again = entry.busy
        soon = now if closed else max(now, entry.looked_at + _AGAIN)
        if not entry.busy and (better or soon < entry.due):
            self._queue(entry, min(entry.due, soon))

    async def room(self) -> None:
        """Return once there is room for more of a scan."""
        with resting():  # its own heart says whether it goes on
            await self._room.wait()

    def _enter(self, entry: _Entry) -> None:
        self._entries[entry.path] = entry
        self._fresh += 1
        self._mind_room()
        self._queue(entry, entry.due)

    def _mind_room(self) -> None:
        if self._fresh + self._compares >= ROOM:
            self._room.clear()
        else:
            self._room.set()

    def _queue(self, entry: _Entry, due: float) -> None:
        entry.due, entry.busy = due, False
        heapq.heappush(self._queues[_RANK[entry.source]], _Due(due, next(self._order), entry.path))
        self._wake.set()

    # --- turns ----------------------------------------------------------------------------------
    async def run(self) -> None:
        """Settle until cancelled."""
        try:
            with alive(f"settling of {self.watch}") as heart:
                async with asyncio.TaskGroup() as tasks:
                    while True:
                        heart.beat()
                        if not await self.turn(tasks):
                            await self._sleep()
        finally:
            self._stop.set()  # a hash under way in a thread ends here, not with its file

    async def turn(self, tasks: asyncio.TaskGroup) -> bool:
        """Look at what is due and act on it; False when nothing was. Hashing goes on in ``tasks``."""
        entries = self._due()
        if not entries:
            return False
        paths = [entry.path for entry in entries]
        sights = await run(lambda: self._look(paths), inline=len(paths) <= self._look.inline_limit)
        settled = []
        for entry, sight in zip(entries, sights, strict=True):
            self._looked(entry, sight)
            self._hindered.note(entry.path, sight.fault)
            if isinstance(outcome := decide(entry.seen, sight, self._rules), Settled):
                settled.append((entry, outcome))
            else:
                self._put_back(entry, outcome)
        await self._record(settled, tasks)
        return True

    def _due(self) -> list[_Entry]:
        now, due = self._tools.monotonic(), list[_Entry]()
        for queue in self._queues:
            while queue and queue[0].at <= now and len(due) < TURN:
                entry = self._valid(heapq.heappop(queue))
                if entry is not None:
                    entry.busy, entry.again = True, False
                    due.append(entry)
        return due

    def _valid(self, place: _Due) -> _Entry | None:
        entry = self._entries.get(place.path)
        return entry if entry is not None and not entry.busy and entry.due == place.at else None

    def _looked(self, entry: _Entry, sight: Sight) -> None:
        self._fresh -= entry.looked_at == _NEVER
        self._compares -= entry.compares
        entry.looked_at, entry.compares = sight.seen_at, False
        self._mind_room()

    def _put_back(self, entry: _Entry, outcome: Wait | None) -> None:
        if outcome is None:
            self._drop(entry)
            return
        entry.seen, entry.why = outcome.seen, outcome.why
        self._queue(entry, entry.looked_at + (min(outcome.after, _AGAIN) if entry.again else outcome.after))

    def _drop(self, entry: _Entry) -> None:
        """Be through with a path, unless an event told of it during this very turn."""
        if entry.again:
            entry.seen, entry.held = None, 0
            self._queue(entry, self._tools.monotonic() + _AGAIN)
        else:
            del self._entries[entry.path]

    def _hold(self, entry: _Entry, settled: Settled) -> None:
        pause = min(_HOLD_LONGEST, 0.2 * 1.5 ** min(entry.held, 32))
        entry.seen, entry.held, entry.why = settled.seen, entry.held + 1, "the version before it is in flight"
        self._queue(entry, self._tools.monotonic() + pause)

    async def _sleep(self) -> None:
        self._wake.clear()
        earliest = min((queue[0].at for queue in self._queues if queue), default=float("inf"))
        pause = max(0.0, min(_IDLE, earliest - self._tools.monotonic()))
        beat(within=pause)
        await within(pause, self._wake)

    # --- the ledger -----------------------------------------------------------------------------
    async def _record(self, settled: Sequence[tuple[_Entry, Settled]], tasks: asyncio.TaskGroup) -> None:
        if not settled:
            return
        known = await self._tools.ledger.known(self.watch, [entry.path for entry, _ in settled])
        new = []
        for entry, outcome in settled:
            version = known.get(entry.path)
            verdict = against(version, outcome, takes_away=self._takes_away)
            if verdict is Verdict.NEW:
                new.append((entry, outcome))
            elif verdict is Verdict.SAME:
                self._drop(entry)
            elif verdict is Verdict.HOLD:
                self._hold(entry, outcome)
            else:
                assert version is not None, "what is unknown is new"
                self._same_data(entry, outcome, version, tasks, compare=verdict is Verdict.COMPARE)
        await self._enqueue(new)

    def _same_data(
        self, entry: _Entry, settled: Settled, known: FileVersion, tasks: asyncio.TaskGroup, *, compare: bool
    ) -> None:
        if not compare:  # as a task: many share one commit
            tasks.create_task(self._refingerprint(entry, settled, known), name=f"refingerprint:{known.file_id}")
            return
        entry.seen, entry.why = settled.seen, "its content is compared with the version before it"
        entry.compares = True
        self._compares += 1
        self._mind_room()
        if self._comparing < COMPARING:
            self._comparing += 1
            tasks.create_task(self._compare(entry, settled, known), name=f"compare:{known.file_id}")
        else:
            entry.due, entry.busy = _EVER, False
            self._parked.append(entry)

    async def _compare(self, entry: _Entry, settled: Settled, known: FileVersion) -> None:
        async with self._one_hash:
            same = await behind(self._look.same_content, entry.path, settled.seen.fingerprint, known, self._stop)
        self._compared(entry)
        if same:
            await self._refingerprint(entry, settled, known)
        elif same is False:
            await self._enqueue([(entry, settled)])
        else:
            self._queue(entry, self._tools.monotonic() + step(0))

    def _compared(self, entry: _Entry) -> None:
        """Be through with a comparison: the next one that waited for it is looked at once more, and compared."""
        self._comparing -= 1
        self._compares -= 1
        entry.compares = False
        self._mind_room()
        while self._parked:
            parked = self._parked.popleft()
            if parked.due == _EVER and self._entries.get(parked.path) is parked:
                self._queue(parked, self._tools.monotonic())
                return

    async def _refingerprint(self, entry: _Entry, settled: Settled, known: FileVersion) -> None:
        try:
            await self._tools.ledger.refingerprint(known.file_id, settled.seen.fingerprint)
        except LostUpdate:
            self._hold(entry, settled)  # it moved on since it was asked for
        else:
            self._drop(entry)

    async def _enqueue(self, new: Sequence[tuple[_Entry, Settled]]) -> None:
        """Record new versions; where one's path got in flight meanwhile, each goes alone and that one waits."""
        if not new:
            return
        make = self._tools.make_version
        versions = [
            make(self.watch, entry.path, settled.seen.fingerprint, entry.source, fault=settled.fault)
            for entry, settled in new
        ]
        try:
            await asyncio.shield(self._record_all(versions))
        except LostUpdate:
            await self._one_by_one(new)
            return
        for entry, _ in new:
            self._drop(entry)

    async def _record_all(self, versions: list[NewVersion]) -> None:
        """Record and tell: whoever is cancelled in between, what is in the ledger is told."""
        await self._tools.on_enqueued(await self._tools.ledger.enqueue(versions))

    async def _one_by_one(self, new: Sequence[tuple[_Entry, Settled]]) -> None:
        if len(new) == 1:
            self._hold(*new[0])
            return
        for one in new:
            await self._enqueue([one])
