"""The finish stage, linked → finished: write the file's own link file, then keep, move or delete the file.

A file that is open for writing, or whose disk is full or away, is tried again after a pause. Until then other files are
finished, and the link in ``links.jsonl`` is valid whether this succeeds or not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from presignd.config import WatchConfig
from presignd.errors import Fault, FileFault
from presignd.ledger.changes import Change
from presignd.model import FileVersion, Link, State
from presignd.pipeline.faults import quarantine
from presignd.pipeline.files.folder import Folder
from presignd.pipeline.finish.link_file import write_link_file
from presignd.pipeline.finish.remove import Finished, FinishOutcome, keep_move_or_delete, moves_or_deletes
from presignd.pipeline.stage import Item, Queue, apply_each
from presignd.runtime.heartbeat import alive
from presignd.states import Event
from presignd.system.clock import utcnow

if TYPE_CHECKING:
    from presignd.pipeline.in_effect import Shared

LONGEST_PAUSE = 10.0
"""Longest pause before a retry, in seconds: the pause doubles with each retry."""

REWRITES = 4
"""Link files that are rewritten at the same time: each takes a thread, and uploads need threads too."""

WORKERS = 16
"""Workers of one watch, each of which moves, deletes or gives a link file to one file at a time: they wait for the
disk, not for a processor. Each watch has its own workers, as its disk may hang."""


@dataclass(slots=True)
class _Job:
    """One linked version: what is done so far, and which problems were logged.

    ``needs_link_file``: the file's own link file is still to be written. ``left_out``: it was not written, because the
    file's folder was gone or another file had its name. ``done``: how the last try ended; busy before the first.
    ``pause``: seconds before the next try.
    """

    item: Item
    needs_link_file: bool
    pause: float
    left_out: bool = False
    done: Finished = field(default_factory=lambda: Finished(FinishOutcome.BUSY))
    logged: set[tuple[str, str]] = field(default_factory=set)

    @property
    def version(self) -> FileVersion:
        """The version as the ledger has it."""
        return self.item.version

    @property
    def is_gone(self) -> bool:
        """Whether the file was not at its path."""
        return self.left_out or self.done.outcome is FinishOutcome.GONE

    @property
    def candidate(self) -> bytes | None:
        """The file's path if it has changed, or was gone, as it may be back without a new event; else None."""
        return self.done.path or self.version.path if self.is_gone or self.done.changed else None


