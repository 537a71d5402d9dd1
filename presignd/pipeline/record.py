"""The record stage: new versions go into the ledger; the same commit claims those that can be sent at once."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from presignd.ledger import Ledger
from presignd.model import NewVersion
from presignd.pipeline.announce import Announcer
from presignd.pipeline.files.prepared import Prepared
from presignd.pipeline.in_effect import InEffect

NOTHING_READ: Mapping[str, Prepared] = {}


class Recorder:
    """Records the new versions of all watches and of every ``put``."""

    def __init__(self, in_effect: InEffect, ledger: Ledger, announcer: Announcer) -> None:
        self._in_effect, self._ledger, self._announcer = in_effect, ledger, announcer

    async def record(self, versions: Sequence[NewVersion], contents: Mapping[str, Prepared] = NOTHING_READ) -> None:
        """Record versions, all or none, and announce them, even if the caller is cancelled.

        ``contents`` are what was read of them, by file_id. Raises ``LostUpdate`` if an earlier version of a path is in
        flight.
        """
        await asyncio.shield(self._record(versions, contents))

    async def _record(self, versions: Sequence[NewVersion], contents: Mapping[str, Prepared]) -> None:
        dispatcher = self._in_effect.work.dispatcher
        async with dispatcher.room_for(versions, contents) as items:
            intents = {item.version.file_id: item.intent for item in items}
            done = await self._ledger.enqueue(
                [each._replace(intent=intents.get(each.file_id)) for each in versions] if items else versions
            )
            self._announcer.enqueued(done)
            dispatcher.begin(done, items)
