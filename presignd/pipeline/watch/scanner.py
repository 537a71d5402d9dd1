"""Scan one watch: everything at the start, on request and on a timer; each directory that appeared."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from presignd.errors import fault
from presignd.model import Fingerprint, Source
from presignd.pipeline.watch.scan import Scan, rescan_interval, topmost
from presignd.runtime.heartbeat import beat
from presignd.runtime.tasks import within
from presignd.system.clock import utcnow
from presignd.telemetry import metrics

if TYPE_CHECKING:
    from collections.abc import Mapping

    from structlog.typing import FilteringBoundLogger

    from presignd.config import WatchConfig
    from presignd.ledger import Ledger
    from presignd.model import Listed
    from presignd.pipeline.files.folder import Folder
    from presignd.pipeline.files.ignore import Ignore
    from presignd.pipeline.files.unfinished import Unfinished
    from presignd.pipeline.settle.settler import Settler
    from presignd.pipeline.watch.coverage import Coverage
    from presignd.pipeline.watch.leftovers import Leftovers
    from presignd.pipeline.watch.pauses import Pauses

_PROBLEMS_SHOWN = 5


class Scanner:
    """Scans a watch and gives settling what it finds. ``scanned`` is set after the first scan of everything."""

    def __init__(
        self,
        config: WatchConfig,
        folder: Folder,
        ignore: Ignore,
        unfinished: Unfinished,
        coverage: Coverage,
        *,
        settler: Settler,
        ledger: Ledger,
        leftovers: Leftovers,
        log: FilteringBoundLogger,
        pauses: Pauses,
    ) -> None:
        self.scanned = asyncio.Event()
        self._config, self._folder, self._ignore, self._unfinished = config, folder, ignore, unfinished
        self._coverage, self._settler, self._ledger, self._leftovers = coverage, settler, ledger, leftovers
        self._log, self._pauses = log, pauses
        self._requested = ""
        self._due_at: float | None = None
        self._wake_all = asyncio.Event()
        self._directories: dict[bytes, bool] = {}
        self._wake_directories = asyncio.Event()
        self._problems, self._cut_short = list[str](), False

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
            interval = rescan_interval(self._config, cost, events=self._coverage.is_complete)
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
            lost = self._coverage.lost
            due = self._due_at is not None and time.monotonic() >= self._due_at
            if (self._requested or due) and not lost:
                reason, self._requested = self._requested or "timer", ""
                return reason
            left = self._pauses.tick if lost or self._due_at is None else self._due_at - time.monotonic()
            await within(min(self._pauses.tick, left), self._wake_all)
            self._wake_all.clear()

    async def _scan_everything(self, reason: str, source: Source, ignore_before: datetime | None) -> float:
        """Scan everything; return what it cost in seconds, waiting left out."""
        await self._coverage.check_mounts()
        began, scan = time.monotonic(), self._scan(b"", recursive=self._config.recursive)
        candidates, cost = await self._submit(scan, source, ignore_before)
        await self._coverage.check_watches(scan.directories)
        if reason == "timer":
            metrics.RESCAN_FOUND.labels(self._config.name).inc(candidates)
        self._log_finished(scan, reason, candidates, time.monotonic() - began)
        self._problems, self._cut_short = scan.problems, scan.cut_short
        return cost

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
        candidates, cost, name = 0, 0.0, self._config.name
        async with aclosing(scan.in_thread()) as batches:
            async for batch in batches:
                beat()
                await self._settler.wait_for_room(name)
                began = time.monotonic()
                candidates += await self._settler.submit_scanned(name, batch, source, ignore_before=ignore_before)
                cost += time.monotonic() - began
        self._leftovers.add(scan.own_names)
        if scan.cut_short:
            self.request_later()
        return candidates, scan.seconds + cost
