"""settle: hold each candidate of a watch until it is complete, then compare it with the ledger.

Each watch has a lane of its own, so a folder that hangs holds up only itself. A turn takes all that is due as one list
(events before scans): one look and one decision for each file, one query to the ledger, one commit of what is new.
Nothing here is durable: a crash loses only hints, and the scan of the next start finds the files again.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeAlias

from presignd.errors import FileFault
from presignd.ledger import LostUpdate
from presignd.model import Fingerprint, Listed, Source
from presignd.pipeline.announce import shown_path
from presignd.pipeline.files.folder import root_of
from presignd.pipeline.files.hash import read_at
from presignd.pipeline.intake import ignored, make_version
from presignd.pipeline.settle.decide import Verdict, Wait, compare_with_ledger, pause_after
from presignd.pipeline.stage import TURN
from presignd.runtime.heartbeat import beat, resting
from presignd.runtime.tasks import within
from presignd.states import is_recorded
from presignd.system.clock import utcnow
from presignd.system.filesystem import read_cached
from presignd.system.threads import in_background, run
from presignd.telemetry.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from presignd.config import WatchConfig
    from presignd.errors import Fault
    from presignd.ledger import Ledger
    from presignd.model import FileVersion, NewVersion
    from presignd.pipeline.files.hash import Prepared
    from presignd.pipeline.settle.decide import Look
    from presignd.pipeline.settle.looker import Looker

ROOM = 5_000
"""Scans pause while so many files wait for their first look or to be compared: settling sets their pace."""

COMPARING = 500
"""Most tasks that compare contents at a time (after ``chmod -R`` over a folder). The other files wait without a task,
which takes less memory."""

SHOWN = 1_000
"""Most paths of a watch that are shown as settling."""

IGNORED_AT_ONCE = 500
"""Files that one commit records as ignored."""

_LOOK_GAP = 0.1
"""Seconds between two looks at the same file, however many events name it."""

_LONGEST_WAIT = 2.0
"""Most seconds between looks while another version of the path is in flight."""

_HEARTBEAT_SECONDS = 1.0
"""Most seconds that a lane sleeps between two heartbeats."""

_NEVER_DUE = float("inf")

_PRIORITIES = {Source.EVENT: 0, Source.SCAN: 1, Source.BACKLOG: 2}
"""The lower is looked at first. Here an event goes before a scan; once they are recorded they are equal."""

Record: TypeAlias = "Callable[[Sequence[NewVersion], Mapping[str, Prepared]], Awaitable[None]]"


@dataclass(frozen=True, slots=True)
class SettlingPath:
    """One path that is not complete yet: when (UTC) it was first seen, and why it waits, in words."""

    watch: str
    path: bytes
    since: datetime
    why: str


@dataclass(slots=True, eq=False)
class _Entry:
    """A path that settles, first seen at ``since_ns``. ``due``: None while it is in a turn, or being compared.

    ``again``: an event named it during that. ``look``: the last that found a file. ``file_id``: the version whose
    content that file has. ``looks_in_vain`` counts the looks while another version is in flight. ``in_backlog``: it
    waits for its first look, or its content is to be compared. ``retries``: the code of the passing fault that its last
    look found.
    """

    path: bytes
    source: Source
    since_ns: int
    due: float | None = None
    looked_at: float = 0.0
    look: Look | None = None
    file_id: str = ""
    why: str = "not looked at yet"
    looks_in_vain: int = 0
    again: bool = False
    in_backlog: bool = True
    retries: str = ""


_Found: TypeAlias = tuple[_Entry, "Look", "Fingerprint"]
"""A path, the look that found a file there, and the file's fingerprint."""


