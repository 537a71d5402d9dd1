"""The units of one configuration: hold each folder's files until it is complete, link it, then finish its files.

A watch with ``unit = "folder"`` has one loop. Each pass looks at the folders whose ready marker is new, and continues
the units that are not finished, by the state of their manifest's version alone; so a restart is an ordinary pass.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

from presignd.ledger.changes import Change
from presignd.model import FileVersion, State
from presignd.pipeline.stage import TURN, Item
from presignd.pipeline.unit.folders import remove_empty
from presignd.pipeline.unit.gather import Gatherer, is_member
from presignd.runtime.crash_points import passed
from presignd.runtime.heartbeat import beat, living
from presignd.states import LEFT, Event
from presignd.system.clock import utcnow

if TYPE_CHECKING:
    from presignd.config import WatchConfig
    from presignd.ledger import Ledger
    from presignd.ledger.units import Unit
    from presignd.pipeline.announce import Announcer
    from presignd.pipeline.files.folder import Folder
    from presignd.pipeline.files.ignore import Ignore
    from presignd.pipeline.finish.finisher import Finisher
    from presignd.pipeline.intake import Intake
    from presignd.pipeline.unit.folders import Markers, UnitLook
    from presignd.pipeline.upload.bucket import Bucket


class Stages(NamedTuple):
    """The stages as units use them: ``link`` and ``finish`` queue items for these, ``leave`` forgets items.

    ``at_work`` returns the file_ids of what any stage has; call ``queued`` when versions were queued.
    """

    link: Callable[[Item], None]
    finish: Callable[[Sequence[Item]], None]
    leave: Callable[[Sequence[Item]], None]
    at_work: Callable[[], set[str]]
    queued: Callable[[], None]
    finisher: Finisher


class Waiting(NamedTuple):
    """A folder (below its watch's root) that is not complete: since when (UTC), and what it waits for, in words."""

    watch: str
    folder: bytes
    since: datetime
    why: str


class Units:
    """Holds the verified members of folders until these are linked."""

    def __init__(
        self,
        watches: Mapping[str, WatchConfig],
        folders: Mapping[str, Folder],
        ignores: Mapping[str, Ignore],
        ledger: Ledger,
        *,
        buckets: Mapping[str, Bucket],
        intake: Intake,
        markers: Markers,
        announcer: Announcer,
        stages: Stages,
    ) -> None:
        self._stages = stages
        self._gatherers: dict[str, Gatherer] = {}
        for name, watch in watches.items():
            publisher = Publisher(watch, folders[name], ledger, announcer, stages)
            self._gatherers[name] = Gatherer(
                watch,
                folders[name],
                ignores[name],
                ledger,
                bucket=buckets[name],
                intake=intake,
                markers=markers.of(name),
                announcer=announcer,
                publisher=publisher,
                queued=stages.queued,
            )

    def __contains__(self, version: FileVersion) -> bool:
        """Whether a version is a member of a unit, or one of a unit's own files."""
        return version.watch in self._gatherers and (version.is_made or is_member(version))

    def hold(self, verified: Sequence[Item]) -> list[Item]:
        """Keep the items that belong to units until their folders are complete; return the others."""
        if not self._gatherers:
            return [*verified]
        held, others = list[Item](), list[Item]()
        for item in verified:
            (held if item.version in self else others).append(item)
        if held:
            self._stages.leave(held)
            self.wake()
        return others

    def linked(self, items: Sequence[Item]) -> None:
        """Take manifests whose links were made, or could not be made."""
        self._stages.finish([item for item in items if item.problem is not None])
        self._stages.leave([item for item in items if item.version.state is State.LINKED])
        self.wake()

    def waiting(self) -> list[Waiting]:
        """Return the folders that have a marker and are not complete."""
        return [
            Waiting(watch, folder, since, why)
            for watch, gatherer in self._gatherers.items()
            for folder, (since, why) in gatherer.waiting.items()
        ]

    def look_at(self, watch: str, path: bytes) -> UnitLook | None:
        """Look at a folder now; return None for a path that can't be a unit. Blocking."""
        gatherer = self._gatherers.get(watch)
        return gatherer.look_at(path) if gatherer is not None and b"/" not in path else None

    def wake(self) -> None:
        """Look again now: versions were verified, linked or finished."""
        for gatherer in self._gatherers.values():
            gatherer.wake()

    def retire(self) -> None:
        """Begin nothing more: another configuration is in effect, or the daemon ends."""
        for gatherer in self._gatherers.values():
            gatherer.retire()

    async def run(self) -> None:
        """Run the loop of each watch until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for name, gatherer in self._gatherers.items():
                tasks.create_task(living(f"units of {name}", gatherer.run), name=f"units of {name}")


STORED = frozenset({State.VERIFIED, State.LINKED, State.FINISHED})


class Publisher:
    """Continues the units of one watch."""

    def __init__(
        self, watch: WatchConfig, folder: Folder, ledger: Ledger, announcer: Announcer, stages: Stages
    ) -> None:
        self._watch, self._folder, self._ledger = watch, folder, ledger
        self._announcer, self._stages = announcer, stages

    async def advance(self) -> set[bytes]:
        """Move each unfinished unit one step on; return the folders of those that are still unfinished."""
        units = await self._ledger.units.open(self._watch.name)
        left = [unit.folder for unit in units if not await self._advance(unit)]
        return set(left)

    async def _advance(self, unit: Unit) -> bool:
        """Do the next step, by the state of the manifest's version; return whether the unit is finished."""
        beat()
        state = unit.manifest.state
        if state is State.FINISHED or state in LEFT:
            await self._ledger.units.close(unit)
            return True
        if unit.manifest.file_id not in self._stages.at_work():
            if state is State.VERIFIED and unit.sums.state in STORED:
                self._stages.link(Item(unit.manifest))
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
            self._stages.finish([Item(unit.manifest)])

    async def _link(self, verified: Sequence[FileVersion]) -> None:
        """Record that the members' unit is linked: they have no link of their own.

        If files stay as they are, this finishes them.
        """
        done_at, finisher = utcnow(), self._stages.finisher
        changes = [
            Change(version, (Event.LINK,), {"link_id": ""})
            if finisher.has_work(version)
            else Change(version, (Event.LINK, Event.FINISH), {"link_id": "", "done_at": done_at})
            for version in verified
        ]
        moved = await self._ledger.apply_all(changes)
        self._announcer.done([version for version in moved if version.state is State.FINISHED])
        self._stages.finish([Item(version) for version in moved if version.state is State.LINKED])
