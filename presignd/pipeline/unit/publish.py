"""Continue a complete folder until it is finished: link its manifest, then link, move or delete its files."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from presignd.ledger.changes import Change
from presignd.model import FileVersion, State
from presignd.pipeline.stage import TURN, Item
from presignd.pipeline.unit.tree import remove_empty
from presignd.runtime.crash_points import passed
from presignd.runtime.heartbeat import beat
from presignd.states import LEFT, Event
from presignd.system.clock import utcnow

if TYPE_CHECKING:
    from presignd.config import WatchConfig
    from presignd.ledger import Ledger
    from presignd.ledger.units import Unit
    from presignd.pipeline.announce import Announcer
    from presignd.pipeline.files.folder import Folder
    from presignd.pipeline.unit.units import Stages

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
