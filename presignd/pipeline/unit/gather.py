"""The loop of one watch whose folders are linked as a whole.

It gathers a folder's files, and records the folder, with its two own files, once all of them are stored. Then it
continues the unit until it is finished: it links the manifest, then links, moves or deletes the files.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

from presignd.errors import Fault
from presignd.ledger import LostUpdate
from presignd.ledger.changes import Change
from presignd.ledger.units import MEMBER_STATES, Marker, NewUnit, Unit
from presignd.model import FileVersion, Fingerprint, NewVersion, Source, State
from presignd.pipeline.intake import UPLOAD_PRIORITIES, make_version
from presignd.pipeline.stage import MOST, TURN, Item
from presignd.pipeline.unit.folders import (
    UnitLook,
    look_at_unit,
    marked_folders,
    remove_empty,
    sha256_of,
)
from presignd.pipeline.unit.manifest import (
    MANIFEST,
    MANIFEST_TYPE,
    SUMS,
    SUMS_TYPE,
    fingerprint_of_made,
    manifest_of,
    sums_of,
)
from presignd.pipeline.watch.scan import Scan
from presignd.runtime.crash_points import passed
from presignd.runtime.heartbeat import beat, living
from presignd.runtime.tasks import within
from presignd.states import LEFT, Event
from presignd.system.clock import utcnow
from presignd.system.threads import in_background

if TYPE_CHECKING:
    from presignd.pipeline.dispatch import Dispatcher
    from presignd.pipeline.files.folder import Folder
    from presignd.pipeline.files.ignore import Ignore
    from presignd.pipeline.finish.finisher import Finisher
    from presignd.pipeline.in_effect import Shared
    from presignd.pipeline.upload.bucket import Bucket

LOOK_SECONDS = 2.0
"""Longest time between two passes, in seconds: if a folder's files are all stored, only a pass finds its marker."""

HINTED_SHARE, LONGEST_GAP, SHARE = 10, 5.0, 100
"""Pauses between two looks at a folder, as multiples of the time that the last look took: after a hint (each of its
files that is verified is one) and 5 s at most, or without a hint."""

LONGEST_PAUSE = 0.5
"""Longest pause after a pass, in seconds; it is as long as the pass took."""

BUSY, HASHING = "its unit before is not finished", "SHA-256 sums of its files are computed"

SUMS_AT_ONCE, SUMS_BYTES = 256, 64 << 20
"""Most SHA-256 sums in one commit, and the bytes read after which they are committed: a crash loses those not
committed."""


# --- which files it has (pure) ------------------------------------------------------------------------
def is_member(version: FileVersion) -> bool:
    """Return whether a version of a watch with ``unit = "folder"`` belongs to its folder's unit, so has no own link.

    A file that ``put`` sent has a link of its own.
    """
    if version.is_made or version.path.startswith(b"/"):
        return False
    return version.priority != UPLOAD_PRIORITIES[Source.PUT]


class Gathering:
    """Judges the files of one folder, in any order: ``members`` has the file_ids of those that may be in its unit.

    ``changed`` are versions that wait for the unit and differ from their files now. They must end, because a newer
    version of their path waits for that.
    """

    def __init__(self) -> None:
        self.members: list[str] = []
        self.changed: list[FileVersion] = []
        self._lacking, self._first, self._stopped = 0, "", ""

    def add(self, path: bytes, found: Fingerprint, version: FileVersion | None) -> None:
        """Judge the file at ``path`` with the fingerprint ``found`` by the current version of the path."""
        if version is not None and version.state in MEMBER_STATES:
            if version.fingerprint == found and version.gone_at is None:
                self.members.append(version.file_id)
                return
            if version.state is State.VERIFIED and is_member(version):
                self.changed.append(version)
        self._lacking += 1
        name = path.decode("utf-8", "backslashreplace")
        self._first = self._first or name
        if version is not None and version.state in (State.QUARANTINED, State.IGNORED):
            self._stopped = self._stopped or f"{name} is {version.state}"

    @property
    def why(self) -> str:
        """Why the folder is not complete, "" if it is."""
        if not self._lacking:
            return ""
        total = self._lacking + len(self.members)
        which = self._stopped or f"the first is {self._first}"
        return f"{self._lacking} of its {total} files are not uploaded yet: {which}"


