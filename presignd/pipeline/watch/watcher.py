"""watch: events are hints, scans decide. One ``Watcher`` for each folder turns both into candidates.

The event source is started first and the start scan after it, so no change falls between the two. watchfiles
loses events silently (an overflow, a directory's first files, what is in a directory that is moved in, a root that
is replaced). So each directory that appears is scanned immediately, everything after a big batch and whenever the
source ends, and everything again on a timer.
"""

from __future__ import annotations

import asyncio
import stat
import time
from contextlib import AsyncExitStack, aclosing, closing
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from presignd.errors import Fault, FileFault, lacks_descriptors, reason_of
from presignd.model import Source
from presignd.pipeline.files.folder import Folder, Gone, NotRegular
from presignd.pipeline.files.ignore import Ignore, Unfinished, marked
from presignd.pipeline.files.lease import writer_check_of
from presignd.pipeline.settle.looker import Looker
from presignd.pipeline.watch.inotify import inotify_source
from presignd.pipeline.watch.leftovers import Leftovers
from presignd.pipeline.watch.scan import Scanner
from presignd.pipeline.watch.source import TICK_SECONDS, Hints, SourceEnded, choose_source, no_events
from presignd.pipeline.watch.watchfiles import watchfiles_source
from presignd.runtime.heartbeat import beat, living
from presignd.system.clock import utcnow
from presignd.system.filesystem import MountTable
from presignd.system.threads import run
from presignd.telemetry import metrics

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from structlog.typing import FilteringBoundLogger

    from presignd.config import WatchConfig
    from presignd.ledger import Ledger
    from presignd.model import FileVersion
    from presignd.pipeline.files.lease import WriterCheck
    from presignd.pipeline.settle.lane import Lane
    from presignd.pipeline.settle.looker import ReadAhead
    from presignd.pipeline.unit.folders import WatchMarkers

_GONE_BATCH = 500
"""Paths noted as gone in one change of the ledger."""


@dataclass(frozen=True, slots=True)
class Pauses:
    """The pauses of one watch."""

    tick: float = TICK_SECONDS
    """Pause between two looks for a root that is away, or at names of presignd's own that are still in use; the longest
    wait of each loop."""
    source_first: float = 0.05
    """Pause before the event source is started again; each further one is twice as long, up to ``source_last``."""
    source_last: float = 5.0
    source_stable: float = 60.0
    """Once a source has run for so long, the next pause is ``source_first`` again."""
    without_inotify: float = 600.0
    """How long to poll before inotify is tried again, after one of its limits was met."""
    scan_retry: float = 2.0
    """Pause before everything is scanned again, after a scan for which too many files were open."""


PAUSES = Pauses()


