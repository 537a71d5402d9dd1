"""No orphans: multipart uploads of versions that went another way are aborted, over crashes too."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from presignd.errors import Fault
from presignd.ledger import Ledger, LostUpdate
from presignd.model import FileVersion
from presignd.pipeline.upload.bucket import Bucket
from presignd.pipeline.upload.multipart import abort
from presignd.runtime.heartbeat import alive
from presignd.runtime.tasks import within
from presignd.telemetry.log import get_logger

EVERY = 60.0
"""Seconds between looks without a reason: a store that was away gets its aborts then."""

log = get_logger()


class Sweeper:
    """Aborts what the ledger says is left; only uploads of our own, by their id."""

    def __init__(self, ledger: Ledger, buckets: Mapping[str, Bucket]) -> None:
        self._ledger, self._buckets = ledger, buckets
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Look now: a version with an upload ended or was quarantined."""
        self._wake.set()

    async def run(self) -> None:
        """Sweep at the start, when woken, and now and then, for ever."""
        with alive("sweeper") as heart:
            while True:
                self._wake.clear()
                for version in await self._ledger.uploads_left():
                    await self._sweep(version)
                heart.beat(within=EVERY)
                await within(EVERY, self._wake)

    async def _sweep(self, version: FileVersion) -> None:
        bucket = self._buckets.get(version.watch)
        if bucket is None or version.key is None:
            return
        try:
            await abort(bucket.named(version.bucket), version)
            await self._ledger.end_upload(version)
        except (Fault, LostUpdate) as problem:
            log.debug("upload.abort_failed", file_id=version.file_id, key=version.key, error=str(problem))
