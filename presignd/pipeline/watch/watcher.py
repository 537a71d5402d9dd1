"""watch: events hint, scans decide. One ``Watcher`` a folder turns both into candidates.

The event source is started first and the start scan after it, so nothing falls between. watchfiles loses
events without a word (an overflow, a directory's first files, what is in a directory moved in, a root
replaced), so each directory that appears is scanned at once, everything after a big batch and after every
end of the source, and all of it again on a timer.
"""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import AsyncExitStack, aclosing, closing
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from presignd.errors import fault, reason_of
from presignd.model import Candidate, Fingerprint, Source
from presignd.pipeline.files.ignore import Ignore
from presignd.pipeline.files.lease import mode
from presignd.pipeline.settle.partners import Unfinished
from presignd.pipeline.watch.inotify import inotify_source
from presignd.pipeline.watch.leftovers import Strays
from presignd.pipeline.watch.scan import Scan, rescan_interval, topmost
from presignd.pipeline.watch.source import Hints
from presignd.pipeline.watch.watchfiles import (
    WATCHES,
    Bursts,
    SourceEnded,
    burst_of_queue,
    choose,
    limit_value,
    no_events,
    sort_out,
    watches_left,
    watchfiles_source,
)
from presignd.runtime.heartbeat import beat, living
from presignd.runtime.tasks import within
from presignd.system.clock import utcnow
from presignd.system.filesystem import MountTable
from presignd.system.threads import run
from presignd.telemetry import metrics

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

    from structlog.typing import FilteringBoundLogger

    from presignd.config import WatchConfig
    from presignd.ledger import Ledger
    from presignd.model import FileVersion, Listed
    from presignd.pipeline.files.folder import Folder
    from presignd.pipeline.files.lease import WriterCheck
    from presignd.pipeline.settle.settler import Settler

TURN = 1.0
"""Seconds at most between two looks at the root, and between two heartbeats."""

_WITHOUT_EVENTS = 600.0
"""Seconds of polling before inotify is tried again after one of its limits was met."""

_PROBLEMS_SHOWN = 5
_AT_ONCE = 500  # paths in one question to the ledger, or one change of it
_AGAIN = 2.0  # seconds until everything is scanned again after a scan that could open no more

_FIRST_PAUSE, _LAST_PAUSE, _LIVED = 0.05, 5.0, 60.0
"""Seconds: the growing pause before the source is started again, from the first once it had lived so long."""


