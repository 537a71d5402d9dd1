"""The view of the running pipeline that the control socket and the status page use.

Its synchronous methods are cheap, and safe to call at any time from the event loop.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Literal

from presignd.config import Config
from presignd.control.links import LinkRequests
from presignd.errors import UsageError
from presignd.inbox.inboxes import Inboxes, InboxView, inbox_views
from presignd.ledger import Ledger, Selection
from presignd.model import FileVersion, Link, State
from presignd.pipeline.announce import Announcer, shown_path
from presignd.pipeline.in_effect import InEffect, Watchers, Work
from presignd.pipeline.intake import needs_hash
from presignd.pipeline.put import STDIN, PutHandler, PutRequest, Stream, buffer
from presignd.pipeline.settle.lane import SettlingPath
from presignd.pipeline.unit.folders import UnitLook
from presignd.pipeline.upload.breakers import Trip
from presignd.runtime.frames import Frames
from presignd.runtime.outage import Trouble
from presignd.runtime.tasks import first_error, looping
from presignd.s3.limits import LARGEST_OBJECT
from presignd.system.clock import utcnow
from presignd.telemetry.log import get_logger
from presignd.verify.verifier import Verifier, verifying
from presignd.webhooks.webhooks import Webhooks

log = get_logger()


@dataclass(frozen=True, slots=True)
class FolderView:
    """The state of one watch. ``writer_check`` is ``lease`` or ``quiet``; ``lost`` while its folder is missing.

    ``next_scan`` is UTC, None when none is planned (no daemon).
    """

    watch: str
    writer_check: str = ""
    next_scan: datetime | None = None
    lost: bool = False


@dataclass(frozen=True, slots=True)
class InFlightView:
    """One upload in progress: bytes sent, bytes a second, seconds since the last progress."""

    version: FileVersion
    sent: int
    rate: float
    idle: float = 0.0


Part = Literal["bucket", "store", "presigner", "ledger", "links", "inbox"]

_WORDS: dict[Part, str] = {
    "store": "the store",
    "presigner": "the presigner",
    "ledger": "the ledger",
    "links": "the links file",
    "inbox": "an inbox",
}


@dataclass(frozen=True, slots=True)
class BlockedView:
    """What blocks more than one file: the bucket of one ``watch``, or, if that is "", a ``part`` that all need.

    ``inbox`` names an inbox that waits. ``code`` is one of ``errors.CODES``, ``cause`` the latest error's message,
    ``since`` UTC.
    """

    part: Part
    watch: str
    code: str
    cause: str
    since: datetime
    inbox: str = ""

    @property
    def what(self) -> str:
        """Return what uploads wait for, in words."""
        if self.inbox:
            return f"the inbox {self.inbox}"
        return f"the bucket of watch {self.watch}" if self.watch else _WORDS[self.part]


@dataclass
class Phase:
    """When the daemon started (UTC; None without a daemon), and whether it is starting, ready or draining."""

    started_at: datetime | None = None
    name: str = "starting"


class View:
    """Answers from memory and the ledger, for a daemon or for a command that runs without one.

    ``troubles`` are the links file's and the ledger's. ``working``: whether this process uploads. ``links`` makes and
    revokes links for people.
    """

    def __init__(
        self,
        in_effect: InEffect,
        ledger: Ledger,
        phase: Phase,
        *,
        watchers: Watchers,
        inboxes: Inboxes,
        puts: PutHandler,
        announcer: Announcer,
        troubles: Sequence[Trouble],
        webhooks: Webhooks,
        working: bool,
    ) -> None:
        self.ledger = ledger
        self.links = LinkRequests(in_effect, ledger, announcer)
        self.webhooks = webhooks
        self._in_effect, self._phase = in_effect, phase
        self._watchers, self._puts = watchers, puts
        self._inboxes = inboxes
        self._troubles, self._working = troubles, working

    @property
    def config(self) -> Config:
        """The configuration in effect."""
        return self._in_effect.config

    @property
    def started_at(self) -> datetime | None:
        """When the daemon started (UTC); None without a daemon."""
        return self._phase.started_at

    @property
    def phase(self) -> str:
        """``starting``, ``ready`` (every folder is watched) or ``draining``."""
        return self._phase.name

    def folders(self) -> Sequence[FolderView]:
        """Return every watch, in the configuration's order."""
        return [
            FolderView(
                watcher.name,
                watcher.check.mode if watcher.check else "",
                watcher.scanner.next_scan_at,
                watcher.scanner.lost,
            )
            for watcher in self._watchers
        ]

    def settling(self) -> Sequence[SettlingPath]:
        """Return what is settling now, and the folders that are linked as a whole and wait for their files."""
        paths = [path for watcher in self._watchers for path in watcher.lane.snapshot()]
        return [*paths, *self._units()]

    def settling_at(self, watch: str, path: bytes) -> SettlingPath | None:
        """Return the file or folder at a path if it is settling."""
        unit = next((each for each in self._units() if (each.watch, each.path) == (watch, path)), None)
        return unit or self._watchers.settling(watch, path)

    def _units(self) -> list[SettlingPath]:
        found = self._in_effect.work.units.waiting()
        return [SettlingPath(watch, folder, since, f"as a whole: {why}") for watch, folder, since, why in found]

    def unit_at(self, watch: str, path: bytes) -> UnitLook | None:
        """Look at a folder that may be linked as a whole; return None for any other path. Blocking."""
        return self._in_effect.work.units.look_at(watch, path)

    def in_flight(self) -> Sequence[InFlightView]:
        """Return what is being uploaded now."""
        now = time.monotonic()
        return [
            InFlightView(run.version, run.sent, run.rate(now), now - run.last_progress)
            for work in self._in_effect.works
            for run in work.dispatcher.at_work.values()
        ]

    def blocked(self) -> Sequence[BlockedView]:
        """Return what blocks more than one file: the ledger, the links file, the store, the presigner, a bucket."""
        parts = [
            BlockedView(trouble.part, "", trouble.problem.code, trouble.problem.message, trouble.since)
            for trouble in self._troubles
            if trouble.problem
        ]
        inboxes = [
            BlockedView("inbox", "", each.problem.code, each.problem.message, each.since, each.name)
            for each in self._inboxes.troubles()
            if each.problem
        ]
        return [*parts, *_tripped(self._in_effect.work), *inboxes]

    async def inboxes(self) -> Sequence[InboxView]:
        """Return every inbox, in the configuration's order."""
        return await inbox_views(self.config, self.ledger)

    def hint(self, watch: str, path: bytes) -> None:
        """Settle a path now, because a client waits for it, unless its watch ignores it."""
        if not self.ignored(watch, path):
            self._watchers.submit(watch, [path])

    def ignored(self, watch: str, path: bytes) -> str:
        """Return why a watch ignores ``path``, in words; "" if it doesn't."""
        work = self._in_effect.work
        if b"/" in path and not work.buckets[watch].watch.recursive:
            return "recursive = false: it lies in a folder below"
        return work.ignores[watch].why(path)

    async def put(
        self,
        fd: int,
        path: bytes,
        watch: str,
        *,
        key: str | None,
        expires: int | None,
        by_uid: int,
        progress: Callable[[int], None],
    ) -> Link:
        """Upload what ``fd`` reads, through the same pipeline, and return its link.

        ``fd`` is a regular file open for reading only; the caller closes it after the call. ``path`` is as in
        ``FileVersion`` (below the watch's root, or absolute for a file from elsewhere) and only a name: it is never
        opened.
        ``key`` None means the watch's template. ``progress`` takes bytes sent so far, on the event loop.
        Raises ``Refused`` or ``FileFault`` (exit 4) if the file is quarantined, and ``Unavailable`` or the store's
        ``Fault`` if there is no daemon that would retry. Cancelled when the client disconnects.
        """
        work = self._in_effect.work
        folder = work.opened[watch]
        log.info("put.received", watch=watch, path=shown_path(folder.root, path), by_uid=by_uid)
        request = PutRequest(fd, expires, progress)
        return await self._puts.put(request, path, work.buckets[watch].watch, folder=folder, key=key)

    async def put_stream(
        self,
        connection: socket.socket,
        name: bytes,
        watch: str,
        *,
        key: str | None,
        expires: int | None,
        by_uid: int,
        progress: Callable[[int], None],
    ) -> Link:
        """Upload what ``connection`` sends in frames (``runtime.frames``) under a ``name``, and return its link.

        A stream that ends within the first part is uploaded like a file. Raises and is cancelled as ``put``; also
        raises ``UsageError`` if the watch's key needs the hash, which is known only when all is sent.
        """
        work = self._in_effect.work
        path, watched, upload = STDIN + name, work.buckets[watch].watch, work.config.upload
        if needs_hash(watched.key) and not key:
            raise UsageError(
                f"put: the key of watch {watch} holds {{sha256}}, which is known too late", fix="give --key"
            )
        log.info("put.received", watch=watch, path=shown_path(b"", path), by_uid=by_uid)
        largest = min(watched.max_size or LARGEST_OBJECT, LARGEST_OBJECT)
        put = partial(self._puts.put, path=path, watch=watched, folder=work.opened[watch], key=key)
        with buffer(work.config.ledger.path) as fd:
            stream = Stream(Frames(connection), fd, upload, largest)
            if await stream.read_first():
                return await put(PutRequest(fd, expires, progress))
            try:
                async with looping() as loops:
                    loops.start("reading standard input", stream.read_on())
                    return await put(PutRequest(fd, expires, progress, stream))
            except BaseExceptionGroup as group:
                raise first_error(group) from None

    def verifying(self, *, download: bool) -> AbstractAsyncContextManager[Verifier]:
        """Compare files with their objects, by the configuration in effect at the beginning."""
        work = self._in_effect.work
        return verifying(work.config, work.rate, download=download)

    async def requeue(self, selection: Selection) -> list[FileVersion]:
        """Put quarantined versions back in the queue, and finish those that were linked; return them."""
        back = await self.ledger.requeue(selection, utcnow())
        work = self._in_effect.work  # after the wait: an earlier one may be retired by now
        for version in back:
            if version.state is State.LINKED and self._working and version.watch in work.buckets:
                work.resume([version])
        work.dispatcher.wake()
        return back


def _tripped(work: Work) -> list[BlockedView]:
    breakers = work.breakers
    trips: list[tuple[Part, str, Trip | None]] = [
        ("store", "", breakers.store.trip),
        ("presigner", "", breakers.presigner.trip),
        *(("bucket", name, breaker.trip) for name, breaker in breakers.watches.items()),
    ]
    return [
        BlockedView(part, name, trip.fault.code, trip.fault.message, trip.since) for part, name, trip in trips if trip
    ]
