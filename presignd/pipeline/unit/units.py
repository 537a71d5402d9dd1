"""The units of one configuration: hold each folder's files until it is complete, link it, then finish its files.

A watch with ``unit = "folder"`` has one loop. Each pass looks at the folders whose ready marker is new, and continues
the units that are not finished, by the state of their manifest's version alone; so a restart is an ordinary pass.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

from presignd.model import FileVersion, State
from presignd.pipeline.stage import Item
from presignd.pipeline.unit.gather import Gatherer, is_member
from presignd.runtime.heartbeat import living

if TYPE_CHECKING:
    from presignd.config import WatchConfig
    from presignd.ledger import Ledger
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
            self._gatherers[name] = Gatherer(
                watch,
                folders[name],
                ignores[name],
                ledger,
                bucket=buckets[name],
                intake=intake,
                markers=markers.of(name),
                announcer=announcer,
                stages=stages,
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