class Watcher:
    """Watches one folder; what it finds settles in its ``lane``, whose looker gets ``ahead`` and ``markers``.

    ``watching`` is set once changes are seen, by scans alone if need be, or the root is known to be away.
    ``on_vanished`` is called with the versions that ended because their files are gone. ``check`` is how files here
    settle, None until ``run`` has found that out.
    """

    def __init__(
        self,
        config: WatchConfig,
        folder: Folder,
        lane: Lane,
        ledger: Ledger,
        log: FilteringBoundLogger,
        *,
        ahead: ReadAhead,
        markers: WatchMarkers,
        on_vanished: Callable[[Sequence[FileVersion]], None],
        pauses: Pauses = PAUSES,
    ) -> None:
        self.name, self.lane = config.name, lane
        self.watching = asyncio.Event()
        self.check: WriterCheck | None = None
        self._config, self._folder, self._ledger = config, folder, ledger
        self._log = log.bind(watch=config.name)
        self._path = folder.root.decode("utf-8", "backslashreplace")
        self._ahead, self._markers = ahead, markers if config.links_folders else None
        self._on_vanished, self._pauses = on_vanished, pauses
        self._ignore = Ignore(config)
        self._unfinished = Unfinished()
        self._leftovers = Leftovers(lane, folder, ledger, pauses.tick)
        self.scanner = Scanner(
            config,
            folder,
            self._ignore,
            self._unfinished,
            lane=lane,
            ledger=ledger,
            leftovers=self._leftovers,
            log=self._log,
            pauses=pauses,
        )
        self._announced: str | None = None
        self._source_name, self._ended_by = "", ""
        self._no_inotify_until = float("-inf")

    async def run(self) -> None:
        """Watch until cancelled."""
        loops = {
            "settling": self.lane.run,
            "watching": self._watch,
            "scanning": self.scanner.scan_when_due,
            "scanning directories": self.scanner.scan_directories,
            "restoring leftovers": self._leftovers.run,
        }
        async with asyncio.TaskGroup() as tasks:
            for what, loop in loops.items():
                name = f"{what} of {self.name}"
                tasks.create_task(living(name, loop), name=name)

    # --- the event source -----------------------------------------------------------------------
    async def _watch(self) -> None:
        pauses = self._pauses
        pause = pauses.source_first
        while True:
            await self._wait_for_root()
            began = time.monotonic()
            try:
                await self._follow(self._open_source())
            except SourceEnded as error:
                self._source_ended(error)
            except OSError as error:
                self._source_ended(SourceEnded(reason_of(error)))
            stable = time.monotonic() - began > pauses.source_stable
            pause = pauses.source_first if stable else min(pauses.source_last, pause * 2)
            beat(within=pause)
            await asyncio.sleep(0 if self.scanner.lost else pause)

    def _open_source(self) -> AsyncGenerator[Hints, None]:
        """Return the event source; ``no_events`` if the filesystem has no events, or while a limit forbids them."""
        chosen, _ = choose_source(self._config, self._folder.fd)
        left = float("inf") if chosen == "polling" else self._no_inotify_until - time.monotonic()
        self._source_name = chosen if left <= 0 else "polling"
        if left > 0:
            return no_events(left)
        if chosen == "inotify":
            return inotify_source(self._config, self._folder, self._ignore)
        return watchfiles_source(self._config, self._folder.root)

    async def _follow(self, source: AsyncGenerator[Hints, None]) -> None:
        """Handle what the source yields, until it ends, is outdated, or the root is lost."""
        started = self.scanner.outdated = False
        async with AsyncExitStack() as stack:
            batches = await stack.enter_async_context(aclosing(source))
            mounts = stack.enter_context(closing(MountTable()))
            async for hints in batches:
                beat(within=self._pauses.tick)
                if not await run(self._folder.still_there, inline=self._folder.inline_limit > 0):
                    self._lose_root()
                    return
                if not started:
                    started = True
                    self._source_started()
                await self._handle_hints(hints)
                beat(within=self._pauses.tick)
                if mounts.changed():
                    await self.scanner.check_mounts()
                if self.scanner.outdated:
                    return

    def _source_started(self) -> None:
        """Request a scan for what was there before changes are seen; log how this watch works."""
        self.watching.set()
        self.scanner.events, self._ended_by = self._source_name != "polling", ""
        self.scanner.request_start()
        if self._announced != self._source_name and self.check is not None:
            self._announced = self._source_name
            self._log.info(
                "watch.started",
                path=self._path,
                writer_check=self.check.mode,
                events=self._source_name,
                **({"reason": self.check.reason} if self.check.reason else {}),
            )

    def _source_ended(self, error: SourceEnded) -> None:
        """Log why the source ended; poll until it is back."""
        metrics.WATCH_OVERFLOWS.labels(self.name).inc()
        if error.limit:
            self._no_inotify_until = time.monotonic() + self._pauses.without_inotify
            self.scanner.log_limit(error.message, error.limit)
            return
        log = self._log.warning if self._ended_by != error.message else self._log.debug
        log("watch.overflow", reason=f"events may be lost: {error.message}")
        self._ended_by = error.message
        if self.scanner.events:
            self.scanner.events = False
            self.watching.set()
            self.scanner.poll()

    # --- hints ----------------------------------------------------------------------------------
    async def _handle_hints(self, hints: Hints) -> None:
        if hints.incomplete:
            self.scanner.request("burst")
        if not hints.paths and not hints.closed:
            return
        looked_at, inline = utcnow(), len(hints.paths) <= self._folder.inline_limit
        found = await run(
            lambda: look_at(self._config, self._folder, self._ignore, self._unfinished, hints), inline=inline
        )
        if found.cut_short:
            self.scanner.request_later()
        self.lane.submit(found.files, Source.EVENT, closed=hints.closed)
        await asyncio.sleep(0)  # the files first: the rest is done while the ledger works
        self.scanner.request_directories(found.directories)
        gone = sorted(found.gone)
        for start in range(0, len(gone), _GONE_BATCH):
            await asyncio.shield(self._note_gone(gone[start : start + _GONE_BATCH], looked_at))

    async def _note_gone(self, paths: Sequence[bytes], looked_at: datetime) -> None:
        """Record files as gone and announce it, both or neither: the caller shields this from cancellation."""
        if vanished := await self._ledger.record_gone(self.name, paths, looked_at):
            self._on_vanished(vanished)

    # --- the root -------------------------------------------------------------------------------
    async def _wait_for_root(self) -> None:
        """Wait until the root is there; open a new root, which may be on another filesystem."""
        while self.scanner.lost or self.check is None or not await asyncio.to_thread(self._folder.still_there):
            if self.check is not None:
                self._lose_root()
            if await asyncio.to_thread(self._folder.reopen) and await self._start_settling():
                self.scanner.lost = False
                return
            self._lose_root()
            beat(within=self._pauses.tick)
            await asyncio.sleep(self._pauses.tick)

    async def _start_settling(self) -> bool:
        """Choose the writer check and start to settle; return False if the filesystem's type can't be read."""
        try:
            check = await asyncio.to_thread(writer_check_of, self._folder)
            self.lane.use(
                Looker(
                    self._config,
                    self._folder,
                    check,
                    unfinished=self._unfinished,
                    ahead=self._ahead,
                    markers=self._markers,
                )
            )
        except OSError:
            return False
        self.check = check
        return True

    def _lose_root(self) -> None:
        """Note that the root is away; log it once."""
        if not self.scanner.lost:
            self._log.error("watch.lost", path=self._path, fix="bring the folder back; it is looked for each second")
        self.scanner.lost, self._announced = True, None
        self.watching.set()


