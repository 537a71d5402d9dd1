"""Scan a watch: everything at the start, on request and on a timer; each directory that appeared.

A ``Scan`` walks through a folder, by directory descriptor, and lists what is there, whatever events were seen. The walk
blocks, so each batch is found in a thread; the next one is found only once it is wanted.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from contextlib import aclosing
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from presignd.errors import Fault, fault, lacks_descriptors
from presignd.model import Fingerprint, Source
from presignd.pipeline.files.folder import Folder, Gone, NotRegular
from presignd.pipeline.files.ignore import OWN_PREFIX, Unfinished
from presignd.pipeline.watch.source import WATCHES, limit_value, watches_left
from presignd.runtime.heartbeat import beat
from presignd.runtime.tasks import within
from presignd.system.clock import utcnow
from presignd.telemetry import metrics

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator, Mapping

    from structlog.typing import FilteringBoundLogger

    from presignd.config import WatchConfig
    from presignd.errors import PresigndError
    from presignd.ledger import Ledger
    from presignd.model import Listed
    from presignd.pipeline.files.ignore import Ignore
    from presignd.pipeline.settle.lane import Lane
    from presignd.pipeline.watch.leftovers import Leftovers
    from presignd.pipeline.watch.watcher import Pauses

BATCH, MAX_BATCH = 1000, 4000
"""Files in a batch, which is one query to the ledger: fastest for whole directories. So the directory that fills one
may make it longer, up to ``MAX_BATCH``."""

MIN_RESCAN = 60.0
SCAN_SHARE = 0.001
"""``rescan = "auto"``: every minute, or so far apart that scans take this share of a core (guarantee 9)."""
_PROBLEMS_SHOWN = 5


class Scan:
    """One walk from ``start`` (below the root; b"" for all) over the regular files that are not ignored.

    Symlinks are not followed, and files that vanish during the walk are left out. ``problems`` names what can't be
    read, once each; ``cut_short`` means that too many files were open. Downloads are noted in ``unfinished``;
    ``own_names`` are the paths with names of presignd's own. ``files``, ``directories`` and ``seconds`` (spent walking,
    not waiting) count up as it goes. Setting ``stop`` ends it.
    """

    def __init__(
        self,
        folder: Folder,
        ignore: Ignore,
        start: bytes = b"",
        *,
        recursive: bool = True,
        unfinished: Unfinished | None = None,
    ) -> None:
        self._folder = folder
        self._unfinished = unfinished or Unfinished()
        self._ignore = ignore
        self._recursive = recursive
        self.stop = threading.Event()
        self._waiting = [] if ignore.ignores_directory(start) else [start]
        self.files = 0
        self.directories = 0
        self.seconds = 0.0
        self.problems: list[str] = []
        self.cut_short = False
        self.own_names: list[bytes] = []

    def batches(self) -> Iterator[list[Listed]]:
        """Yield files in batches. A batch ends with the directory that fills it, or at ``MAX_BATCH``."""
        batches = self._walk()
        while True:
            began = time.perf_counter()
            batch = next(batches, None)
            self.seconds += time.perf_counter() - began
            if batch is None:
                return
            self.files += len(batch)
            yield batch

    async def in_thread(self) -> AsyncGenerator[list[Listed], None]:
        """Yield the batches, each found in a thread; the walk ends when this generator is closed."""
        batches = self.batches()
        try:
            while (batch := await asyncio.to_thread(next, batches, None)) is not None:
                yield batch
        finally:
            self.stop.set()

    def _walk(self) -> Iterator[list[Listed]]:
        batch: list[Listed] = []
        while self._waiting and not self.stop.is_set():
            directory = self._waiting.pop()
            try:
                for one in self._list(directory):
                    batch.append(one)
                    if len(batch) == MAX_BATCH:
                        yield batch
                        batch = []
            except (Gone, NotRegular, Fault, OSError) as error:  # what was listed before an error counts
                self._note_problem(directory, error)
            if len(batch) >= BATCH:
                yield batch
                batch = []
        if batch:
            yield batch

    def _list(self, directory: bytes) -> Iterator[Listed]:
        """Yield one directory's files. Each costs hardly more than a ``stat``: no object, and usually no pattern."""
        fd = self._folder.open_directory(directory)
        self.directories += 1
        inside, below = directory + b"/" if directory else b"", list[bytes]()
        ordinary = self._ignore.ordinary_in(directory)
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    if self.stop.is_set():
                        return
                    beat()
                    name = os.fsencode(entry.name)
                    path = inside + name
                    try:
                        if entry.is_file(follow_symlinks=False):
                            if ordinary(name) or self._sort_out(path):
                                st = entry.stat(follow_symlinks=False)
                                yield path, st.st_ino, st.st_size, st.st_mtime_ns, st.st_ctime_ns
                        elif self._recursive and entry.is_dir(follow_symlinks=False):
                            below.append(path)
                    except OSError as error:
                        self._note_problem(path, error)
        finally:
            os.close(fd)
            # By name, so that batches of neighbours are neighbours in the ledger's index too.
            self._waiting += sorted((path for path in below if not self._skip_directory(path)), reverse=True)

    def _sort_out(self, path: bytes) -> bool:
        """Return whether to yield the file at ``path``; note presignd's own names and unfinished downloads."""
        if path.rpartition(b"/")[2].startswith(OWN_PREFIX):
            self.own_names.append(path)
            return False
        if self._ignore.ignores_file(path):
            self._unfinished.note(path)
            return False
        return True

    def _skip_directory(self, directory: bytes) -> bool:
        """Return whether a directory is ignored; note it, as it may be an unfinished download."""
        if self._ignore.ignores_directory(directory):
            self._unfinished.note(directory)
            return True
        return False

    def _note_problem(self, path: bytes, error: PresigndError | OSError) -> None:
        """Note a path that can't be read; one that vanished is no problem."""
        if not isinstance(error, (Gone, NotRegular, FileNotFoundError)):
            self.cut_short |= lacks_descriptors(error)
            self.problems.append(f"{path.decode('utf-8', 'backslashreplace') or '.'}: {error}")


