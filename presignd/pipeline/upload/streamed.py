"""Upload a stream in parts while it is read. Its source can't be read again, unlike a large file."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from presignd.config import UploadConfig
from presignd.errors import fault
from presignd.ledger import Ledger
from presignd.model import FileVersion
from presignd.pipeline.put import Stream
from presignd.pipeline.upload.bucket import Bucket, StoredObject
from presignd.pipeline.upload.collision import Decision
from presignd.pipeline.upload.content import Slots
from presignd.pipeline.upload.multipart import InParts, first_fault
from presignd.s3.responses import is_md5
from presignd.store.support import Support


class Streamed(InParts):
    """One attempt to send a stream.

    The next one continues with the parts that wait: those before are stored. If the stored parts are lost (the upload
    was aborted elsewhere, or another object was written under the key), the stream fails with ``stream_lost``.
    """

    def __init__(
        self,
        bucket: Bucket,
        ledger: Ledger,
        slots: Slots,
        support: Support,
        upload: UploadConfig,
        *,
        stream: Stream,
        version: FileVersion,
        on_sent: Callable[[int], None],
    ) -> None:
        self._stream = stream
        super().__init__(bucket, ledger, slots, support, upload, fd=stream.fd, recheck=lambda: None, on_sent=on_sent)
        self.fingerprint, self.part_size, self.checksum = version.fingerprint, version.part_size, stream.checksum

    @property
    def size(self) -> int:
        """The stream's size in bytes; -1, which no object has, while it isn't known."""
        return self.fingerprint.size if self._stream.checksum else -1

    async def checksum_like(self, like: str, part_size: int, size: int | None = None) -> str:  # noqa: ARG002 - as a file's
        """Return the checksum; "" while it isn't known. It can't be computed in another form any more."""
        return self._stream.checksum

    async def send(self, version: FileVersion, decision: Decision) -> tuple[FileVersion, StoredObject | None]:
        """Send the stream to its end, and complete the upload."""
        if self._stream.released and not version.upload_id:
            raise fault("stream_lost", "the store no longer has its first parts")
        version, found = await super().send(version, decision)
        if found is None:
            raise fault("stream_lost", "another object was written under its key meanwhile")
        self.fingerprint = version.fingerprint
        return version, found

    async def _send_missing(self, version: FileVersion) -> FileVersion:
        """Send each part once it is whole; return the version with the stream's size."""
        try:
            async with asyncio.TaskGroup() as tasks:
                failing = tasks.create_task(self._stream.fails())
                senders = range(self._upload.part_concurrency)
                await asyncio.wait([tasks.create_task(self._send_next(version)) for _ in senders])
                failing.cancel()
        except BaseExceptionGroup as group:
            raise await self._abort_if_lost(version, first_fault(group)) from None
        # Crash window: after the next step, a version without its recorded size would not find its own object by size.
        return await self._ledger.update(version, fingerprint=self._stream.fingerprint())

    async def _send_next(self, version: FileVersion) -> None:
        while (piece := await self._stream.take()) is not None:
            try:
                await self._send_piece(version, piece)
            except BaseException:
                self._stream.give_back(piece)
                raise
            self._stream.release(piece)

    def _check_unchanged(self) -> None:
        """Do nothing: no other program has the file."""

    def _made(self, checksum: str) -> None:
        super()._made(checksum)
        self._stream.checksum = checksum

    async def _has_our_checksum(self, found: StoredObject) -> bool:
        """Return the same as for a file, except that an MD5 of the whole proves nothing: it is not known here."""
        if self._algorithm == "md5" and is_md5(found.etag) and not found.opaque:
            return False
        return await super()._has_our_checksum(found)