# --- the loop of a watch ------------------------------------------------------------------------------
@dataclass(slots=True)
class _Looked:
    """When a folder was looked at (monotonic), how many seconds that took, and whether there was a hint since."""

    at: float
    took: float
    hinted: bool = False

    @property
    def due(self) -> float:
        """When to look again (monotonic)."""
        if self.hinted:
            return self.at + min(LONGEST_GAP, HINTED_SHARE * self.took)
        return self.at + max(LOOK_SECONDS, SHARE * self.took)


class Waiting(NamedTuple):
    """A folder (below its watch's root) that is not complete: since when (UTC), and what it waits for, in words."""

    watch: str
    folder: bytes
    since: datetime
    why: str


class Gatherer:
    """The loop of one watch. ``waiting`` are its marked folders that are not complete, by name.

    ``lifetime`` returns how many seconds a manifest's link is valid.
    """

    def __init__(
        self,
        bucket: Bucket,
        folder: Folder,
        ignore: Ignore,
        shared: Shared,
        *,
        dispatcher: Dispatcher,
        finisher: Finisher,
        lifetime: Callable[[FileVersion], int | None],
    ) -> None:
        self._bucket, self._watch, self._folder, self._ignore = bucket, bucket.watch, folder, ignore
        self._shared, self._ledger, self._announcer = shared, shared.ledger, shared.announcer
        self._dispatcher, self._finisher, self._lifetime = dispatcher, finisher, lifetime
        self._markers = shared.markers.of(bucket.watch.name)
        self.waiting: Mapping[bytes, Waiting] = {}
        self._wake, self._retired, self._stop = asyncio.Event(), False, threading.Event()
        self._hashing: set[bytes] = set()
        self._looks: dict[bytes, _Looked] = {}

    def wake(self) -> None:
        """Look again soon: a file may be stored now, or a unit can be continued."""
        for look in self._looks.values():
            look.hinted = True
        self._wake.set()

    def look_at(self, name: bytes) -> UnitLook:
        """Look at a folder now. Blocking."""
        return look_at_unit(self._folder, self._watch, self._markers, name)

    def retire(self) -> None:
        """Begin nothing more."""
        self._retired = True
        self._stop.set()
        self._wake.set()

    async def run(self) -> None:
        """Gather and publish until cancelled."""
        self._markers.load(await self._ledger.units.markers(self._watch.name))
        try:
            async with asyncio.TaskGroup() as tasks:
                while not self._retired:
                    self._wake.clear()
                    began = time.monotonic()
                    await self._pass(tasks)
                    await self._rest(time.monotonic() - began)
        finally:
            self._stop.set()  # ends a hash that a thread is computing

    async def _rest(self, took: float) -> None:
        beat(within=LONGEST_PAUSE + LOOK_SECONDS)
        await asyncio.sleep(min(LONGEST_PAUSE, took))
        due = min((look.due for look in self._looks.values()), default=float("inf"))
        await within(min(LOOK_SECONDS, max(0.0, due - time.monotonic())), self._wake)

    async def _pass(self, tasks: asyncio.TaskGroup) -> None:
        """Continue the units that are not finished, and look at each folder whose marker is new."""
        busy = await self._advance_all()
        await self._end(await self._ledger.units.left(self._watch.name, MOST), Event.VANISH)
        waiting: dict[bytes, Waiting] = {}
        for name, marker in await asyncio.to_thread(marked_folders, self._folder, self._watch, self._ignore):
            if self._markers.is_new(name, marker):
                beat()
                before = self.waiting.get(name) or Waiting(self._watch.name, name, utcnow(), "")
                why = BUSY if name in busy else await self._look_if_due(name, marker, before.why, tasks)
                if why:
                    waiting[name] = before._replace(why=why)
        self.waiting = waiting
        self._looks = {name: look for name, look in self._looks.items() if name in waiting}

    async def _look_if_due(self, name: bytes, marker: Marker, before: str, tasks: asyncio.TaskGroup) -> str:
        """Look at a folder unless it was looked at just now; return what it waits for."""
        began = time.monotonic()
        if before and (last := self._looks.get(name)) is not None and began < last.due:
            return before
        why = await self._look(name, marker, tasks)
        self._looks[name] = _Looked(time.monotonic(), time.monotonic() - began)
        return why

    async def _look(self, name: bytes, marker: Marker, tasks: asyncio.TaskGroup) -> str:
        """Record a folder that is complete; return what it waits for, "" for nothing."""
        if name in self._hashing:
            return HASHING
        found, problem = await self._gather(name)
        await self._end(found.changed, Event.SUPERSEDE)
        if why := problem or found.why:
            return why
        if await self._ledger.units.without_sha256(found.members, 1):
            self._hashing.add(name)
            title = f"sums of {name.decode('utf-8', 'backslashreplace')}"
            tasks.create_task(living(title, lambda: self._hash(name, found.members)), name=title)
            return HASHING
        try:
            await self._complete(name, marker, found.members)
        except LostUpdate:
            return "its files changed meanwhile"
        except Fault as away:  # of the presigner, which gives the prefix
            return away.message
        return ""

    async def _gather(self, name: bytes) -> tuple[Gathering, str]:
        """Judge a folder's files by the ledger, and return why some could not be listed; a batch at a time."""
        gathering, scan = Gathering(), Scan(self._folder, self._ignore, name)
        async with aclosing(scan.in_thread()) as batches:
            async for batch in batches:
                beat()
                known = await self._ledger.known(self._watch.name, [path for path, *_ in batch])
                for path, *rest in batch:
                    gathering.add(path, Fingerprint(*rest), known.get(path))
        there = await asyncio.to_thread(self._folder.still_there) and scan.directories
        return gathering, "; ".join(scan.problems[:1]) if scan.problems or there else "it is away"

    async def _end(self, versions: Sequence[FileVersion], event: Event) -> None:
        """End verified versions whose files changed or are gone before their folder was complete."""
        if versions:
            ended = [Change(version, (event,), {"done_at": utcnow()}) for version in versions]
            self._announcer.done(await self._ledger.apply_all(ended))

    # --- sums -------------------------------------------------------------------------------------
    async def _hash(self, name: bytes, members: Sequence[str]) -> None:
        """Compute the SHA-256 sums that are not recorded: each file is read once more, one after the other."""
        try:
            while some := await self._ledger.units.without_sha256(members, SUMS_AT_ONCE):
                if not await self._hash_some(some):
                    break  # the next pass finds the reason
        finally:
            self._hashing.discard(name)
            self.wake()

    async def _hash_some(self, versions: Sequence[FileVersion]) -> bool:
        sums, size = list[tuple[str, str]](), 0
        for version in versions:
            beat()
            found = await in_background(sha256_of, self._folder, version, self._stop)
            if found:
                sums.append((version.file_id, found))
                size += version.size
            if not found or size >= SUMS_BYTES:
                break
        if sums:
            await self._ledger.units.record_sha256(sums)
        return bool(sums) and bool(found)

    # --- complete ---------------------------------------------------------------------------------
    async def _complete(self, name: bytes, marker: Marker, file_ids: Sequence[str]) -> None:
        """Record the unit, and queue its two own files. Raises ``LostUpdate``, and the presigner's ``Fault``."""
        made, prefix = utcnow(), await self._bucket.prefix()
        members = await self._ledger.units.members(file_ids)
        contents = await in_background(lambda: (manifest_of(name, made, members), sums_of(name, members)))
        manifest, sums = (fingerprint_of_made(content, made) for content in contents)
        new = NewUnit(
            self._watch.name,
            name,
            marker,
            made,
            file_ids,
            self._own(name, MANIFEST, manifest, prefix)._replace(path=name, content_type=MANIFEST_TYPE),
            self._own(name, SUMS, sums, prefix)._replace(path=name + b"/", content_type=SUMS_TYPE),
        )
        passed("unit.complete.before")
        done = await self._ledger.units.complete(new, utcnow())
        self._markers.note(name, marker)
        self._announcer.enqueued([entry for entry in done if entry.version.state is not State.VANISHED])
        self._announcer.done([entry.version for entry in done if entry.version.state is State.VANISHED])
        self._dispatcher.wake()

    def _own(self, name: bytes, file: str, fingerprint: Fingerprint, prefix: str) -> NewVersion:
        """Return the version of one of the unit's own files, with its key below the unit's prefix."""
        path = name + b"/" + file.encode()
        return make_version(self._watch, path, fingerprint, Source.EVENT, prefix=prefix)

    # --- units that are complete --------------------------------------------------------------------
    async def _advance_all(self) -> set[bytes]:
        """Move each unfinished unit one step on; return the folders of those that are still unfinished."""
        # Before the query: a manifest whose stage ends meanwhile has another state by then, and the next pass finds it.
        at_work = self._shared.in_effect.at_work()
        units = await self._ledger.units.open(self._watch.name)
        left = [unit.folder for unit in units if not await self._advance(unit, at_work)]
        return set(left)

    async def _advance(self, unit: Unit, at_work: Collection[str]) -> bool:
        """Do the next step, by the state of the manifest's version; return whether the unit is finished."""
        beat()
        state = unit.manifest.state
        if state is State.FINISHED or state in LEFT:
            await self._ledger.units.close(unit)
            return True
        if unit.manifest.file_id not in at_work:
            if state is State.VERIFIED and unit.sums.state in MEMBER_STATES:
                self._link_manifest(unit.manifest)
            elif state is State.LINKED:
                await self._finish_members(unit)
        return False

    async def _finish_members(self, unit: Unit) -> None:
        """Finish the unit's files, a few at a time if they are moved or deleted; the manifest comes last."""
        while True:
            at_work = await self._ledger.units.in_state(unit, State.LINKED, TURN)
            verified = await self._ledger.units.in_state(unit, State.VERIFIED, TURN - len(at_work))
            if not verified:
                break
            beat()
            await self._link(verified)
        if not at_work:
            if self._watch.after != "keep":
                passed("unit.empty.before")
                await asyncio.to_thread(remove_empty, self._folder, unit.folder)
            self._finish([Item(unit.manifest)])

    async def _link(self, verified: Sequence[FileVersion]) -> None:
        """Record that the members' unit is linked: they have no link of their own.

        If files stay as they are, this finishes them.
        """
        done_at = utcnow()
        changes = [
            Change(version, (Event.LINK,), {"link_id": ""})
            if self._finisher.has_work(version)
            else Change(version, (Event.LINK, Event.FINISH), {"link_id": "", "done_at": done_at})
            for version in verified
        ]
        moved = await self._ledger.apply_all(changes)
        self._announcer.done([version for version in moved if version.state is State.FINISHED])
        self._finish([Item(version) for version in moved if version.state is State.LINKED])

    def _finish(self, items: Sequence[Item]) -> None:
        self._dispatcher.add(items)
        self._finisher.take(items)

    def _link_manifest(self, manifest: FileVersion) -> None:
        """Link a unit by its manifest, whose version is finished once the unit's files are."""
        item = Item(manifest, expires=self._lifetime(manifest), after_link=self._linked)
        self._dispatcher.add([item])
        self._shared.linker.queue.put_all([item])

    def _linked(self, items: Sequence[Item]) -> None:
        """Take manifests whose links were made, or could not be made."""
        self._finisher.take([item for item in items if item.problem is not None])
        self._dispatcher.leave([item for item in items if item.version.state is State.LINKED])
        self.wake()
