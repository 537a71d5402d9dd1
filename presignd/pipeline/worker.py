"""Takes one claimed version through the stages, and records what became of it.

Each step looks first whether it was done, does its effect, and commits: a crash in between leaves the
earlier state, and the same step runs again. Expected failures are faults, decided in ``_decide``; anything
else is a bug that quarantines this one file.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

from presignd.config import Config
from presignd.errors import ChangedFault, Fault, FileFault
from presignd.ledger import Ledger
from presignd.model import Candidate, FileVersion, Link, Source, State
from presignd.pipeline.announce import Announcer
from presignd.pipeline.faults import Quarantine
from presignd.pipeline.finish.finisher import Finisher
from presignd.pipeline.finish.link import Linker
from presignd.pipeline.put import PutRequests
from presignd.pipeline.upload.breakers import Gates
from presignd.pipeline.upload.slots import Slots
from presignd.pipeline.upload.transfer import Room, Running, Stored, Transfer, Vanished, Writing
from presignd.runtime.heartbeat import alive
from presignd.states import Event, backoff
from presignd.system.clock import utcnow

WRITER_PAUSE = timedelta(milliseconds=500)
UNCOUNTED = ("slow_down", "store_full", "presigner_unreachable", "presigner_busy", "token_refused", "too_many_files")
"""Faults that are retried without limit: of a store that is busy or full a small probe tells little, and that
the presigner was away for a moment tells nothing of a file."""
LONGEST_UNCOUNTED = 30.0
"""Seconds at most until such a retry: its attempts are the store's, and may be many by the time it is well again."""


class Worker:
    """Runs versions through upload, verify, link and finish; many side by side."""

    def __init__(
        self,
        config: Config,
        ledger: Ledger,
        *,
        linker: Linker,
        announcer: Announcer,
        finisher: Finisher,
        quarantine: Quarantine,
        rooms: dict[str, Room],
        gates: Gates,
        slots: Slots,
        host: str,
        puts: PutRequests,
        submit: Callable[[list[Candidate]], None],
        on_link: Callable[[Link], None],
    ) -> None:
        self._config, self._ledger, self._linker, self._announcer = config, ledger, linker, announcer
        self._finisher, self._quarantine = finisher, quarantine
        self._rooms, self._gates, self._slots, self._host = rooms, gates, slots, host
        self._puts, self._submit, self._on_link = puts, submit, on_link
        self.running: dict[str, Running] = {}

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
            await self._quarantine.put(await self._ledger.by_id(version.file_id) or version, problem)
        except Exception as bug:  # noqa: BLE001 - contract §4: a bug met in one file's work quarantines that file
            await self._quarantine.put_for_bug(version, bug)

    async def _advance(self, version: FileVersion) -> None:
        if version.state is State.UPLOADING:
            verified = await self._upload(version)
            if verified is None:
                return
            version = verified
        link = None
        if version.state is State.VERIFIED:
            stays = not self._finisher.has_work(version)
            version, link = await self._linker.link(version, self._expires(version), finish=stays)
            self._on_link(link)
            if stays:
                self._announcer.done([version])
                return
        await self._finisher.finish(version, link)

    async def _upload(self, version: FileVersion) -> FileVersion | None:
        """Upload; return the verified version, or None when it went another way."""
        room = self._rooms[version.watch]
        # A queued version goes where it was queued for, though its watch has another bucket by now.
        if version.bucket != room.watch.bucket:
            room = replace(room, bucket=room.bucket.named(version.bucket))
        running = self.running[version.file_id]
        try:
            transfer = Transfer(
                room,
                version,
                self._ledger,
                self._config.upload,
                slots=self._slots,
                host=self._host,
                put=self._puts.get(version.file_id),
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
        put = self._puts.get(version.file_id)
        asked = put.expires if put else None
        return asked or self._rooms[version.watch].watch.link_expires or self._config.presign.get_expires

    @property
    def at_work(self) -> set[str]:
        """The versions, by file_id, that are worked on or wait to be finished."""
        return {*self.running, *self._finisher.waiting}

    async def _end(self, version: FileVersion, event: Event) -> None:
        ended = await self._ledger.apply(version, event, done_at=utcnow())
        self._announcer.done([ended])

    # --- faults ---------------------------------------------------------------------------------

    async def _decide(self, version: FileVersion, problem: Fault) -> None:
        """Do what the fault's class says."""
        version = await self._ledger.by_id(version.file_id) or version  # its key may have moved on
        if isinstance(problem, ChangedFault):
            await self._end(version, Event.SUPERSEDE)
            self._submit([Candidate(version.watch, version.path, Source.EVENT)])
        elif isinstance(problem, FileFault):
            await self._quarantine.put(version, problem)
        elif await self._gates.is_files_own(version.watch, problem, again=problem.code == version.error_code):
            await self._count(version, problem)
        else:
            await self._ledger.apply(version, Event.RETRY, not_before=None, error_code=problem.code, error="")

    async def _count(self, version: FileVersion, problem: Fault) -> None:
        """Try again with backoff, or quarantine after ``attempts``."""
        counts = await self._counts(version, problem)
        faults = version.faults + counts
        if faults >= self._config.upload.attempts:
            await self._quarantine.put(version, problem)
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
