"""Send a file as one PUT: hash it, send it from the same descriptor, and compare it with the store's response."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

from presignd.config import UploadConfig
from presignd.errors import fault
from presignd.ledger import Ledger
from presignd.model import FileVersion, Fingerprint, Sent
from presignd.pipeline.files.hash import READ, checksum_like, fingerprint_of, into_one_buffer, read_at
from presignd.pipeline.upload.bucket import Bucket, StoredObject
from presignd.pipeline.upload.collision import Decision, supported_conditions
from presignd.pipeline.upload.content import Slots, record_etag
from presignd.pipeline.upload.identify import holds_bytes
from presignd.presign import Operation
from presignd.runtime.crash_points import passed
from presignd.runtime.heartbeat import beat
from presignd.s3.responses import Response, is_md5
from presignd.store.body import Slice
from presignd.store.probe import Support
from presignd.system.threads import in_background

SMALL = 256 << 10
"""Largest file, in bytes, that is read once into memory; larger ones are hashed, then streamed."""

TINY = 64 << 10
"""Largest file, in bytes, for which a thread costs more than reading from the page cache."""

Read = Callable[[int, int, int], bytes | memoryview]
"""``read_at``, or one like it."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A file ready to be sent: its descriptor, its hashes, and its bytes if it is small."""

    fd: int
    fingerprint: Fingerprint
    md5: str
    sha256: str
    data: bytes | None

    def checksum(self, kind: str) -> str:
        """Return ``md5:…`` or ``sha256:…``."""
        return f"sha256:{self.sha256}" if kind == "sha256" else f"md5:{self.md5}"

    @property
    def content_md5(self) -> str:
        """The Content-MD5 header's value (RFC 1864)."""
        return base64.b64encode(bytes.fromhex(self.md5)).decode()


def read_cached(fd: int, size: int, offset: int) -> bytes:
    """Read as ``os.pread`` does, but from the page cache only.

    Raises ``BlockingIOError`` where the page cache lacks the bytes (preadv2(2) with RWF_NOWAIT: EAGAIN) or the
    filesystem can't tell (EOPNOTSUPP).
    """
    piece = bytearray(size)
    try:
        count = os.preadv(fd, [piece], offset, os.RWF_NOWAIT)
    except (OSError, AttributeError) as error:
        raise BlockingIOError(str(error)) from None
    return bytes(memoryview(piece)[:count])


def prepare(fd: int, size: int, *, sha256: bool, max_in_memory: int = SMALL, read: Read = read_at) -> Prepared:
    """Hash ``size`` bytes of ``fd``; raise ``changed_while_uploading`` when it isn't that size throughout.

    Blocking. The bytes are kept if the size is at most min(``max_in_memory``, ``SMALL``). The fingerprint is taken
    before the first byte is read, so a change during the pass differs from it.
    """
    fingerprint = fingerprint_of(fd)
    digests = [hashlib.md5(usedforsecurity=False)] + ([hashlib.sha256()] if sha256 else [])
    kept = b"" if size <= min(max_in_memory, SMALL) else None
    if size > SMALL:
        read = into_one_buffer(READ)
    offset, ended = 0, False
    # Ask for one byte more: this shows growth without another read.
    while not ended and (piece := read(fd, length := min(READ, size - offset + 1), offset)):
        beat()
        for digest in digests:
            digest.update(piece)
        offset += len(piece)
        ended = offset > size or (offset == size and len(piece) < length)
        if kept is not None:
            kept += piece  # one piece, unless the page cache has only the beginning
    if not offset == size == fingerprint.size:
        raise fault("changed_while_uploading", "its size changed")
    return Prepared(fd, fingerprint, digests[0].hexdigest(), digests[-1].hexdigest() if sha256 else "", kept)


def proves_upload(response: Response, md5: str, *, md5_etags: bool) -> bool:
    """Return whether the response proves that this body was stored; raise ``bad_digest`` if it disproves it.

    An ETag that differs disproves it only in a bucket where ETags are MD5s (``md5_etags``). Elsewhere (SSE-KMS,
    SSE-C, some stores) the store chooses the ETag, and the Content-MD5 or SHA-256 that it checked counts. If the
    response proves nothing (no ETag, or one of another form), the caller sends a HEAD. After every PUT, a HEAD would
    prove no more than an ETag that is the MD5, and cost 30 to 45 % of the throughput in files a second (SeaweedFS,
    1 kB files, 16 at a time).
    """
    if response.opaque_etag or response.etag.lower() == md5:
        return True
    if md5_etags and is_md5(response.etag):
        raise fault("bad_digest", "the ETag differs from the MD5 of what was sent")
    return False