def rescan_interval(watch: WatchConfig, cost: float, *, events: bool) -> float:
    """Return the seconds from the end of a scan that took ``cost`` seconds to the next one."""
    rescan = max(MIN_RESCAN, cost / SCAN_SHARE) if watch.rescan is None else watch.rescan
    return rescan if events else min(rescan, max(watch.poll_interval, cost))


def topmost(directories: Mapping[bytes, bool]) -> dict[bytes, bool]:
    """Return the directories without those that the scan of another one (True: with all below) covers."""
    chosen: dict[bytes, bool] = {}
    for directory in sorted(directories):
        above = (directory[:at] for at, byte in enumerate(directory) if byte == ord("/"))
        if not any(chosen.get(parent) for parent in above) and not (directory and chosen.get(b"")):
            chosen[directory] = directories[directory]
    return chosen


class Scanner:
    """Scans a watch and gives settling what it finds. ``scanned`` is set after the first scan of everything.

    The watcher sets whether there are any ``events``, and whether the root is ``lost``. ``outdated``: the event source
    must be restarted to cover all that is there now.
    """

    def __init__(
        self,
        config: WatchConfig,
        folder: Folder,
        ignore: Ignore,
        unfinished: Unfinished,
        *,
        lane: Lane,
        ledger: Ledger,
        leftovers: Leftovers,
        log: FilteringBoundLogger,
        pauses: Pauses,
    ) -> None:
        self.scanned = asyncio.Event()
        self.events, self.lost, self.outdated = True, False, False
        self._config, self._folder, self._ignore, self._unfinished = config, folder, ignore, unfinished
        self._lane, self._ledger, self._leftovers = lane, ledger, leftovers
        self._log, self._pauses = log, pauses
        self._requested = ""
        self._due_at: float | None = None
        self._wake_all = asyncio.Event()
        self._directories: dict[bytes, bool] = {}
        self._wake_directories = asyncio.Event()
        self._problems, self._cut_short = list[str](), False
        self._short_of_watches = False

    @property
    def next_scan_at(self) -> datetime | None:
        """When the next scan of everything is due (UTC); None before the first."""
        if self._due_at is None:
            return None
        return utcnow() + timedelta(seconds=max(0.0, self._due_at - time.monotonic()))

    def request(self, reason: str) -> None:
        """Scan everything as soon as possible."""
        self._requested = self._requested or reason
        self._wake_all.set()

    def request_start(self) -> None:
        """Scan everything now that the event source starts: for the first time, or again."""
        self.request("start" if self._due_at is None else "restart")

    def request_directories(self, directories: Mapping[bytes, bool]) -> None:
        """Scan these directories (True: with all below)."""
        for directory, below in directories.items():
            self._directories[directory] = below or self._directories.get(directory, False)
            self._wake_directories.set()

    def poll(self) -> None:
        """Scan everything within ``poll_interval``; at once if nothing was scanned yet. Events may be missing."""
        if self._due_at is None:
            self.request("start")
        else:
            self._due_at = min(self._due_at, time.monotonic() + self._config.poll_interval)
            self._wake_all.set()

    def request_later(self) -> None:
        """Scan everything again after ``scan_retry``; too many files are open now."""
        if not self._cut_short:
            problem = fault("too_many_files")
            self._log.warning("scan.cut_short", error_code=problem.code, error=problem.message, fix=problem.fix)
        self._cut_short = True
        asyncio.get_running_loop().call_later(self._pauses.scan_retry, self.request, "too_many_files")

    def log_limit(self, reason: str, limit: str, needed: str = "") -> None:
        """Log the system limit that prevents events."""
        self._log.error(
            "watch.overflow",
            reason=f"{reason}: scanned every {self._config.poll_interval:g} s",
            fix=f"raise {limit} (now {limit_value(limit)}{needed})",
        )

    async def check_mounts(self) -> None:
        """Mark the source as outdated if the mounts below have changed: what is in new ones is not watched yet."""
        if await asyncio.to_thread(self._folder.refresh_mounts):  # "|=" would lose what is noted during the await
            self.outdated = True

    async def list_new(self) -> list[tuple[bytes, Fingerprint]]:
        """Return the files that would be uploaded: neither ignored nor in the ledger as they are. Changes nothing."""
        found: list[Listed] = []
        async with aclosing(self._scan(b"", recursive=self._config.recursive).in_thread()) as batches:
            async for batch in batches:
                found += await self._ledger.differing(self._config.name, batch)
        return [(path, Fingerprint(*rest)) for path, *rest in found]

    # --- of everything --------------------------------------------------------------------------
    async def scan_when_due(self) -> None:
        """Scan everything on request and on the timer, until cancelled."""
        source, ignore_before = Source.BACKLOG, await self._ignore_before()
        while True:
            reason = await self._wait_until_due()
            cost = await self._scan_everything(reason, source, ignore_before)
            self.scanned.set()
            interval = rescan_interval(self._config, cost, events=self.events and not self._short_of_watches)
            self._due_at = time.monotonic() + interval
            if source is Source.BACKLOG and not self._cut_short and await asyncio.to_thread(self._folder.still_there):
                # Only a complete scan settles what was there at the very first start.
                await self._ledger.first_scan_done(self._config.name)
                source, ignore_before = Source.SCAN, None

    async def _ignore_before(self) -> datetime | None:
        first, pending = await self._ledger.first_start(self._config.name, utcnow())
        return first if pending and self._config.existing == "ignore" else None

    async def _wait_until_due(self) -> str:
        """Wait until the next scan is due and the root is there; return the reason of the scan."""
        while True:
            beat(within=self._pauses.tick)
            due = self._due_at is not None and time.monotonic() >= self._due_at
            if (self._requested or due) and not self.lost:
                reason, self._requested = self._requested or "timer", ""
                return reason
            left = self._pauses.tick if self.lost or self._due_at is None else self._due_at - time.monotonic()
            await within(min(self._pauses.tick, left), self._wake_all)
            self._wake_all.clear()

    async def _scan_everything(self, reason: str, source: Source, ignore_before: datetime | None) -> float:
        """Scan everything; return what it cost in seconds, waiting left out."""
        await self.check_mounts()
        began, scan = time.monotonic(), self._scan(b"", recursive=self._config.recursive)
        candidates, cost = await self._submit(scan, source, ignore_before)
        if self.events:
            await self._check_watches(scan.directories)
        if reason == "timer":
            metrics.RESCAN_FOUND.labels(self._config.name).inc(candidates)
        self._log_finished(scan, reason, candidates, time.monotonic() - began)
        self._problems, self._cut_short = scan.problems, scan.cut_short
        return cost

    async def _check_watches(self, directories: int) -> None:
        """Poll while there are too few inotify watches; once there are enough, restart the source, which sets all."""
        short = not await asyncio.to_thread(watches_left, self._folder.root)
        if short and not self._short_of_watches:
            self.log_limit("no inotify watches are left", WATCHES, f"; this watch has {directories} directories")
        if self._short_of_watches and not short:
            self.outdated = True
        self._short_of_watches = short

    def _log_finished(self, scan: Scan, reason: str, candidates: int, seconds: float) -> None:
        """Log new problems as a warning, a scan by the timer that found nothing at debug, any other at info."""
        log = self._log.warning if scan.problems and scan.problems != self._problems else self._log.debug
        if not scan.problems and (candidates or reason != "timer"):
            log = self._log.info
        log(
            "scan.finished",
            files=scan.files,
            candidates=candidates,
            duration_ms=round(seconds * 1000),
            reason=reason,
            **({"problems": scan.problems[:_PROBLEMS_SHOWN]} if scan.problems else {}),
        )

    # --- of directories -------------------------------------------------------------------------
    async def scan_directories(self) -> None:
        """Scan the directories that were requested, until cancelled."""
        while True:
            if not self._directories:
                beat(within=self._pauses.tick)
                await within(self._pauses.tick, self._wake_directories)
                self._wake_directories.clear()
                continue
            requested, self._directories = self._directories, {}
            for directory, below in topmost(requested).items():
                await self._submit(self._scan(directory, recursive=below), Source.EVENT)

    def _scan(self, directory: bytes, *, recursive: bool) -> Scan:
        return Scan(self._folder, self._ignore, directory, recursive=recursive, unfinished=self._unfinished)

    async def _submit(self, scan: Scan, source: Source, ignore_before: datetime | None = None) -> tuple[int, float]:
        """Give settling what a scan finds; return the candidates, and the seconds it cost without waiting."""
        candidates, cost = 0, 0.0
        async with aclosing(scan.in_thread()) as batches:
            async for batch in batches:
                beat()
                await self._lane.wait_for_room()
                began = time.monotonic()
                candidates += await self._lane.submit_scanned(batch, source, ignore_before=ignore_before)
                cost += time.monotonic() - began
        self._leftovers.add(scan.own_names)
        if scan.cut_short:
            self.request_later()
        return candidates, scan.seconds + cost