class Lane:
    """Settles the files of one watch. Until it has a looker, it drops every hint: the first scan finds the files.

    ``record`` records new versions, all or none, with the contents that were read, by file_id; it goes on if its caller
    is cancelled. ``on_return`` is called with a version whose file is back after it was gone, before that is recorded;
    it returns False if the file is gone again. ``monotonic`` returns seconds.
    """

    def __init__(
        self,
        watch: WatchConfig,
        ledger: Ledger,
        *,
        record: Record,
        on_return: Callable[[FileVersion], Awaitable[bool]],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.watch, self._config = watch.name, watch
        self._looker: Looker
        self._opened = False
        self._ledger, self._record_new, self._on_return, self._monotonic = ledger, record, on_return, monotonic
        self._entries: dict[bytes, _Entry] = {}
        self._queues: tuple[list[tuple[float, int, _Entry]], ...] = ([], [], [])
        self._order = itertools.count()
        self._wake = asyncio.Event()
        self._backlog, self._backlog_shrank = 0, asyncio.Event()
        self._comparing = 0
        self._without_task: deque[_Entry] = deque()
        self._retries = Counter[str]()
        self._stop = threading.Event()
        self._one_hash = asyncio.Semaphore(1)

    def use(self, looker: Looker) -> None:
        """Look with ``looker`` from now on: the folder was opened, and may be on another filesystem than before."""
        self._looker, self._opened = looker, True

    def snapshot(self) -> list[SettlingPath]:
        """Return up to ``SHOWN`` of what is settling, oldest first."""
        return [self._shown(entry) for entry in itertools.islice(self._entries.values(), SHOWN)]

    def settling(self, path: bytes) -> SettlingPath | None:
        """Return a path if it is settling, however many are."""
        entry = self._entries.get(path)
        return self._shown(entry) if entry else None

    def _shown(self, entry: _Entry) -> SettlingPath:
        return SettlingPath(self.watch, entry.path, datetime.fromtimestamp(entry.since_ns / 1e9, UTC), entry.why)

    # --- the queue ------------------------------------------------------------------------------
    def submit(self, paths: Collection[bytes], source: Source, *, closed: AbstractSet[bytes] = frozenset()) -> None:
        """Queue paths (below the watch's root) for a look; one that is queued already takes the better priority.

        They may hold something new: hints, never facts. Cheap, and many for one path cost one look. ``closed``: a
        writer just closed these, or they were moved in, so they are due now.
        """
        if not self._opened:
            return
        now, now_ns = self._monotonic(), time.time_ns()
        queue = self._queues[_PRIORITIES[source]]
        before = len(self._entries)
        for path in paths:
            if path in self._entries:
                self._submit_again(self._entries[path], source, now, closed=path in closed)
            else:
                entry = self._entries[path] = _Entry(path, source, now_ns, now)
                heapq.heappush(queue, (now, next(self._order), entry))
        self._backlog += len(self._entries) - before
        self._wake.set()

    def _submit_again(self, entry: _Entry, source: Source, now: float, *, closed: bool) -> None:
        better = _PRIORITIES[source] < _PRIORITIES[entry.source]
        if better:
            entry.source = source
        due = now if closed else max(now, entry.looked_at + _LOOK_GAP)
        if entry.due is None:
            entry.again = True
        elif better or due < entry.due:
            self._queue(entry, min(entry.due, due))

    async def submit_scanned(
        self, listed: Sequence[Listed], source: Source, *, ignore_before: datetime | None = None
    ) -> int:
        """Queue those files of a scan that the ledger does not have as they are; return how many.

        Files unknown to the ledger whose ctime is before ``ignore_before`` are recorded as ignored
        (``existing = "ignore"`` at the very first start).
        """
        fresh = await self._ledger.differing(self.watch, listed)
        if ignore_before is not None:
            fresh = await self._ignore_old(fresh, int(ignore_before.timestamp() * 1e9))
        self.submit([path for path, *_ in fresh], source)
        return len(fresh)

    async def _ignore_old(self, fresh: Sequence[Listed], before_ns: int) -> list[Listed]:
        """Record unknown files with a ctime before ``before_ns`` as ignored; return the others."""
        known = await self._ledger.known(self.watch, [path for path, *_ in fresh])
        old, young = list[Listed](), list[Listed]()
        for each in fresh:
            path, *_, ctime_ns = each
            (old if ctime_ns < before_ns and path not in known else young).append(each)
        for start in range(0, len(old), IGNORED_AT_ONCE):
            some = old[start : start + IGNORED_AT_ONCE]
            versions = [make_version(self._config, path, Fingerprint(*seen), Source.BACKLOG) for path, *seen in some]
            await self._ledger.enqueue([*map(ignored, versions)])
        return young

    async def wait_for_room(self) -> None:
        """Return once there is room for more of a scan."""
        with resting():  # the lane's own heartbeat shows whether it makes progress
            while self._backlog >= ROOM:
                self._backlog_shrank.clear()
                await self._backlog_shrank.wait()

    def _queue(self, entry: _Entry, due: float) -> None:
        entry.due = due
        heapq.heappush(self._queues[_PRIORITIES[entry.source]], (due, next(self._order), entry))
        self._wake.set()

    def _take_due(self) -> list[_Entry]:
        """Take the entries that are due out of the queue, by priority: at most ``TURN``."""
        now, taken = self._monotonic(), list[_Entry]()
        for queue in self._queues:
            while queue and queue[0][0] <= now and len(taken) < TURN:
                due, _, entry = heapq.heappop(queue)
                if entry.due == due:  # else it has another place in the queue
                    entry.due, entry.again = None, False
                    taken.append(entry)
        return taken

    def _wait(self, entry: _Entry, wait: Wait) -> None:
        entry.why = wait.why
        pause = min(wait.after, _LOOK_GAP) if entry.again else wait.after
        self._queue(entry, entry.looked_at + pause)

    def _wait_for_earlier(self, found: _Found) -> None:
        """Look again later: another version of the path is in flight."""
        entry, look, _ = found
        look.content = None
        pause = min(_LONGEST_WAIT, 0.2 * 1.5 ** min(entry.looks_in_vain, 32))
        entry.looks_in_vain += 1
        self._wait(entry, Wait(pause, "the version before it is in flight"))

    def _forget(self, entry: _Entry) -> None:
        """Forget a path; queue it again if an event named it during this turn."""
        if entry.retries:
            self._note_fault(entry, None)
        if entry.again:
            entry.look, entry.looks_in_vain = None, 0
            self._queue(entry, self._monotonic() + _LOOK_GAP)
        else:
            del self._entries[entry.path]

    # --- turns ----------------------------------------------------------------------------------
    async def run(self) -> None:
        """Settle until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    beat()
                    if not await self.turn(tasks):
                        await self._sleep()
        finally:
            self._stop.set()  # ends a hash that a thread is computing

    async def _sleep(self) -> None:
        self._wake.clear()
        earliest = min((queue[0][0] for queue in self._queues if queue), default=_NEVER_DUE)
        pause = max(0.0, min(_HEARTBEAT_SECONDS, earliest - self._monotonic()))
        beat(within=pause)
        await within(pause, self._wake)

    async def turn(self, tasks: asyncio.TaskGroup) -> bool:
        """Look at what is due and act on it; return False if nothing was due. Comparisons go on in ``tasks``."""
        due = self._take_due()
        if not due:
            # A file that got the place of a task may not have used it: it was gone.
            return self._give_places(COMPARING - self._comparing)
        looker, paths = self._looker, [(entry.path, entry.look) for entry in due]
        inline = len(paths) <= looker.inline_limit
        read = read_cached if inline else read_at
        looked = await run(lambda: looker.look(paths, read), inline=inline)
        asked = list[_Found]()
        for entry, look in zip(due, looked, strict=True):
            self._backlog -= entry.in_backlog
            entry.looked_at, entry.in_backlog = look.seen_at, False
            if look.fault or entry.retries:
                self._note_fault(entry, look.fault)
            wait, first = look.wait, not entry.look
            if look.fingerprint:
                entry.look = look
                if not wait or (first and (look.missing or look.download)):
                    asked.append((entry, look, look.fingerprint))
                    continue
            if wait:
                self._wait(entry, wait)
            else:
                self._forget(entry)
        self._backlog_shrank.set()
        if asked:
            await self._compare_with_ledger(asked, tasks)
        return True

    async def _compare_with_ledger(self, asked: Sequence[_Found], tasks: asyncio.TaskGroup) -> None:
        """Record which of the complete files are new versions. Those that wait for a marker or a download wait on.

        Of these, what the ledger has as it is needs no marker: that may be gone for good.
        """
        known = await self._ledger.known(self.watch, [entry.path for entry, _, _ in asked])
        new, touched, takes_away = list[_Found](), list[_Found](), self._config.after != "keep"
        for found in asked:
            entry, look, fingerprint = found
            version = known.get(entry.path)
            if look.wait:
                if is_recorded(version, fingerprint):
                    self._forget(entry)
                else:
                    self._wait(entry, look.wait)
                continue
            verdict = compare_with_ledger(version, fingerprint, readable=not look.fault, takes_away=takes_away)
            if verdict is Verdict.NEW:
                new.append(found)
            elif verdict is Verdict.SAME:
                self._forget(entry)
            elif verdict is Verdict.WAIT_FOR_EARLIER:
                self._wait_for_earlier(found)
            else:
                assert version is not None, "what is unknown is new"
                entry.file_id = version.file_id
                if verdict is Verdict.COMPARE or version.gone_at is not None:
                    self._compare(found, version, tasks)
                else:
                    touched.append(found)
        await self._record(touched, self._refingerprint)
        await self._record(new, self._enqueue)

    def _note_fault(self, entry: _Entry, fault: Fault | None) -> None:
        """Note what fault a path waits for; log ``settle.retry`` for the first path that waits for one of its code."""
        passing = None if isinstance(fault, FileFault) else fault
        code = passing.code if passing else ""
        if code == entry.retries:
            return
        self._retries[entry.retries] -= 1
        self._retries[code] += 1
        entry.retries = code
        if passing and self._retries[code] == 1:
            get_logger().warning(
                "settle.retry",
                watch=self.watch,
                path=shown_path(root_of(self._config), entry.path),
                error_code=code,
                error=passing.message,
                fix=passing.fix,
            )

    # --- comparing contents ---------------------------------------------------------------------
    def _compare(self, found: _Found, known: FileVersion, tasks: asyncio.TaskGroup) -> None:
        """Compare a file with a version in a task; if there are too many tasks, wait for one to end."""
        entry, look, _ = found
        look.content = None  # many may wait
        entry.why, entry.in_backlog = "it is compared with the version before it", True
        self._backlog += 1
        if self._comparing < COMPARING:
            self._comparing += 1
            tasks.create_task(self._compare_in_task(found, known), name=f"compare:{known.file_id}")
        else:
            entry.due = _NEVER_DUE
            self._without_task.append(entry)

    async def _compare_in_task(self, found: _Found, known: FileVersion) -> None:
        entry, _, fingerprint = found
        same: bool | None = known.fingerprint == fingerprint
        if not same:
            async with self._one_hash:
                same = await in_background(self._looker.same_content, entry.path, fingerprint, known, self._stop)
        if same and known.gone_at is not None and not await self._on_return(known._replace(fingerprint=fingerprint)):
            same = None
        self._end_comparison(entry)
        if same:
            await self._record([found], self._refingerprint)
        elif same is False:
            await self._record([found], self._enqueue)
        else:
            self._queue(entry, self._monotonic() + pause_after(0))

    def _end_comparison(self, entry: _Entry) -> None:
        self._comparing -= 1
        entry.in_backlog = False
        self._backlog -= 1
        self._backlog_shrank.set()
        self._give_places(1)

    def _give_places(self, places: int) -> bool:
        """Look once more at so many of the files that wait for a task, to compare them; return False without any."""
        given = 0
        while self._without_task and given < places:
            following = self._without_task.popleft()
            if following.due == _NEVER_DUE:  # else an event named it: it was looked at since, or will be
                self._queue(following, self._monotonic())
                given += 1
        return given > 0

    # --- the ledger -----------------------------------------------------------------------------
    async def _refingerprint(self, found: Sequence[_Found]) -> None:
        """Record the fingerprints of files whose content is that of their versions."""
        await self._ledger.refingerprint([(entry.file_id, fingerprint) for entry, _, fingerprint in found])

    async def _enqueue(self, found: Sequence[_Found]) -> None:
        """Record new versions."""
        versions, contents, now = [], {}, utcnow()
        for entry, look, fingerprint in found:
            version = make_version(self._config, entry.path, fingerprint, entry.source, fault=look.fault, now=now)
            versions.append(version)
            if look.content:
                contents[version.file_id] = look.content
        await self._record_new(versions, contents)

    async def _record(self, found: Sequence[_Found], write: Callable[[Sequence[_Found]], Awaitable[None]]) -> None:
        """Write all in one commit and forget them; if one can't be written any more, each alone: that one waits."""
        if not found:
            return
        try:
            await write(found)
        except LostUpdate:
            if len(found) == 1:
                self._wait_for_earlier(found[0])
            else:
                for each in found:
                    await self._record([each], write)
        else:
            for entry, _, _ in found:
                self._forget(entry)
