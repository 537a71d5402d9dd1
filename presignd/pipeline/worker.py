"""Takes one claimed version through the stages, and records what became of it.

Each step looks first whether it was done, does its effect, and commits: a crash in between leaves the
earlier state, and the same step runs again. Expected failures are faults, decided in ``_decide``; anything
else is a bug that quarantines this one file.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from presignd.config import Config
from presignd.errors import ChangedFault, Fault, FileFault, fault
from presignd.ledger import Ledger
from presignd.model import Candidate, FileVersion, Link, Source, State
from presignd.pipeline.announce import Announcer, utcnow
from presignd.pipeline.finish.decide import Finished, Outcome, takes_away
from presignd.pipeline.finish.link import Linker
from presignd.pipeline.finish.link_file import write_link_file
from presignd.pipeline.finish.remove import finish
from presignd.pipeline.settle.lease import has_writer
from presignd.pipeline.upload.breakers import Gates
from presignd.pipeline.upload.slots import Slots
from presignd.pipeline.upload.transfer import Held, Room, Running, Stored, Transfer, Vanished, Writing
from presignd.runtime.heartbeat import alive
from presignd.states import Event, backoff
from presignd.telemetry.log import render_exception

WRITER_PAUSE = timedelta(milliseconds=500)
BUSY_FIRST, BUSY_LONGEST = 0.5, 10.0
"""Seconds between looks at a linked file that somebody opened for writing before it was moved or deleted."""


UNCOUNTED = ("slow_down", "store_full", "presigner_unreachable", "presigner_busy", "token_refused", "too_many_files")
"""Faults that are retried without limit: of a store that is busy or full a small probe tells little, and that
the presigner was away for a moment tells nothing of a file."""
LONGEST_UNCOUNTED = 30.0
"""Seconds at most until such a retry: its attempts are the store's, and may be many by the time it is well again."""


@dataclass(slots=True)
class _Ending:
    """A linked version on its way out: what is done of it by now, and what was said of it."""

    version: FileVersion
    link: Link | None
    lacks_link_file: bool = True
    done: Finished | None = None
    told: set[tuple[str, str]] = field(default_factory=set)


