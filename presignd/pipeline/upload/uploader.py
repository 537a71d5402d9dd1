"""The upload stage: many senders, each with one body at a time, whose results join the queue of the next stage."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

from presignd.config import UploadConfig
from presignd.errors import Fault
from presignd.ledger import Ledger
from presignd.model import FileVersion, NewVersion
from presignd.pipeline.faults import UploadFaults
from presignd.pipeline.files.folder import Folder
from presignd.pipeline.files.hash import TINY, Prepared, Read, read_at
from presignd.pipeline.put import PutRequest, PutRequests
from presignd.pipeline.stage import MOST, TURN, Ahead, Item, Receipt, UrgentFirst, outcomes
from presignd.pipeline.unit.manifest import open_made
from presignd.pipeline.upload.bucket import Bucket
from presignd.pipeline.upload.multipart import InParts
from presignd.pipeline.upload.slots import Slots
from presignd.pipeline.upload.streamed import Streamed
from presignd.pipeline.upload.transfer import Transfer, algorithms_for, read_whole
from presignd.pipeline.upload.whole import Whole
from presignd.runtime.heartbeat import alive
from presignd.store.support import Support
from presignd.system.filesystem import close_quietly, read_cached

PROBE_AGAIN_CODES = ("bad_broker", "bad_digest", "no_such_bucket", "not_implemented", "upload_lost")
"""Faults that may mean that the probe's results no longer hold: the store or its bucket was set up anew, or an older
broker replaced one that signed CRCs."""


class Uploader:
    """Uploads claimed versions under one configuration. ``sent`` takes each item that was uploaded."""

    def __init__(
        self,
        buckets: Mapping[str, Bucket],
        folders: Mapping[str, Folder],
        upload: UploadConfig,
        ledger: Ledger,
        *,
        puts: PutRequests,
        slots: Slots,
        faults: UploadFaults,
        sent: Callable[[Item], None],
    ) -> None:
        self._buckets, self._folders, self._config, self._ledger = buckets, folders, upload, ledger
        self._puts, self._slots = puts, slots
        self._faults, self._sent = faults, sent
        # Contents that wait, here or to be recorded, share the memory with streamed bodies.
        most = max(MOST, upload.concurrency) + TURN * len(buckets)
        self.tiny = min(TINY, upload.memory // (2 * most))
        self.queue = UrgentFirst()

    async def read(self, versions: Sequence[FileVersion]) -> list[Item]:
        """Return an item for each version; the tiny ones are read and hashed, in one call.

        If there are few, they are read on the event loop, from the page cache only; the senders read what it lacks.
        """
        items = [Item(version) for version in versions]
        tiny = [
            item
            for item in items
            if self._support_ahead(item.version.watch, item.version.bucket, item.version.size)
            and not item.version.is_made
        ]
        if tiny:
            inline = len(tiny) <= min(self._folders[item.version.watch].inline_limit for item in tiny)
            read = partial(self._read, read=read_cached if inline else read_at)
            found = await outcomes(read, [item.version for item in tiny], inline=inline)
            for item, prepared in zip(tiny, found, strict=True):
                if isinstance(prepared, BlockingIOError):
                    continue
                if isinstance(prepared, Exception):
                    item.problem = prepared
                else:
                    item.prepared, item.intent = prepared, self.intent(item.version, prepared)
        return items

    def ahead(self, watch: str) -> Ahead | None:
        """Return which new files of a watch are read as they settle; None if all are read later."""
        support = self._support_ahead(watch, self._buckets[watch].watch.bucket, 0)
        return Ahead(self.tiny, support.algorithms) if support else None

    def knows_store(self, watch: str) -> bool:
        """Return whether it is known what the bucket of a watch supports: until then no file is read ahead."""
        return self._buckets[watch].known_support is not None

    def _support_ahead(self, watch: str, bucket: str, size: int) -> Support | None:
        """Return what the bucket supports if a file is read before its claim, else None.

        A file in a folder that may hang is not, as others would wait.
        """
        if size > self.tiny or not self._folders[watch].inline_limit:
            return None
        used = self._buckets[watch].for_bucket(bucket)
        return None if used.limited else used.known_support

    def _read(self, version: FileVersion, *, read: Read) -> Prepared:
        bucket, put = self._bucket(version), self._puts.get(version.file_id)
        algorithms = algorithms_for(version, bucket.watch, bucket.known_support)
        return read_whole(self._folders[version.watch], version, put, algorithms, read)

    def _bucket(self, version: FileVersion | NewVersion) -> Bucket:
        """Return the bucket that a version was queued for, even if its watch has another bucket now."""
        return self._buckets[version.watch].for_bucket(version.bucket)

    def intent(self, version: FileVersion | NewVersion, prepared: Prepared) -> str:
        """Return the checksum that is committed before the content is sent; "" while it isn't known."""
        support = self._bucket(version).known_support
        return prepared.intent(support) if support else ""

    async def run(self) -> None:
        """Send one item after the other, until cancelled; many of these loops run."""
        with alive("sender") as heart:
            while True:
                with heart.resting():
                    item = await self.queue.get()
                heart.name = f"worker of {item.version.file_id}"
                try:
                    item.receipt = await self._upload(item)
                except Exception as problem:  # noqa: BLE001 - ``faults`` decides what each means
                    if isinstance(problem, Fault) and problem.code in PROBE_AGAIN_CODES:
                        self._bucket(item.version).forget_support()
                    await self._faults.handle(item, problem)
                else:
                    item.prepared = None
                    self._sent(item)

    def _upload(self, item: Item) -> Awaitable[Receipt]:
        if item.problem:
            raise item.problem
        if item.version.is_made:
            return self._upload_made(item)
        return self._transfer(item, self._puts.get(item.version.file_id))

    async def _upload_made(self, item: Item) -> Receipt:
        """Upload one of a unit's own files: it is made for this, and is no file of the watch."""
        made = await open_made(self._ledger, item.version)
        try:
            receipt = await self._transfer(item, made)
        finally:
            close_quietly(made.fd)
        return receipt._replace(fingerprint=item.version.fingerprint)

    def _transfer(self, item: Item, put: PutRequest | None) -> Awaitable[Receipt]:
        version = item.version
        kind: type[Transfer] = Whole
        if put and put.stream:
            kind = Streamed
        elif version.size > self._config.multipart_threshold:
            kind = InParts
        return kind(
            self._bucket(version),
            self._folders[version.watch],
            item,
            self._ledger,
            self._config,
            slots=self._slots,
            put=put,
        ).run()
