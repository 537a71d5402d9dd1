"""Upload a stream in parts while it is read. Its source can't be read again, unlike a large file."""

from __future__ import annotations

import asyncio

from presignd.errors import fault
from presignd.model import Fingerprint
from presignd.pipeline.put import Stream
from presignd.pipeline.upload.bucket import StoredObject
from presignd.pipeline.upload.collision import Decision
from presignd.pipeline.upload.multipart import InParts
from presignd.s3.responses import is_md5


class Streamed(InParts):
    """One attempt to send a stream.

    The next one continues with the parts that wait: those before are stored. If the stored parts are lost (the upload
    was aborted elsewhere, or another object was written under the key), the stream fails with ``stream_lost``.
    """

    @property
    def _stream(self) -> Stream:
        assert self._put is not None
        assert self._put.stream is not None
        return self._put.stream

    async def _read(self) -> None:
        version = self._version
        self.fingerprint, self.part_size, self.checksum = version.fingerprint, version.part_size, self._stream.checksum

    @property
    def size(self) -> int:
        """The stream's size in bytes; -1, which no object has, while it isn't known."""
        return self.fingerprint.size if self._stream.checksum else -1

    async def checksum_like(self, like: str, part_size: int, size: int | None = None) -> str:  # noqa: ARG002 - as a file's
        """Return the checksum; "" while it isn't known. It can't be computed in another form any more."""
        return self._stream.checksum

    async def _send_content(self, decision: Decision) -> StoredObject:
        """Send the stream to its end, and complete the upload."""
        if self._stream.released and not self._version.upload_id:
            raise fault("stream_lost", "the store no longer has its first parts")
        found = await super()._send_content(decision)
        if found is None:
            raise fault("stream_lost", "another object was written under its key meanwhile")
        self.fingerprint = self._version.fingerprint
        return found

    async def _send_missing(self) -> None:
        """Send each part once it is whole; record the stream's size."""
        async with asyncio.TaskGroup() as tasks:
            failing = tasks.create_task(self._stream.fails())
            senders = range(self._upload.part_concurrency)
            await asyncio.wait([tasks.create_task(self._send_next()) for _ in senders])
            failing.cancel()
        # Crash window: after the next step, a version without its recorded size would not find its own object by size.
        self._version = await self._ledger.update(self._version, fingerprint=self._stream.fingerprint())

    async def _send_next(self) -> None:
        while (piece := await self._stream.take()) is not None:
            try:
                await self._send_piece(piece)
            except BaseException:
                self._stream.give_back(piece)
                raise
            self._stream.release(piece)

    def _check_unchanged(self) -> None:
        """Do nothing: no other program has the file."""

    def _recheck(self) -> Fingerprint:
        return self.fingerprint  # as above

    def _made(self, checksum: str) -> None:
        super()._made(checksum)
        self._stream.checksum = checksum

    async def _has_our_checksum(self, found: StoredObject) -> bool:
        """Return the same as for a file, except that an MD5 of the whole proves nothing: it is not known here."""
        if self._algorithm == "md5" and is_md5(found.etag) and not found.opaque:
            return False
        return await super()._has_our_checksum(found)