class Whole:
    """A file that is sent as one PUT."""

    def __init__(
        self,
        bucket: Bucket,
        ledger: Ledger,
        slots: Slots,
        upload: UploadConfig,
        *,
        prepared: Prepared,
        on_sent: Callable[[int], None],
    ) -> None:
        self._bucket, self._ledger, self._slots, self._kind = bucket, ledger, slots, upload.checksum
        self._prepared, self._on_sent = prepared, on_sent
        self.fingerprint, self.sha256 = prepared.fingerprint, prepared.sha256

    part_size = 0

    @property
    def size(self) -> int:
        """The file's size in bytes."""
        return self.fingerprint.size

    @property
    def checksum(self) -> str:
        """``md5:…`` or ``sha256:…``, by ``upload.checksum``."""
        return self._prepared.checksum(self._kind)

    async def checksum_like(self, like: str, part_size: int, size: int | None = None) -> str:
        """Return the checksum in the form of ``like``; hash only if it isn't known."""
        if size is None and "-" not in like and (like.startswith("md5:") or self.sha256):
            return self._prepared.checksum(like.partition(":")[0])
        return await in_background(
            checksum_like, self._prepared.fd, like, self.size if size is None else size, part_size
        )

    def use_checksum(self, checksum: str, part_size: int) -> None:
        """Do nothing: the checksum is known."""

    async def send(
        self, version: FileVersion, decision: Decision, support: Support
    ) -> tuple[FileVersion, StoredObject | None]:
        """PUT the file and verify the object."""
        version = await record_etag(self._ledger, version, self._prepared.md5)
        passed("put.before")
        async with self._slots.small() if self.size <= TINY else nullcontext():  # a larger one holds its slot already
            response = await self._put(version, supported_conditions(decision, support), support)
        passed("put.after")
        if response.status in (404, 412):
            return version, None
        return version, await self._verify(version, response, support)

    async def _put(self, version: FileVersion, decision: Decision, support: Support) -> Response:
        """Send the file; the response may be a 412 (another object is under the key). Raises ``Fault``."""
        assert version.key is not None
        prepared, headers = self._prepared, dict(self._bucket.watch.headers)
        if self._kind != "md5" and not support.sha256:
            headers["Content-MD5"] = prepared.content_md5
        request = self._bucket.request(
            Operation.PUT,
            version.key,
            size=version.size,
            content_type=version.content_type,
            checksum=self.checksum,
            headers=headers,
            if_none_match=decision.if_none_match,
            if_match=decision.if_match,
        )
        # If the object of an If-Match is gone, the response is 404 NoSuchKey (S3) or 412.
        accept = (404, 412) if decision.if_match else (412,)
        streamed = prepared.data is None or self._bucket.limited
        body = Slice(prepared.fd, 0, version.size, whole=True) if streamed else prepared.data
        response = await self._bucket.send(request, body, accept=accept, on_sent=self._on_sent)
        if response.status == 404 and response.code == "NoSuchBucket":  # noqa: PLR2004
            raise fault("no_such_bucket", "404 NoSuchBucket")
        return response

    async def _verify(self, version: FileVersion, response: Response, support: Support) -> StoredObject:
        """Return the object that the PUT made; raise ``missing_object`` or ``bad_digest``."""
        md5, key = self._prepared.md5, version.key or ""
        if proves_upload(response, md5, md5_etags=support.md5_etags) and support.proves:
            return StoredObject(version.size, response.etag, response.headers.get("x-amz-version-id", ""))
        found = await self._bucket.find(key, denied_is_absent=False)
        if found is None:
            raise fault("missing_object")
        etag_is_md5 = support.md5_etags and is_md5(found.etag) and not found.opaque
        if found.size != version.size or (etag_is_md5 and found.etag.lower() != md5):
            raise fault("bad_digest", "the object is not what was sent")
        if not (support.proves or await holds_bytes(self._bucket, key, found, Sent(version.size, f"md5:{md5}", 0, ""))):
            raise fault("bad_digest", "the object is not what was sent")
        return found

    def is_unchanged(self) -> bool:
        """Hash the file again, and compare."""
        return prepare(self._prepared.fd, self.fingerprint.size, sha256=False).md5 == self._prepared.md5