@dataclass(slots=True)
class Findings:
    """What is at hinted paths: files to settle, directories to scan (True: with all below), and nothing (``gone``).

    ``cut_short``: too many files were open to look at all of them.
    """

    files: set[bytes] = field(default_factory=set)
    directories: dict[bytes, bool] = field(default_factory=dict)
    gone: set[bytes] = field(default_factory=set)
    cut_short: bool = False


def look_at(watch: WatchConfig, folder: Folder, ignore: Ignore, unfinished: Unfinished, hints: Hints) -> Findings:
    """Return what is at each hinted path; note downloads in ``unfinished``. Blocking, unless all were just closed."""
    # Settling looks at the closed files next, and another event reports one when it goes.
    findings = Findings({path for path in hints.closed if not ignore.ignores_file(path)})
    for path in hints.paths | (hints.closed - findings.files):
        if not watch.recursive and b"/" in path:
            continue
        if ignore.is_marker(path):
            _add_marked(watch, ignore, path, findings)
            continue
        file_ignored, directory_ignored = ignore.ignores_file(path), ignore.ignores_directory(path)
        if directory_ignored:
            # Perhaps an unfinished download that is gone: look at the files that wait for it.
            findings.files |= {waiting for waiting in unfinished.note(path) if not ignore.ignores_file(waiting)}
        if file_ignored and directory_ignored:
            continue
        is_file, is_directory = _kind_of(folder, path, findings)
        if is_file and not file_ignored:
            findings.files.add(path)
        if is_directory and watch.recursive and not directory_ignored:
            findings.directories[path] = True
    return findings


def _kind_of(folder: Folder, path: bytes, findings: Findings) -> tuple[bool, bool]:
    """Return whether a regular file, and whether a directory, may be at a path; note in ``findings`` if it is gone."""
    try:
        mode = folder.stat(path).st_mode
    except Gone:
        findings.gone.add(path)
    except (NotRegular, FileFault):
        pass
    except Fault as error:
        if not lacks_descriptors(error):
            # Unknown: if it is a file, settling waits for it and logs why; if it is a directory, it is scanned soon.
            return True, True
        findings.cut_short = True
    else:
        return stat.S_ISREG(mode), stat.S_ISDIR(mode)
    return False, False


def _add_marked(watch: WatchConfig, ignore: Ignore, marker: bytes, findings: Findings) -> None:
    """Add the file or folder that this ready marker is for; if its name doesn't determine that, scan."""
    path = marked(watch.ready_marker, marker)
    if watch.links_folders and path and b"/" not in path and not ignore.ignores_directory(path):
        findings.directories[path] = True
    elif path is None:
        findings.directories.setdefault(marker.rpartition(b"/")[0], False)
    elif not ignore.ignores_file(path):
        findings.files.add(path)
