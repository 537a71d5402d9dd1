"""Handle the fault of an upload: settle the file again, retry it, let it wait, or quarantine it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import timedelta

from presignd.config import UploadConfig
from presignd.errors import ChangedFault, Fault, FileFault, fault
from presignd.ledger import Ledger
from presignd.model import Candidate, FileVersion, Source
from presignd.pipeline.announce import Announcer
from presignd.pipeline.files.folder import Folder
from presignd.pipeline.upload.breakers import Breakers
from presignd.states import Event, backoff
from presignd.system.clock import utcnow
from presignd.telemetry.log import render_exception

UNCOUNTED = ("slow_down", "store_full", "presigner_unreachable", "presigner_busy", "token_refused", "too_many_files")
"""Faults that are retried without limit. A small probe can't confirm that a store is busy or full, and a short outage
of the presigner tells nothing about the file."""

LONGEST_UNCOUNTED = 30.0
"""Longest pause between such retries, in seconds.

Their number is due to the store, not the file, and may be large by the time the store recovers.
"""


class Quarantine:
    """Records versions as quarantined, which a person must release, and logs ``file.quarantined``."""

    def __init__(self, ledger: Ledger, announcer: Announcer) -> None:
        self._ledger, self._announcer = ledger, announcer

    async def record(self, version: FileVersion, problem: Fault, exception: str = "") -> FileVersion:
        """Quarantine ``version`` for ``problem``; it must be as the ledger has it. Return it as recorded."""
        stopped = await self._ledger.apply(
            version, Event.QUARANTINE, error_code=problem.code, error=problem.message, not_before=None
        )
        self._announcer.quarantined(stopped, fix=problem.fix, exception=exception)
        return stopped

    async def record_bug(self, version: FileVersion, bug: Exception) -> FileVersion:
        """Quarantine ``version``, whatever its state, for an unexpected exception; return it as recorded."""
        now = await self._ledger.by_id(version.file_id) or version
        return await self.record(now, fault("internal_error", type(bug).__name__), render_exception(bug))


class UploadFaults:
    """Handles each fault of an upload by its class, and records what follows."""

    def __init__(
        self,
        folders: Mapping[str, Folder],
        upload: UploadConfig,
        ledger: Ledger,
        *,
        announcer: Announcer,
        quarantine: Quarantine,
        breakers: Breakers,
        submit: Callable[[list[Candidate]], None],
        backoff: Callable[..., float] = backoff,
    ) -> None:
        self._folders, self._upload, self._ledger = folders, upload, ledger
        self._announcer, self._quarantine, self._breakers = announcer, quarantine, breakers
        self._submit, self._backoff = submit, backoff

    async def handle(self, version: FileVersion, problem: Fault) -> FileVersion:
        """Record what follows from the fault that ended an attempt; return the version as recorded."""
        version = await self._ledger.by_id(version.file_id) or version  # the attempt may have changed its key
        if isinstance(problem, ChangedFault):
            return await self._settle_again(version)
        if isinstance(problem, FileFault):
            return await self._quarantine.record(version, problem)
        again = problem.code == version.error_code
        if await self._breakers.blames_file(version.watch, problem, again=again):
            return await self._retry(version, problem)
        return await self._ledger.apply(version, Event.RETRY, not_before=None, error_code=problem.code, error="")

    async def _settle_again(self, version: FileVersion) -> FileVersion:
        ended = await self._ledger.apply(version, Event.SUPERSEDE, done_at=utcnow())
        self._announcer.done([ended])
        self._submit([Candidate(version.watch, version.path, Source.EVENT)])
        return ended

    async def _retry(self, version: FileVersion, problem: Fault) -> FileVersion:
        """Retry with backoff, or quarantine after ``upload.attempts`` faults that count."""
        counts = await self._counts(version, problem)
        faults = version.faults + counts
        if faults >= self._upload.attempts:
            return await self._quarantine.record(version, problem)
        own = self._backoff(faults) if counts else self._backoff(version.attempt, cap=LONGEST_UNCOUNTED)
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
        return later

    async def _counts(self, version: FileVersion, problem: Fault) -> bool:
        """Return whether a fault counts against the file.

        A read error counts only while the watch's folder is there.
        """
        if problem.code == "read_error" and not version.path.startswith(b"/"):
            return await asyncio.to_thread(self._folders[version.watch].still_there)
        return problem.code not in UNCOUNTED
