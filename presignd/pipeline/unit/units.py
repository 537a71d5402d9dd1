"""The units of one configuration: hold each folder's files until it is complete, link it, then finish its files.

A watch with ``unit = "folder"`` has one loop. Each pass looks at the folders whose ready marker is new, and continues
the units that are not finished, by the state of their manifest's version alone; so a restart is an ordinary pass.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from presignd.model import FileVersion
from presignd.pipeline.stage import Item
from presignd.pipeline.unit.gather import Gatherer, Waiting, is_member
from presignd.runtime.heartbeat import living

if TYPE_CHECKING:
    from presignd.pipeline.dispatch import Dispatcher
    from presignd.pipeline.unit.folders import UnitLook


class Units:
    """Holds the verified members of folders until these are linked. ``gatherers`` are the loops, by watch."""

    def __init__(self, gatherers: Mapping[str, Gatherer], dispatcher: Dispatcher) -> None:
        self._gatherers, self._dispatcher = gatherers, dispatcher

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
            self._dispatcher.leave(held)
            self.wake()
        return others

    def waiting(self) -> list[Waiting]:
        """Return the folders that have a marker and are not complete."""
        return [waiting for gatherer in self._gatherers.values() for waiting in gatherer.waiting.values()]

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
