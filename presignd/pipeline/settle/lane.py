"""Settle the files of one watch: look at each candidate until it is complete, then compare it with the ledger.

A turn takes all that is due as one list (events before scans): one look at each file, one decision each, one
query to the ledger, one commit of what is new.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import threading
import time
from collections import defaultdict, deque
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from presignd.errors import FileFault
from presignd.ledger import LostUpdate
from presignd.model import Source
from presignd.pipeline.announce import shown_path
from presignd.pipeline.files.folder import root_of
from presignd.pipeline.files.hash import read_at
from presignd.pipeline.intake import LOOK_PRIORITIES
from presignd.pipeline.settle.decide import (
    Complete,
    History,
    Rules,
    Verdict,
    Wait,
    compare_with_ledger,
    decide,
    pause_after,
)
from presignd.pipeline.stage import TURN
from presignd.runtime.heartbeat import alive, beat, resting
from presignd.runtime.tasks import within
from presignd.states import is_recorded
from presignd.system.filesystem import read_cached
from presignd.system.threads import in_background, run
from presignd.telemetry.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

    from presignd.config import WatchConfig
    from presignd.errors import Fault
    from presignd.ledger import Ledger
    from presignd.model import FileVersion, Fingerprint, NewVersion
    from presignd.pipeline.files.hash import Prepared
    from presignd.pipeline.intake import Intake
    from presignd.pipeline.settle.decide import Look
    from presignd.pipeline.settle.looker import Looker, Wanted

ROOM = 5_000
"""Scans pause while so many files wait for their first look or to be compared: settling sets their pace."""

COMPARING = 500
"""Most tasks that compare contents at a time (after ``chmod -R`` over a folder). The other files wait without a task,
which takes less memory."""

_LOOK_GAP = 0.1
"""Seconds between two looks at the same file, however many events name it."""

_LONGEST_WAIT = 2.0
"""Most seconds between looks while another version of the path is in flight."""

_HEARTBEAT_SECONDS = 1.0
"""Most seconds that a lane sleeps between two heartbeats."""

Record: TypeAlias = "Callable[[Sequence[NewVersion], Mapping[str, Prepared]], Awaitable[None]]"
Algorithms: TypeAlias = "Callable[[str, int], Collection[str]]"

_NOT_LOOKED_AT = float("-inf")
_NEVER_DUE = float("inf")


@dataclass(frozen=True, slots=True)
class SettlingPath:
    """One path that is not complete yet: when (UTC) it was first seen, and why it waits, in words."""

    watch: str
    path: bytes
    since: datetime
    why: str


def read_later(_: str, __: int) -> Collection[str]:
    """Leave a file to be read when it is sent."""
    return ()


async def nothing_to_do(_: FileVersion) -> bool:
    """Do nothing with a version whose file is back."""
    return True


@dataclass(frozen=True, slots=True)
class Services:
    """What all lanes share. The clocks return seconds (monotonic) and nanoseconds since the epoch.

    ``record`` records new versions, all or none, with the contents that were read, by file_id; it goes on if its caller
    is cancelled. ``algorithms`` returns those by which to hash a complete file of a watch and a size, none if it is
    read later; it is called in threads. ``on_return`` is called with a version whose file is back after it was gone,
    before that is recorded; it returns False if the file is gone again.
    """

    ledger: Ledger
    record: Record
    monotonic: Callable[[], float] = time.monotonic
    time_ns: Callable[[], int] = time.time_ns
    on_return: Callable[[FileVersion], Awaitable[bool]] = nothing_to_do
    algorithms: Algorithms = read_later

    def utc(self) -> datetime:
        """Return the time in UTC."""
        return datetime.fromtimestamp(self.time_ns() / 1e9, UTC)


@dataclass(frozen=True, slots=True)
class Limits:
    """How many files may wait before scans pause (``room``), and how many may be compared in tasks (``comparing``)."""

    room: int = ROOM
    comparing: int = COMPARING


@dataclass(slots=True)
class _Entry:
    """A path that settles. ``busy``: in a turn, or being compared. ``again``: an event named it since then.

    ``looks_in_vain`` counts the looks while another version is in flight; ``compares``: its content is to be compared.
    """

    path: bytes
    source: Source
    since: datetime
    due: float
    looked_at: float = _NOT_LOOKED_AT
    history: History | None = None
    why: str = "not looked at yet"
    looks_in_vain: int = 0
    busy: bool = False
    again: bool = False
    compares: bool = False


_Found: TypeAlias = "Sequence[tuple[_Entry, Complete]]"


class _Due(NamedTuple):
    """A place in the queue; it is void once its entry has another place."""

    at: float
    order: int
    path: bytes


class Lane:
    """Settles the files of one watch."""

    def __init__(
        self,
        watch: WatchConfig,
        rules: Rules,
        looker: Looker,
        intake: Intake,
        services: Services,
        *,
        limits: Limits | None = None,
    ) -> None:
        self.watch = watch.name
        self.intake = intake
        self._takes_away = watch.after != "keep"
        self._rules, self._looker = rules, looker
        self._services, self._limits = services, limits or Limits()
        self._unreadable = _UnreadableLog(watch)
        self._entries: dict[bytes, _Entry] = {}
        self._queues: tuple[list[_Due], ...] = ([], [], [])
        self._order = itertools.count()
        self._wake = asyncio.Event()
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._not_looked_at = 0
        self._to_compare = 0
        self._comparing = 0
        self._without_task: deque[_Entry] = deque()
        self._stop = threading.Event()
        self._one_hash = asyncio.Semaphore(1)

    def use(self, rules: Rules, looker: Looker) -> None:
        """Use these rules and this looker from now on: the folder may be on another filesystem now."""
        self._rules, self._looker = rules, looker

    @property
    def count(self) -> int:
        """How many paths are settling."""
        return len(self._entries)

    def settling(self, path: bytes) -> SettlingPath | None:
        """Return how ``path`` settles; None if it doesn't."""
        entry = self._entries.get(path)
        return None if entry is None else self._shown(entry)

    def snapshot(self, limit: int) -> list[SettlingPath]:
        """Return up to ``limit`` of what is settling, oldest first."""
        return [self._shown(entry) for entry in itertools.islice(self._entries.values(), limit)]

    def _shown(self, entry: _Entry) -> SettlingPath:
        return SettlingPath(self.watch, entry.path, entry.since, entry.why)

    # --- the queue ------------------------------------------------------------------------------
    def submit(self, path: bytes, source: Source, *, closed: bool = False) -> None:
        """Queue a path for a look; a path that is queued already takes the better priority.

        ``closed``: a writer just closed it, so it is due now.
        """
        now = self._services.monotonic()
        entry = self._entries.get(path)
        if entry is None:
            self._add(_Entry(path, source, self._services.utc(), now))
            return
        better = LOOK_PRIORITIES[source] < LOOK_PRIORITIES[entry.source]
        if better:
            entry.source = source
        entry.again = entry.busy
        due = now if closed else max(now, entry.looked_at + _LOOK_GAP)
        if not entry.busy and (better or due < entry.due):
            self._queue(entry, min(entry.due, due))

    async def wait_for_room(self) -> None:
        """Return once there is room for more of a scan."""
        with resting():  # the lane's own heartbeat shows whether it makes progress
            await self._has_room.wait()

    def _add(self, entry: _Entry) -> None:
        self._entries[entry.path] = entry
        self._not_looked_at += 1
        self._limit_backlog()
        self._queue(entry, entry.due)

    def _limit_backlog(self) -> None:
        if self._not_looked_at + self._to_compare >= self._limits.room:
            self._has_room.clear()
        else:
            self._has_room.set()

    def _queue(self, entry: _Entry, due: float) -> None:
        entry.due, entry.busy = due, False
        heapq.heappush(self._queues[LOOK_PRIORITIES[entry.source]], _Due(due, next(self._order), entry.path))
        self._wake.set()

    def _take_due(self) -> list[_Entry]:
        """Return the entries that are due, marked as busy, by priority: at most ``TURN``."""
        now, due = self._services.monotonic(), list[_Entry]()
        for queue in self._queues:
            while queue and queue[0].at <= now and len(due) < TURN:
                if (entry := self._entry_at(heapq.heappop(queue))) is not None:
                    entry.busy, entry.again = True, False
                    due.append(entry)
        return due

    def _entry_at(self, place: _Due) -> _Entry | None:
        """Return the entry of a place in the queue; None if the place is void."""
        entry = self._entries.get(place.path)
        return entry if entry is not None and not entry.busy and entry.due == place.at else None

    def _forget(self, entry: _Entry) -> None:
        """Forget a path; queue it again if an event named it during this turn."""
        if entry.again:
            entry.history, entry.looks_in_vain = None, 0
            self._queue(entry, self._services.monotonic() + _LOOK_GAP)
        else:
            del self._entries[entry.path]

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
            self._stop.set()  # ends a hash that a thread is computing

    async def turn(self, tasks: asyncio.TaskGroup) -> bool:
        """Look at what is due and act on it; return False if nothing was due. Comparisons go on in ``tasks``."""
        due = self._take_due()
        if not due:
            return False
        paths = [entry.path for entry in due]
        inline = len(paths) <= self._looker.inline_limit
        read, wanted = read_cached if inline else read_at, self._wanted(due)
        looks = await run(lambda: self._looker.look(paths, wanted, read), inline=inline)
        complete, unready = self._decide(due, looks)
        if complete:
            await self._record_complete(complete, tasks)
        if unready:
            await self._wait_unless_recorded(unready)
        return True

    def _wanted(self, due: Sequence[_Entry]) -> Wanted:
        """Return a function for looks: the algorithms by which to hash a file, none unless it is complete and tiny."""
        histories, rules = {entry.path: entry.history for entry in due}, self._rules

        def wanted(path: bytes, look: Look) -> Collection[str]:
            algorithms = self._services.algorithms(self.watch, look.fingerprint.size) if look.fingerprint else ()
            return algorithms if algorithms and isinstance(decide(histories[path], look, rules), Complete) else ()

        return wanted

    def _decide(
        self, due: Sequence[_Entry], looks: Sequence[Look]
    ) -> tuple[list[tuple[_Entry, Complete]], list[tuple[_Entry, Wait]]]:
        """Return the entries that are complete, and those that were found to wait for a marker or a download.

        Queue the others for their next look, or forget them.
        """
        complete, unready = [], []
        for entry, look in zip(due, looks, strict=True):
            self._note_look(entry, look)
            outcome = decide(entry.history, look, self._rules)
            if isinstance(outcome, Complete):
                complete.append((entry, outcome))
            elif isinstance(outcome, Wait) and entry.history is None and (look.missing or look.download):
                unready.append((entry, outcome))
            elif isinstance(outcome, Wait):
                self._wait(entry, outcome)
            else:
                self._forget(entry)
        self._limit_backlog()
        return complete, unready

    def _wait(self, entry: _Entry, outcome: Wait) -> None:
        entry.history, entry.why = outcome.history, outcome.why
        pause = min(outcome.after, _LOOK_GAP) if entry.again else outcome.after
        self._queue(entry, entry.looked_at + pause)

    async def _wait_unless_recorded(self, unready: Sequence[tuple[_Entry, Wait]]) -> None:
        """Forget what the ledger has as it is: its marker may be gone for good. The others wait."""
        known = await self._services.ledger.known(self.watch, [entry.path for entry, _ in unready])
        for entry, outcome in unready:
            if outcome.history and is_recorded(known.get(entry.path), outcome.history.fingerprint):
                self._forget(entry)
            else:
                self._wait(entry, outcome)

    def _note_look(self, entry: _Entry, look: Look) -> None:
        self._unreadable.note(entry.path, look.fault)
        self._not_looked_at -= entry.looked_at == _NOT_LOOKED_AT
        self._to_compare -= entry.compares
        entry.looked_at, entry.compares = look.seen_at, False

    async def _record_complete(self, complete: Sequence[tuple[_Entry, Complete]], tasks: asyncio.TaskGroup) -> None:
        """Compare complete files with the ledger, and record those that are new versions."""
        known = await self._services.ledger.known(self.watch, [entry.path for entry, _ in complete])
        new, touched = [], []
        for entry, outcome in complete:
            version = known.get(entry.path)
            verdict = compare_with_ledger(version, outcome, takes_away=self._takes_away)
            if verdict is Verdict.NEW:
                new.append((entry, outcome))
            elif verdict is Verdict.SAME:
                self._forget(entry)
            elif verdict is Verdict.WAIT_FOR_EARLIER:
                self._wait_for_earlier(entry, outcome)
            else:
                assert version is not None, "what is unknown is new"
                if verdict is Verdict.COMPARE or version.gone_at is not None:
                    self._compare(entry, outcome, version, tasks)
                else:
                    touched.append((entry, outcome))
        await self._refingerprint(touched, known)
        await self._enqueue(new)

    def _wait_for_earlier(self, entry: _Entry, complete: Complete) -> None:
        """Look again later: another version of the path is in flight."""
        pause = min(_LONGEST_WAIT, 0.2 * 1.5 ** min(entry.looks_in_vain, 32))
        entry.history, entry.why = complete.history, "the version before it is in flight"
        entry.looks_in_vain += 1
        self._queue(entry, self._services.monotonic() + pause)

    async def _sleep(self) -> None:
        self._wake.clear()
        earliest = min((queue[0].at for queue in self._queues if queue), default=float("inf"))
        pause = max(0.0, min(_HEARTBEAT_SECONDS, earliest - self._services.monotonic()))
        beat(within=pause)
        await within(pause, self._wake)

    # --- comparing contents ---------------------------------------------------------------------
    def _compare(self, entry: _Entry, complete: Complete, known: FileVersion, tasks: asyncio.TaskGroup) -> None:
        """Compare a file with a version in a task; if there are too many tasks, wait for one to end."""
        entry.history, entry.why = complete.history, "it is compared with the version before it"
        entry.compares = True
        self._to_compare += 1
        self._limit_backlog()
        if self._comparing < self._limits.comparing:
            self._comparing += 1
            complete = complete._replace(content=None)  # many may wait
            tasks.create_task(self._compare_in_task(entry, complete, known), name=f"compare:{known.file_id}")
        else:
            entry.due, entry.busy = _NEVER_DUE, False
            self._without_task.append(entry)

    async def _compare_in_task(self, entry: _Entry, complete: Complete, known: FileVersion) -> None:
        found = complete.history.fingerprint
        same = known.fingerprint == found or await self._has_same_content(entry.path, found, known)
        if same and known.gone_at is not None and not await self._services.on_return(known._replace(fingerprint=found)):
            same = None
        self._end_comparison(entry)
        if same:
            await self._refingerprint([(entry, complete)], {entry.path: known})
        elif same is False:
            await self._enqueue([(entry, complete)])
        else:
            self._queue(entry, self._services.monotonic() + pause_after(0))

    async def _has_same_content(self, path: bytes, found: Fingerprint, known: FileVersion) -> bool | None:
        async with self._one_hash:
            return await in_background(self._looker.same_content, path, found, known, self._stop)

    def _end_comparison(self, entry: _Entry) -> None:
        """Give this task's place to the next waiting file: it is looked at once more, then compared."""
        self._comparing -= 1
        self._to_compare -= 1
        entry.compares = False
        self._limit_backlog()
        while self._without_task:
            following = self._without_task.popleft()
            if following.due == _NEVER_DUE and self._entries.get(following.path) is following:
                self._queue(following, self._services.monotonic())
                return

    # --- the ledger -----------------------------------------------------------------------------
    async def _refingerprint(self, touched: _Found, known: Mapping[bytes, FileVersion]) -> None:
        """Record the fingerprints of files whose content is that of their ``known`` versions."""

        async def write(some: _Found) -> None:
            prints = [(known[entry.path].file_id, complete.history.fingerprint) for entry, complete in some]
            await self._services.ledger.refingerprint(prints)

        await self._record(touched, write)

    async def _enqueue(self, new: _Found) -> None:
        """Record new versions."""

        async def write(some: _Found) -> None:
            make = self.intake.make_version
            versions = [
                make(self.watch, entry.path, complete.history.fingerprint, entry.source, fault=complete.fault)
                for entry, complete in some
            ]
            read = {
                version.file_id: complete.content
                for version, (_, complete) in zip(versions, some, strict=True)
                if complete.content
            }
            await self._services.record(versions, read)

        await self._record(new, write)

    async def _record(self, found: _Found, write: Callable[[_Found], Awaitable[None]]) -> None:
        """Write all in one commit and forget them; if one can't be written any more, each alone: that one waits."""
        if not found:
            return
        try:
            await write(found)
        except LostUpdate:
            if len(found) == 1:
                self._wait_for_earlier(*found[0])
            else:
                for each in found:
                    await self._record([each], write)
        else:
            for entry, _ in found:
                self._forget(entry)


class _UnreadableLog:
    """Logs unreadable files, once per reason: too many files are open, or the disk fails."""

    def __init__(self, watch: WatchConfig) -> None:
        self._log = get_logger().bind(watch=watch.name)
        self._root = root_of(watch)
        self._waiting = defaultdict[str, set[bytes]](set)

    def note(self, path: bytes, fault: Fault | None) -> None:
        """Note the outcome of a look; log ``settle.retry`` for the first path that waits for a fault to pass."""
        passing = None if isinstance(fault, FileFault) else fault
        for code, paths in self._waiting.items():
            if passing is None or code != passing.code:
                paths.discard(path)
        if passing is None:
            return
        waiting = self._waiting[passing.code]
        if not waiting:
            path_shown = shown_path(self._root, path)
            self._log.warning(
                "settle.retry", path=path_shown, error_code=passing.code, error=passing.message, fix=passing.fix
            )
        waiting.add(path)