class Watcher:
    """Watches one folder. ``lost``: its root is away. ``events``: whether there are any, or scans alone do.

    ``watching`` is set once changes are seen, by scans alone if need be, or the root is known to be away;
    ``scanned`` after the first scan. ``on_vanished`` gets the versions that ended because their file went.
    ``check`` is how files here settle, known once ``run`` has begun.
    """

    def __init__(
        self,
        config: WatchConfig,
        folder: Folder,
        settler: Settler,
        ledger: Ledger,
        log: FilteringBoundLogger,
        *,
        on_vanished: Callable[[list[FileVersion]], Awaitable[None]],
    ) -> None:
        self.name = config.name
        self.lost = False
        self.events = True
        self.watching, self.scanned = asyncio.Event(), asyncio.Event()
        self.check: WriterCheck | None = None
        self._config = config
        self._folder = folder
        self._settler = settler
        self._ledger = ledger
        self._log = log.bind(watch=config.name)
        self._path = folder.root.decode("utf-8", "backslashreplace")
        self._on_vanished = on_vanished
        self._ignore = Ignore.of(config)
        self._unfinished = Unfinished()
        self._strays = Strays(config.name, folder, ledger, settler.submit)
        self._wanted = ""
        self._scan_at: float | None = None
        self._wake_scan = asyncio.Event()
        self._directories: dict[bytes, bool] = {}
        self._wake_directories = asyncio.Event()
        self._problems, self._cut_short = list[str](), False
        self._announced: str | None = None
        self._told_by, self._ended_by = "", ""
        self._no_inotify_until = float("-inf")
        self._short_of_watches = False
        self._restart = False
        self._bursts = Bursts()

    @property
    def next_scan_at(self) -> datetime | None:
        """When the next scan is due (UTC): what events missed is found then. None before the first."""
        if self._scan_at is None:
            return None
        return utcnow() + timedelta(seconds=max(0.0, self._scan_at - time.monotonic()))

    def request_scan(self, reason: str) -> None:
        """Scan everything as soon as may be."""
        self._wanted = self._wanted or reason
        self._wake_scan.set()

    async def run(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for loop in (self._watching, self._scanning, self._scanning_directories, self._putting_right):
                name = f"{loop.__name__.strip('_').replace('_', ' ')} of {self.name}"
                tasks.create_task(living(name, loop), name=name)

    async def scan_once(self) -> list[tuple[bytes, Fingerprint]]:
        """Return the files that would go: not ignored, and not in the ledger as they are. Changes nothing."""
        found: list[Listed] = []
        async with aclosing(self._scan_of(b"", recursive=self._config.recursive).in_thread()) as batches:
            async for batch in batches:
                found += await self._ledger.differing(self.name, batch)
        return [(path, Fingerprint(*rest)) for path, *rest in found]

    # --- events ---------------------------------------------------------------------------------
    async def _watching(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            await self._root_there()
            began = time.monotonic()
            try:
                await self._follow(self._source())
            except SourceEnded as error:
                self._source_ended(error)
            except OSError as error:
                self._source_ended(SourceEnded(reason_of(error)))
            pause = _FIRST_PAUSE if time.monotonic() - began > _LIVED else min(_LAST_PAUSE, pause * 2)
            beat(within=pause)
            await asyncio.sleep(0 if self.lost else pause)

    async def _follow(self, source: AsyncGenerator[list[bytes], None]) -> None:
        """Take what the source yields, until it ends or the root is lost."""
        started = self._restart = False
        self._bursts = Bursts(await asyncio.to_thread(burst_of_queue))
        async with AsyncExitStack() as stack:
            batches = await stack.enter_async_context(aclosing(source))
            mounts = stack.enter_context(closing(MountTable()))
            async for hints in batches:
                beat(within=TURN)
                if not await run(self._folder.still_there, inline=self._folder.inline_limit > 0):
                    self._lose()
                    return
                if not started:
                    started = True
                    self._started()
                await self._take(hints)
                beat(within=TURN)
                if self._restart or (mounts.changed() and await self._other_mounts()):
                    return

    async def _other_mounts(self) -> bool:
        """Tell whether there are other mounts below than before: what is in them is not watched yet."""
        return await asyncio.to_thread(self._folder.refresh_mounts)

    def _source(self) -> AsyncGenerator[list[bytes], None]:
        """Choose the source: none where the filesystem gives no events, and while a limit forbids them."""
        chosen, _ = choose(self._config, self._folder.fd)
        left = float("inf") if chosen == "polling" else self._no_inotify_until - time.monotonic()
        self._told_by = chosen if left <= 0 else "polling"
        if left > 0:
            return no_events(left)
        if chosen == "inotify":
            return inotify_source(self._config, self._folder, self._ignore)
        return watchfiles_source(self._config, self._folder.root)

    def _started(self) -> None:
        """Scan, now that changes are seen: what was there before shows only so. Say how this folder works."""
        self.watching.set()
        self.events, self._ended_by = self._told_by != "polling", ""
        self.request_scan("start" if self._scan_at is None else "restart")
        if self._announced != self._told_by and self.check is not None:
            self._announced = self._told_by
            self._log.info(
                "watch.started",
                path=self._path,
                writer_check=self.check.mode,
                events=self._told_by,
                **({"reason": self.check.reason} if self.check.reason else {}),
            )

    async def _take(self, hints: Sequence[bytes]) -> None:
        if self._told_by == "watchfiles" and self._bursts.may_lack(self.name, len(hints)):  # the others tell
            self.request_scan("burst")
        if not hints:
            return
        looked_at, inline = utcnow(), len(hints) <= self._folder.inline_limit
        news = await run(
            lambda: sort_out(self._config, self._folder, self._ignore, self._unfinished, hints), inline=inline
        )
        if news.cut_short:
            self._scan_later()
        closed = hints.closed if isinstance(hints, Hints) else ()
        self._settler.submit(Candidate(self.name, path, Source.EVENT, path in closed) for path in news.files)
        for directory, below in news.directories.items():
            self._directories[directory] = below or self._directories.get(directory, False)
            self._wake_directories.set()
        await self._gone(sorted(news.gone), looked_at)

    async def _gone(self, paths: Sequence[bytes], looked_at: datetime) -> None:
        for start in range(0, len(paths), _AT_ONCE):
            await asyncio.shield(self._note_gone(paths[start : start + _AT_ONCE], looked_at))

    async def _note_gone(self, paths: Sequence[bytes], looked_at: datetime) -> None:
        """Record and tell: whoever is cancelled in between, what is in the ledger is told."""
        if vanished := await self._ledger.gone(self.name, paths, looked_at):
            await self._on_vanished(vanished)

    def _source_ended(self, error: SourceEnded) -> None:
        metrics.WATCH_OVERFLOWS.labels(self.name).inc()
        if error.limit:
            self._no_inotify_until = time.monotonic() + _WITHOUT_EVENTS
            self._tell_limit(error.message, error.limit)
            return
        tell = self._log.warning if self._ended_by != error.message else self._log.debug
        tell("watch.overflow", reason=f"events may be lost: {error.message}")
        self._ended_by = error.message
        self._poll_meanwhile()

    def _poll_meanwhile(self) -> None:
        """Scan as where there are no events, until the source is back: it may not be for long."""
        if not self.events:
            return  # it does so already
        self.events = False
        self.watching.set()
        if self._scan_at is None:
            self.request_scan("start")
        else:
            self._scan_at = min(self._scan_at, time.monotonic() + self._config.poll_interval)
            self._wake_scan.set()

    def _tell_limit(self, reason: str, limit: str, needed: str = "") -> None:
        self._log.error(
            "watch.overflow",
            reason=f"{reason}: scanned every {self._config.poll_interval:g} s",
            fix=f"raise {limit} (now {limit_value(limit)}{needed})",
        )

    async def _mind_watches(self, directories: int) -> None:
        """Poll while inotify watches are short; register all of them anew once there are more."""
        if not self.events:
            return
        short = not await asyncio.to_thread(watches_left, self._folder.root)
        if short and not self._short_of_watches:
            self._tell_limit("no inotify watches are left", WATCHES, f"; this watch has {directories} directories")
        if self._short_of_watches and not short:
            self._restart = True
        self._short_of_watches = short

    # --- the root -------------------------------------------------------------------------------
    async def _settle_here(self) -> bool:
        """Find out how files here settle; False where their filesystem does not even tell what it is."""
        try:
            check = await asyncio.to_thread(mode, self._folder)
            self._settler.add(self._config, self._folder, check, self._unfinished)
        except OSError:
            return False
        self.check = check
        return True

    def _lose(self) -> None:
        if not self.lost:
            self._log.error("watch.lost", path=self._path, fix="bring the folder back; it is looked for each second")
        self.lost, self._announced = True, None
        self.watching.set()

    async def _root_there(self) -> None:
        """Return once the root is there; a new one is opened, as it may be another filesystem's."""
        while self.lost or self.check is None or not await asyncio.to_thread(self._folder.still_there):
            if self.check is not None:
                self._lose()
            if await asyncio.to_thread(self._folder.reopen) and await self._settle_here():
                self.lost = False
                return
            self._lose()
            beat(within=TURN)
            await asyncio.sleep(TURN)

    # --- scans ----------------------------------------------------------------------------------
    async def _scanning(self) -> None:
        source, ignore_before = Source.BACKLOG, await self._ignore_before()
        while True:
            reason = await self._scan_due()
            cost = await self._scan_all(reason, source, ignore_before)
            self.scanned.set()
            events = self.events and not self._short_of_watches
            self._scan_at = time.monotonic() + rescan_interval(self._config, cost, events=events)
            if source is Source.BACKLOG and not self._cut_short and await asyncio.to_thread(self._folder.still_there):
                # Only a scan that went through settles what was there at the very first start.
                await self._ledger.first_scan_done(self.name)
                source, ignore_before = Source.SCAN, None

    async def _ignore_before(self) -> datetime | None:
        first, pending = await self._ledger.first_start(self.name, utcnow())
        return first if pending and self._config.existing == "ignore" else None

    async def _scan_due(self) -> str:
        while True:
            beat(within=TURN)
            due = self._scan_at is not None and time.monotonic() >= self._scan_at
            if (self._wanted or due) and not self.lost:
                reason, self._wanted = self._wanted or "timer", ""
                return reason
            planned = None if self.lost else self._scan_at
            left = TURN if planned is None else planned - time.monotonic()
            await within(min(TURN, left), self._wake_scan)
            self._wake_scan.clear()

    async def _scan_all(self, reason: str, source: Source, ignore_before: datetime | None) -> float:
        """Scan everything; return what it cost in seconds, waiting left out."""
        self._restart |= await self._other_mounts()
        began, scan = time.monotonic(), self._scan_of(b"", recursive=self._config.recursive)
        candidates, cost = await self._submit(scan, source, ignore_before)
        await self._mind_watches(scan.directories)
        if reason == "timer":
            metrics.RESCAN_FOUND.labels(self.name).inc(candidates)
        fresh_problems = scan.problems != self._problems
        self._problems, self._cut_short = scan.problems, scan.cut_short
        tell = self._log.warning if scan.problems and fresh_problems else self._log.debug
        if not scan.problems and (candidates or reason != "timer"):
            tell = self._log.info
        tell(
            "scan.finished",
            files=scan.files,
            candidates=candidates,
            duration_ms=round((time.monotonic() - began) * 1000),
            reason=reason,
            **({"problems": scan.problems[:_PROBLEMS_SHOWN]} if scan.problems else {}),
        )
        return cost

    async def _scanning_directories(self) -> None:
        while True:
            if not self._directories:
                beat(within=TURN)
                await within(TURN, self._wake_directories)
                self._wake_directories.clear()
                continue
            wanted, self._directories = self._directories, {}
            for directory, below in topmost(wanted).items():
                await self._submit(self._scan_of(directory, recursive=below), Source.EVENT)

    async def _putting_right(self) -> None:
        await self._strays.run()

    def _scan_of(self, directory: bytes, *, recursive: bool) -> Scan:
        stop, unfinished = threading.Event(), self._unfinished
        return Scan(self._folder, self._ignore, directory, recursive=recursive, stop=stop, unfinished=unfinished)

    async def _submit(self, scan: Scan, source: Source, ignore_before: datetime | None = None) -> tuple[int, float]:
        """Give settling what a scan finds; return the candidates, and the seconds it cost without waiting."""
        candidates, cost = 0, 0.0
        async with aclosing(scan.in_thread()) as batches:
            async for batch in batches:
                beat()
                await self._settler.wait_for_room(self.name)
                began = time.monotonic()
                candidates += await self._settler.submit_scanned(self.name, batch, source, ignore_before=ignore_before)
                cost += time.monotonic() - began
        self._strays.found(scan.own)
        if scan.cut_short:
            self._scan_later()
        return candidates, scan.seconds + cost

    def _scan_later(self) -> None:
        """Say that nothing more could be opened, and scan everything again once something can be."""
        if not self._cut_short:
            problem = fault("too_many_files")
            self._log.warning("scan.cut_short", error_code=problem.code, error=problem.message, fix=problem.fix)
        self._cut_short = True
        asyncio.get_running_loop().call_later(_AGAIN, self.request_scan, "too_many_files")