class Finisher:
    """Finishes linked versions, each until its file is kept, moved, deleted or quarantined.

    ``waiting`` has the timer of each version that waits for another try or is being tried again, by file_id.
    """

    def __init__(
        self,
        watches: Sequence[WatchConfig],
        folders: Mapping[str, Folder],
        shared: Shared,
        leave: Callable[[Sequence[Item]], None],
    ) -> None:
        self._watches = {watch.name: watch for watch in watches}
        self._folders, self._shared, self._leave = folders, shared, leave
        self._jobs: dict[str, asyncio.Queue[_Job]] = {watch.name: asyncio.Queue() for watch in watches}
        self._done: Queue[_Job] = Queue()
        self._none_waits = asyncio.Event()
        self._rewriting = asyncio.Semaphore(REWRITES)
        self._turns: WeakValueDictionary[tuple[str, bytes], asyncio.Lock] = WeakValueDictionary()
        self.waiting: dict[str, asyncio.TimerHandle] = {}

    def has_work(self, version: FileVersion) -> bool:
        """Return whether the file must be moved, deleted or given a link file once its link is made."""
        watch = self._watches[version.watch]
        if watch.after == "keep" and not watch.link_file:
            return False
        return _has_link_file(watch, version) or moves_or_deletes(watch, version)

    def take(self, items: Sequence[Item]) -> None:
        """Announce the items that their link's commit finished; finish the others."""
        finished = [item for item in items if item.version.state is State.FINISHED]
        self._shared.announcer.done([item.version for item in finished])
        self._leave(finished)
        for item in items:
            if item.version.state is not State.FINISHED:
                self._jobs[item.version.watch].put_nowait(self._job(item))

    def _job(self, item: Item) -> _Job:
        needs_link_file = _has_link_file(self._watches[item.version.watch], item.version)
        return _Job(item, needs_link_file, self._shared.pauses.finish)

    async def rewrite_link_file(self, version: FileVersion) -> bool:
        """Write the link file of a finished version again, as its file is back after it was gone.

        It may have been left out, or the folder was renamed and has the link file of another path. Waits while a fault
        may pass. Returns False if the file is gone again.
        """
        watch = self._watches.get(version.watch)
        if watch is None or not _has_link_file(watch, version) or version.state is not State.FINISHED:
            return True
        job = _Job(Item(version), needs_link_file=True, pause=self._shared.pauses.finish)
        async with self._rewriting:
            while True:
                await self._write_link_file(job, self._folders[version.watch], watch)
                if not job.needs_link_file:
                    return not job.left_out
                await asyncio.sleep(job.pause)
                job.pause = min(LONGEST_PAUSE, 2 * job.pause)

    async def run(self, watch: str) -> None:
        """Finish one version of ``watch`` after the other, until cancelled; ``WORKERS`` of these loops run."""
        while True:
            job = await self._jobs[watch].get()
            with alive(f"worker of {job.version.file_id}"):
                try:
                    await self._try(job)
                except Exception as problem:  # noqa: BLE001 - guarantee 8: a bug in one file's work quarantines that file
                    await self._stop(job, problem)

    async def record(self) -> None:
        """Record the versions that are finished, many in one commit, until cancelled."""
        with alive("finisher") as heart:
            while True:
                with heart.resting():
                    jobs = await self._done.take()
                await self._record(jobs)

    async def wait_for_retries(self) -> None:
        """Return once no version waits for a retry."""
        while self.waiting:
            self._none_waits.clear()
            await self._none_waits.wait()

    def close(self) -> None:
        """Cancel the retries: the next start finishes these versions."""
        for timer in self.waiting.values():
            timer.cancel()

    # --- one try --------------------------------------------------------------------------------
    async def _try(self, job: _Job) -> None:
        if job.item.problem is not None:
            raise job.item.problem
        folder, watch = self._folders[job.version.watch], self._watches[job.version.watch]
        if job.needs_link_file:
            await self._write_link_file(job, folder, watch)
        if job.done.busy:
            job.done = await asyncio.to_thread(keep_move_or_delete, folder, watch, job.version)
            if job.left_out and job.done.outcome not in (FinishOutcome.KEPT, FinishOutcome.GONE):
                job.needs_link_file = True  # the folder is there again
        if job.done.problem:
            self._log_once("finish.retry", job, job.done.problem)
        if job.done.busy or (job.needs_link_file and not job.done.changed):
            self._retry_later(job)
        else:
            self._done.put_all([job])

    async def _write_link_file(self, job: _Job, folder: Folder, watch: WatchConfig) -> None:
        """Write the file's own link file; retry it later after a fault that passes, such as a full disk."""
        try:
            link = job.item.link = job.item.link or await self._shared.linker.remake_link(job.version)
            written = await self._publish(job.version, link, folder, watch)
        except Fault as problem:
            job.needs_link_file = not isinstance(problem, FileFault)
            self._log_once("link_file.failed", job, problem)
        else:
            job.needs_link_file, job.left_out = False, not written

    async def _publish(self, version: FileVersion, link: Link, folder: Folder, watch: WatchConfig) -> bool:
        """Write a link file; return False if the path has another file, or a newer version by ``put``."""
        async with self._turns.setdefault((version.watch, version.path), asyncio.Lock()):
            current = await self._shared.ledger.by_path(version.watch, version.path)
            if current is None or current.file_id != version.file_id:
                return False
            return await asyncio.to_thread(write_link_file, folder, watch, version, link.url)

    def _log_once(self, event: str, job: _Job, problem: Fault) -> None:
        """Log why a version is not finished, or its file has no link file: once for each reason."""
        if (event, problem.code) not in job.logged:
            job.logged.add((event, problem.code))
            fields = {"error_code": problem.code, "error": problem.message, "fix": problem.fix}
            self._shared.announcer.event(event, job.version, level="warning", **fields)

    # --- its end --------------------------------------------------------------------------------
    def _retry_later(self, job: _Job) -> None:
        """Try again after a pause, during which the item is not at work."""
        again = self._jobs[job.version.watch].put_nowait
        self.waiting[job.version.file_id] = asyncio.get_running_loop().call_later(job.pause, again, job)
        job.pause = min(LONGEST_PAUSE, 2 * job.pause)
        self._leave([job.item])

    async def _record(self, jobs: Sequence[_Job]) -> None:
        """Commit the versions that are finished; one whose file was gone is recorded as gone."""
        now, ended = utcnow(), list[_Job]()
        fields = [{"done_at": now, "gone_at": now} if job.is_gone else {"done_at": now} for job in jobs]
        changes = [Change(job.version, (Event.FINISH,), each) for job, each in zip(jobs, fields, strict=True)]
        for job, recorded in zip(jobs, await apply_each(self._shared.ledger, changes), strict=True):
            if isinstance(recorded, Exception):
                await self._stop(job, recorded)
            else:
                job.item.version = recorded
                ended.append(job)
        self._shared.announcer.done([job.version for job in ended])
        for job in ended:
            if candidate := job.candidate:
                self._shared.submit(job.version.watch, [candidate])
        self._forget(ended)

    async def _stop(self, job: _Job, problem: Exception) -> None:
        await quarantine(self._shared, job.version, problem)
        self._forget([job])

    def _forget(self, jobs: Sequence[_Job]) -> None:
        for job in jobs:
            self.waiting.pop(job.version.file_id, None)
        self._none_waits.set()
        self._leave([job.item for job in jobs])


def _has_link_file(watch: WatchConfig, version: FileVersion) -> bool:
    """Return whether the link goes beside the file too: of a folder that is linked as a whole, beside the folder.

    Beside a file that ``put`` handed over from outside it never does.
    """
    if not watch.link_file or version.path.startswith(b"/"):
        return False
    return version.is_manifest or not watch.links_folders
