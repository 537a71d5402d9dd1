"""The record stage: new versions go into the ledger; the same commit claims those that can be sent at once."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from presignd.ledger import Ledger
from presignd.model import NewVersion, Source
from presignd.pipeline.announce import Announcer
from presignd.pipeline.files.hash import Prepared
from presignd.pipeline.in_effect import InEffect
from presignd.pipeline.intake import UPLOAD_PRIORITIES, ignored

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
        versions = await self._without_arrivals(versions)
        dispatcher = self._in_effect.work.dispatcher
        async with dispatcher.room_for(versions, contents) as intents:
            done = await self._ledger.enqueue(versions, intents)
            self._announcer.enqueued(done)
            dispatcher.begin(done, contents, intents)

    async def _without_arrivals(self, versions: Sequence[NewVersion]) -> Sequence[NewVersion]:
        """Record what an inbox brought in as ignored: it came from the bucket. A person may still ``put`` it."""
        found = [version for version in versions if version.priority != UPLOAD_PRIORITIES[Source.PUT]]
        arrived = await self._ledger.arrivals.brought_in([version.fingerprint for version in found])
        if not arrived:
            return versions
        own = {version.file_id for version in found if version.fingerprint in arrived}
        return [ignored(version) if version.file_id in own else version for version in versions]
