"""The pipeline for one command while no daemon runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from presignd.app.assembly import Purpose, open_pipeline
from presignd.config import Config
from presignd.control.view import View
from presignd.ledger.lock import DaemonLock
from presignd.model import Source
from presignd.pipeline.announce import shown_path
from presignd.pipeline.intake import UPLOAD_PRIORITIES, make_version
from presignd.runtime.tasks import looping

SWEEP_SECONDS = 5.0
"""Seconds to abort the uploads that were given up, before the command ends; the next command aborts the rest."""


@asynccontextmanager
async def local_view(config: Config, *, uploads: bool) -> AsyncIterator[View]:
    """Open the pipeline; it uploads only with ``uploads`` (a put). The caller holds the ledger's lock."""
    if not uploads:
        async with open_pipeline(config, Purpose.QUERY) as pipeline:
            yield pipeline.view
        return
    async with open_pipeline(config, Purpose.PUT) as pipeline:
        work = pipeline.in_effect.work
        await pipeline.recovery.recover()
        async with looping() as loops:
            loops.start("linker", pipeline.shared.linker.run())
            loops.start("work", work.run(max_priority=UPLOAD_PRIORITIES[Source.PUT]))
            try:
                yield pipeline.view
                await work.drain(config.upload.drain_timeout)
            finally:
                # A stream that was interrupted can't be continued, and no sweeper runs here.
                with suppress(TimeoutError):
                    async with asyncio.timeout(SWEEP_SECONDS):
                        await work.sweeper.sweep()


async def dry_run(config: Config) -> AsyncIterator[dict[str, Any]]:
    """Yield what would be done with each file: watch, path, bucket, key, size, and the action or the error code.

    A key that depends on the content is known once that is read: its template stands for it.
    """
    with DaemonLock(config.ledger.path):
        async with open_pipeline(config, Purpose.QUERY) as pipeline:
            work = pipeline.in_effect.work
            for watcher in pipeline.watchers:
                bucket = work.buckets[watcher.name]
                prefix = await bucket.prefix()
                for path, fingerprint in await watcher.scanner.list_new():
                    version = make_version(bucket.watch, path, fingerprint, Source.SCAN, prefix=prefix)
                    yield {
                        "watch": watcher.name,
                        "path": shown_path(work.opened[watcher.name].root, path),
                        "bucket": version.bucket,
                        "key": version.key or ("" if version.error_code else bucket.watch.key),
                        "size": fingerprint.size,
                        "action": version.error_code or "upload",
                    }
