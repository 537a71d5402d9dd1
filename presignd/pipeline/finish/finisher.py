"""The finish stage, linked → finished: write the file's own link file, then keep, move or delete the file.

A file that is open for writing, or whose disk is full or away, is tried again after a pause. It holds no slot
meanwhile, and the link in ``links.jsonl`` is valid whether this succeeds or not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

from presignd.config import WatchConfig
from presignd.errors import Fault, FileFault
from presignd.ledger import Ledger
from presignd.model import Candidate, FileVersion, Link, Source, State
from presignd.pipeline.announce import Announcer
from presignd.pipeline.faults import Quarantine
from presignd.pipeline.files.folder import Folder
from presignd.pipeline.files.lease import has_writer
from presignd.pipeline.finish.link import Linker
from presignd.pipeline.finish.link_file import write_link_file
from presignd.pipeline.finish.remove import keep_move_or_delete
from presignd.pipeline.finish.safety import Finished, FinishOutcome, moves_or_deletes
from presignd.states import Event
from presignd.system.clock import utcnow

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0
"""Seconds before the first retry, and at most: the pause doubles with each retry."""

REWRITES = 4
"""Link files that are rewritten at the same time: each takes a thread, and uploads need threads too."""


@dataclass(slots=True)
class _Job:
    """One linked version: what is done so far, and which problems were logged.

    ``needs_link_file``: the file's own link file is still to be written. ``left_out``: it was not, because the file's
    folder was gone or another file had its name.
    """

    version: FileVersion
    link: Link | None
    needs_link_file: bool
    left_out: bool = False
    done: Finished | None = None
    logged: set[tuple[str, str]] = field(default_factory=set)


class Finisher:
    """Finishes linked versions, each until its file is kept, moved, deleted or quarantined."""

    def __init__(
        self,
        watches: Mapping[str, WatchConfig],
        folders: Mapping[str, Folder],
        ledger: Ledger,
        *,
        linker: Linker,
        announcer: Announcer,
        quarantine: Quarantine,
        submit: Callable[[list[Candidate]], None],
    ) -> None:
        self._watches, self._folders, self._ledger = watches, folders, ledger
        self._linker, self._announcer, self._quarantine, self._submit = linker, announcer, quarantine, submit
        self._retries: dict[str, asyncio.Task[None]] = {}
        self._rewriting = asyncio.Semaphore(REWRITES)
        self._turns: WeakValueDictionary[tuple[str, bytes], asyncio.Lock] = WeakValueDictionary()

    def has_work(self, version: FileVersion) -> bool:
        """Return whether anything is to be done with the file once its link is made."""
        watch = self._watches[version.watch]
        return bool(watch.link_file) or moves_or_deletes(watch, version)

    async def finish(self, version: FileVersion, link: Link | None) -> None:
        """Finish a linked version; ``link`` is None where an earlier run made it.

        Returns once it is finished or quarantined, or a retry is scheduled.
        """
        needs_link_file = bool(self._watches[version.watch].link_file) and not version.path.startswith(b"/")
        await self._try(_Job(version, link, needs_link_file), FIRST_PAUSE)

    async def rewrite_link_file(self, version: FileVersion) -> bool:
        """Write the link file of a finished version again, as its file is back after it was gone.

        It may have been left out, or the folder was renamed meanwhile and has the link file of that path. Returns False
        if the file is gone again or its path has a newer version. A fault that passes is waited for.
        """
        watch = self._watches.get(version.watch)
        if watch is None or not watch.link_file or version.state is not State.FINISHED:
            return True
        job, pause = _Job(version, None, needs_link_file=True), FIRST_PAUSE
        async with self._rewriting:
            while True:
                await self._write_link_file(job, self._folders[version.watch], watch)
                if not job.needs_link_file:
                    return not job.left_out
                await asyncio.sleep(pause)
                pause = min(LONGEST_PAUSE, 2 * pause)

    @property
    def waiting(self) -> set[str]:
        """The ``file_id`` of each version that waits for a retry or is in one."""
        return set(self._retries)

    async def wait_for_retries(self) -> None:
        """Return once no version waits for a retry."""
        while self._retries:
            await asyncio.wait(self._retries.values())

    async def close(self) -> None:
        """Cancel the retries: the next start finishes these versions."""
        retries = list(self._retries.values())
        for task in retries:
            task.cancel()
        await asyncio.gather(*retries, return_exceptions=True)

    # --- one try --------------------------------------------------------------------------------
    async def _try(self, job: _Job, pause: float) -> None:
        folder, watch = self._folders[job.version.watch], self._watches[job.version.watch]
        if job.needs_link_file:
            await self._write_link_file(job, folder, watch)
        try:
            if job.done is None or job.done.busy:
                job.done = await asyncio.to_thread(keep_move_or_delete, folder, watch, job.version, has_writer)
                if job.left_out and job.done.outcome not in (FinishOutcome.KEPT, FinishOutcome.GONE):
                    job.needs_link_file = True  # the folder is there again
        except FileFault as problem:
            await self._quarantine.record(job.version, problem)
            return
        if job.done.problem:
            self._log_once("finish.retry", job, job.done.problem)
        if job.done.busy or (job.needs_link_file and not job.done.changed):
            self._retry_later(job, pause)
        else:
            await self._end(job, job.done)

    async def _write_link_file(self, job: _Job, folder: Folder, watch: WatchConfig) -> None:
        """Write the file's own link file; retry it later after a fault that passes, such as a full disk."""
        try:
            job.link = job.link or await self._linker.remake_link(job.version)
            written = await self._publish(job.version, job.link, folder, watch)
        except Fault as problem:
            job.needs_link_file = not isinstance(problem, FileFault)
            self._log_once("link_file.failed", job, problem)
        else:
            job.needs_link_file, job.left_out = False, not written

    async def _publish(self, version: FileVersion, link: Link, folder: Folder, watch: WatchConfig) -> bool:
        """Write a link file; return False if the path has another file, or a newer version by ``put``."""
        async with self._turns.setdefault((version.watch, version.path), asyncio.Lock()):
            current = await self._ledger.by_path(version.watch, version.path)
            if current is None or current.file_id != version.file_id:
                return False
            return await asyncio.to_thread(write_link_file, folder, watch, version, link.url)

    async def _end(self, job: _Job, done: Finished) -> None:
        """Record the version as finished, and as gone if its file was; submit a file that has changed as a candidate.

        So is a file that was gone: it may have come back before the commit, without an event after it.
        """
        version, now = job.version, utcnow()
        gone = {"gone_at": now} if job.left_out or done.outcome is FinishOutcome.GONE else {}
        self._announcer.done([await self._ledger.apply(version, Event.FINISH, done_at=now, **gone)])
        if done.changed or gone:
            self._submit([Candidate(version.watch, done.path or version.path, Source.EVENT)])

    def _log_once(self, event: str, job: _Job, problem: Fault) -> None:
        """Log why a version is not finished, or its file has no link file: once for each reason."""
        if (event, problem.code) not in job.logged:
            job.logged.add((event, problem.code))
            fields = {"error_code": problem.code, "error": problem.message, "fix": problem.fix}
            self._announcer.event(event, job.version, level="warning", **fields)

    # --- retries --------------------------------------------------------------------------------
    def _retry_later(self, job: _Job, pause: float) -> None:
        file_id = job.version.file_id
        task = asyncio.create_task(self._retry(job, pause), name=f"finish {file_id}")
        self._retries[file_id] = task
        task.add_done_callback(lambda ended: self._forget(file_id, ended))

    async def _retry(self, job: _Job, pause: float) -> None:
        await asyncio.sleep(pause)
        try:
            await self._try(job, min(LONGEST_PAUSE, 2 * pause))
        except Exception as bug:  # noqa: BLE001 - guarantee 8: a bug in one file's work quarantines that file
            await self._quarantine.record_bug(job.version, bug)

    def _forget(self, file_id: str, ended: asyncio.Task[None]) -> None:
        if self._retries.get(file_id) is ended:  # a retry that failed has scheduled the next one
            del self._retries[file_id]
