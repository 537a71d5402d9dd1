"""Handle what ends an attempt to upload: end the version, settle the file again, retry it, or quarantine it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING

from presignd.errors import ChangedFault, Fault, FileFault, fault
from presignd.model import FileVersion
from presignd.pipeline.files.folder import Folder
from presignd.pipeline.stage import Item
from presignd.pipeline.upload.breakers import Breakers
from presignd.states import Event
from presignd.system.clock import utcnow
from presignd.telemetry.log import render_exception

if TYPE_CHECKING:
    from presignd.pipeline.in_effect import Shared

UNCOUNTED = ("slow_down", "store_full", "presigner_unreachable", "presigner_busy", "token_refused", "too_many_files")
"""Faults that are retried without limit. A small probe can't confirm that a store is busy or full, and a short outage
of the presigner says nothing about the file."""

LONGEST_UNCOUNTED = 30.0
"""Longest pause between such retries, in seconds.

Their number is due to the store, not the file, and may be large by the time the store recovers.
"""


class Vanished(Exception):
    """There is no regular file at the path."""


class Writing(Exception):
    """A program has the file open for writing."""


class GaveWay(Exception):
    """A suspect's part is stored, so it is no suspect any more; it stops because other suspects wait."""


async def quarantine(shared: Shared, version: FileVersion, problem: Exception) -> None:
    """Quarantine ``version``, whatever its state, for a fault or an unexpected exception; a person must release it."""
    known = problem if isinstance(problem, Fault) else fault("internal_error", type(problem).__name__)
    now = await shared.ledger.by_id(version.file_id) or version
    stopped = await shared.ledger.apply(
        now, Event.QUARANTINE, error_code=known.code, error=known.message, not_before=None
    )
    shared.announcer.quarantined(stopped, "" if known is problem else render_exception(problem))


class UploadFaults:
    """Handles each fault of an upload by its class, and records the outcome."""

    def __init__(
        self,
        attempts: int,
        folders: Mapping[str, Folder],
        shared: Shared,
        breakers: Breakers,
        leave: Callable[[Item], None],
    ) -> None:
        self._attempts, self._folders, self._breakers, self._leave = attempts, folders, breakers, leave
        self._shared, self._ledger, self._announcer = shared, shared.ledger, shared.announcer

    async def handle(self, item: Item, problem: Exception) -> None:
        """Record the outcome of an attempt that failed.

        The item leaves: the version is back in the ledger's queue, or has ended.
        """
        try:
            await self._record(item.version, problem)
        except Exception as bug:  # noqa: BLE001 - guarantee 8: a bug in one file's work quarantines that file
            await quarantine(self._shared, item.version, bug)
        finally:
            self._leave(item)

    async def _record(self, version: FileVersion, problem: Exception) -> None:
        version = await self._ledger.by_id(version.file_id) or version  # the attempt may have changed its key
        if isinstance(problem, Vanished):
            self._announcer.done([await self._ledger.apply(version, Event.VANISH, done_at=utcnow())])
        elif isinstance(problem, Writing):
            await self._ledger.apply(version, Event.RETRY, not_before=utcnow() + self._shared.pauses.writer)
        elif isinstance(problem, GaveWay):
            await self._ledger.apply(version, Event.RETRY, not_before=None)
        elif isinstance(problem, ChangedFault):
            self._announcer.done([await self._ledger.apply(version, Event.SUPERSEDE, done_at=utcnow())])
            self._shared.submit(version.watch, [version.path])
        elif isinstance(problem, FileFault) or not isinstance(problem, Fault):
            await quarantine(self._shared, version, problem)
        elif await self._breakers.blames_file(version.watch, problem, again=problem.code == version.error_code):
            await self._retry(version, problem)
        else:
            await self._ledger.apply(version, Event.RETRY, not_before=None, error_code=problem.code, error="")

    async def _retry(self, version: FileVersion, problem: Fault) -> None:
        """Retry with backoff, or quarantine after ``upload.attempts`` faults that count."""
        counts = await self._counts(version, problem)
        faults = version.faults + counts
        if faults >= self._attempts:
            await quarantine(self._shared, version, problem)
            return
        backoff = self._shared.pauses.backoff
        own = backoff(faults) if counts else backoff(version.attempt, cap=LONGEST_UNCOUNTED)
        later = await self._ledger.apply(
            version,
            Event.RETRY,
            faults=faults,
            not_before=utcnow() + timedelta(seconds=problem.retry_after or own),
            error_code=problem.code,
            error=problem.message,
        )
        fields = {"attempt": version.attempt, "error_code": problem.code, "error": problem.message}
        self._announcer.event("upload.retry", later, level="warning", **fields)

    async def _counts(self, version: FileVersion, problem: Fault) -> bool:
        """Return whether a fault counts against the file.

        A read error counts only while the watch's folder is there.
        """
        if problem.code == "read_error" and not version.path.startswith(b"/"):
            return await asyncio.to_thread(self._folders[version.watch].still_there)
        return problem.code not in UNCOUNTED