class Worker:
    """Runs versions through upload, verify, link and finish; many side by side."""

    def __init__(
        self,
        config: Config,
        ledger: Ledger,
        *,
        linker: Linker,
        announcer: Announcer,
        rooms: dict[str, Room],
        gates: Gates,
        slots: Slots,
        host: str,
        offer: Callable[[list[Candidate]], None],
        on_link: Callable[[Link], None],
    ) -> None:
        self._config, self._ledger, self._linker, self._announcer = config, ledger, linker, announcer
        self._rooms, self._gates, self._slots, self._host = rooms, gates, slots, host
        self._offer, self._on_link = offer, on_link
        self.held: dict[str, Held] = {}
        self.running: dict[str, Running] = {}
        self._later: dict[str, asyncio.Task[None]] = {}

    async def process(self, version: FileVersion) -> None:
        """Take ``version`` from the state it has as far as it goes; a bug quarantines it alone."""
        self.running[version.file_id] = Running(version)
        try:
            with alive(f"worker of {version.file_id}"):
                await self._process(version)
        finally:
            del self.running[version.file_id]

    async def _process(self, version: FileVersion) -> None:
        try:
            await self._advance(version)
        except Fault as problem:
            await self._quarantine(await self._ledger.by_id(version.file_id) or version, problem)
        except Exception as bug:  # noqa: BLE001 - contract §4: a bug met in one file's work quarantines that file
            await self._quarantine_bug(version, bug)

    async def _advance(self, version: FileVersion) -> None:
        if version.state is State.UPLOADING:
            verified = await self._upload(version)
            if verified is None:
                return
            version = verified
        link = None
        if version.state is State.VERIFIED:
            stays = self._stays(version)
            version, link = await self._linker.link(version, self._expires(version), finish=stays)
            self._on_link(link)
            if stays:
                self._announcer.done([version])
                return
        await self._finish(_Ending(version, link))

    def _stays(self, version: FileVersion) -> bool:
        """Tell whether nothing is to be done with the file once its link is made."""
        watch = self._rooms[version.watch].watch
        return not (watch.link_file or takes_away(watch, version))

    async def _upload(self, version: FileVersion) -> FileVersion | None:
        """Upload; return the verified version, or None when it went another way."""
        room = self._rooms[version.watch]
        # A queued version goes where it was queued for, though its watch has another bucket by now.
        if version.bucket != room.watch.bucket:
            room = replace(room, bucket=room.bucket.named(version.bucket))
        held = self.held.get(version.file_id)
        running = self.running[version.file_id]
        try:
            transfer = Transfer(
                room,
                version,
                self._ledger,
                self._config.upload,
                slots=self._slots,
                host=self._host,
                held=held,
                running=running,
            )
            stored = await transfer.run()
        except Vanished:
            await self._end(version, Event.VANISH)
        except Writing:
            await self._ledger.apply(version, Event.RETRY, not_before=utcnow() + WRITER_PAUSE)
        except Fault as problem:
            await self._decide(version, problem)
        else:
            return await self._ledger.apply(stored.version, Event.VERIFY, **self._receipt(stored))
        return None

    def _receipt(self, stored: Stored) -> dict[str, Any]:
        """Return the fields that change as an upload is verified: of a first attempt, few of these."""
        receipt = {
            "fingerprint": stored.fingerprint,
            "checksum": stored.checksum,
            "part_size": stored.part_size,
            "upload_id": "",
            "etag": stored.etag,
            "version_id": stored.version_id,
            "adopted": stored.adopted,
            "signed_at": self._linker.now(),
            "error_code": "",
            "error": "",
        }
        return {name: value for name, value in receipt.items() if getattr(stored.version, name) != value}

    def _expires(self, version: FileVersion) -> int:
        held = self.held.get(version.file_id)
        asked = held.expires if held else None
        return asked or self._rooms[version.watch].watch.link_expires or self._config.presign.get_expires

    async def _leave_link_file(self, ending: _Ending) -> None:
        """Leave the link beside the file too; the one in links.jsonl stands whether this works or not.

        What passes, such as a full disk, is tried again later.
        """
        version = ending.version
        room = self._rooms[version.watch]
        ending.lacks_link_file = False
        if not room.watch.link_file or version.path.startswith(b"/"):
            return
        try:
            # Resumed: minted again as it was committed, so it is the same link.
            ending.link = ending.link or await self._linker.again(version)
            await asyncio.to_thread(write_link_file, room.folder, room.watch, version, ending.link.url)
        except Fault as problem:
            ending.lacks_link_file = not isinstance(problem, FileFault)
            self._tell_once("link_file.failed", ending, problem)

    async def _finish(self, ending: _Ending, pause: float = BUSY_FIRST) -> None:
        """Leave the link file; keep, move or delete the linked file. A failure waits for a person; the link stands."""
        if ending.lacks_link_file:
            await self._leave_link_file(ending)
        try:
            if ending.done is None or ending.done.busy:
                ending.done = await self._take_away(ending.version)
        except FileFault as problem:
            await self._quarantine(ending.version, problem)
            return
        done = ending.done
        if done.problem:
            self._tell_once("finish.retry", ending, done.problem)
        if done.busy or (ending.lacks_link_file and not done.changed):
            self._finish_later(ending, pause)
            return
        await self._end(ending.version, Event.FINISH)
        if done.changed:
            self._offer([Candidate(ending.version.watch, done.path or ending.version.path, Source.EVENT)])

    async def _take_away(self, version: FileVersion) -> Finished:
        room = self._rooms[version.watch]
        if not takes_away(room.watch, version):
            return Finished(Outcome.KEPT)
        return await asyncio.to_thread(finish, room.folder, room.watch, version, has_writer)

    def _tell_once(self, event: str, ending: _Ending, problem: Fault) -> None:
        """Say what keeps a linked file waiting, or a link from standing beside it: once for each reason."""
        if (event, problem.code) not in ending.told:
            ending.told.add((event, problem.code))
            told = {"error_code": problem.code, "error": problem.message, "fix": problem.fix}
            self._announcer.event(event, ending.version, level="warning", **told)

    def _finish_later(self, ending: _Ending, pause: float) -> None:
        """Look again when the writer may be through, without holding a slot meanwhile."""
        version = ending.version

        async def again() -> None:
            await asyncio.sleep(pause)
            try:
                await self._finish(ending, min(BUSY_LONGEST, 2 * pause))
            except Exception as bug:  # noqa: BLE001 - as in process
                await self._quarantine_bug(version, bug)

        task = asyncio.create_task(again(), name=f"finish {version.file_id}")
        self._later[version.file_id] = task
        task.add_done_callback(lambda ended: self._forget(version.file_id, ended))

    def _forget(self, file_id: str, ended: asyncio.Task[None]) -> None:
        if self._later.get(file_id) is ended:  # else one look later is planned by now
            del self._later[file_id]

    @property
    def at_work(self) -> set[str]:
        """The versions, by file_id, that are worked on or wait for a writer to be finished."""
        return {*self.running, *self._later}

    async def finished(self) -> None:
        """Return once no finish waits for a writer any more."""
        while self._later:
            await asyncio.wait(self._later.values())

    async def close(self) -> None:
        """Let go of finishes that wait for a writer: the next start takes them up."""
        later = list(self._later.values())
        for task in later:
            task.cancel()
        await asyncio.gather(*later, return_exceptions=True)

    async def _end(self, version: FileVersion, event: Event) -> None:
        ended = await self._ledger.apply(version, event, done_at=utcnow())
        self._announcer.done([ended])

    # --- faults ---------------------------------------------------------------------------------

    async def _decide(self, version: FileVersion, problem: Fault) -> None:
        """Do what the fault's class says."""
        version = await self._ledger.by_id(version.file_id) or version  # its key may have moved on
        if isinstance(problem, ChangedFault):
            await self._end(version, Event.SUPERSEDE)
            self._offer([Candidate(version.watch, version.path, Source.EVENT)])
        elif isinstance(problem, FileFault):
            await self._quarantine(version, problem)
        elif await self._gates.is_files_own(version.watch, problem, again=problem.code == version.error_code):
            await self._count(version, problem)
        else:
            await self._ledger.apply(version, Event.RETRY, not_before=None, error_code=problem.code, error="")

    async def _count(self, version: FileVersion, problem: Fault) -> None:
        """Try again with backoff, or quarantine after ``attempts``."""
        counts = await self._counts(version, problem)
        faults = version.faults + counts
        if faults >= self._config.upload.attempts:
            await self._quarantine(version, problem)
            return
        own = backoff(faults) if counts else backoff(version.attempt, cap=LONGEST_UNCOUNTED)
        pause = problem.retry_after or own
        later = await self._ledger.apply(
            version,
            Event.RETRY,
            faults=faults,
            not_before=utcnow() + timedelta(seconds=pause),
            error_code=problem.code,
            error=problem.message,
        )
        told = {"attempt": version.attempt, "error_code": problem.code, "error": problem.message}
        self._announcer.event("upload.retry", later, level="warning", **told)

    async def _counts(self, version: FileVersion, problem: Fault) -> bool:
        """Tell whether a fault says something of the file. A folder that is away, as its server is, reads none."""
        if problem.code == "read_error" and not version.path.startswith(b"/"):
            return await asyncio.to_thread(self._rooms[version.watch].folder.still_there)
        return problem.code not in UNCOUNTED

    async def _quarantine(self, version: FileVersion, problem: Fault, exception: str = "") -> None:
        stopped = await self._ledger.apply(
            version, Event.QUARANTINE, error_code=problem.code, error=problem.message, not_before=None
        )
        self._announcer.quarantined(stopped, fix=problem.fix, exception=exception)

    async def _quarantine_bug(self, version: FileVersion, bug: Exception) -> None:
        """Quarantine a file whose work met a bug, from wherever it stood then."""
        now = await self._ledger.by_id(version.file_id) or version
        await self._quarantine(now, fault("internal_error", type(bug).__name__), render_exception(bug))
