"""One file as one PUT: opened safely, hashed, sent from the same descriptor, compared afterwards."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass

from presignd.errors import fault
from presignd.model import FileVersion, Fingerprint
from presignd.pipeline.files.hash import READ, fingerprint_of, into_one_buffer, read_at
from presignd.pipeline.upload.bucket import Bucket, StoredObject
from presignd.pipeline.upload.collision import Plan, is_md5
from presignd.presign import Operation
from presignd.runtime.heartbeat import beat
from presignd.s3.responses import Response
from presignd.store.body import Slice

SMALL = 256 << 10
"""Bytes up to which a file is read once into memory; larger ones are hashed, then streamed."""

TINY = 64 << 10
"""Bytes up to which a hop to a thread costs more than reading what is in the page cache."""

Read = Callable[[int, int, int], bytes | memoryview]
"""``read_at``, or one like it."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A file ready to be sent: its descriptor, hashes, and its bytes where it is small."""

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
    """Read as ``os.pread`` does, from the page cache alone; raise ``BlockingIOError`` where that doesn't do.

    preadv2(2), RWF_NOWAIT: EAGAIN where it would wait for a disk, EOPNOTSUPP where nothing can tell.
    """
    piece = bytearray(size)
    try:
        count = os.preadv(fd, [piece], offset, os.RWF_NOWAIT)
    except (OSError, AttributeError) as error:
        raise BlockingIOError(str(error)) from None
    return bytes(memoryview(piece)[:count])


def prepare(fd: int, size: int, *, sha256: bool, most: int = SMALL, read: Read = read_at) -> Prepared:
    """Hash ``size`` bytes of ``fd``; raise ``changed_while_uploading`` when it isn't that size throughout.

    Blocking. A file of at most ``most`` bytes, and ``SMALL``, is kept. The fingerprint is taken before the
    first byte is read, so a change during the pass differs from it.
    """
    fingerprint = fingerprint_of(fd)
    digests = [hashlib.md5(usedforsecurity=False)] + ([hashlib.sha256()] if sha256 else [])
    kept = b"" if size <= min(most, SMALL) else None
    if size > SMALL:
        read = into_one_buffer(READ)
    offset, ended = 0, False
    # One byte more than there should be is asked for: so what grew is seen, and what didn't takes no further look.
    while not ended and (piece := read(fd, asked := min(READ, size - offset + 1), offset)):
        beat()
        for digest in digests:
            digest.update(piece)
        offset += len(piece)
        ended = offset > size or (offset == size and len(piece) < asked)
        if kept is not None:
            kept += piece  # one piece, unless the page cache has only the beginning yet
    if not offset == size == fingerprint.size:
        raise fault("changed_while_uploading", "its size changed")
    return Prepared(fd, fingerprint, digests[0].hexdigest(), digests[-1].hexdigest() if sha256 else "", kept)


async def put(
    bucket: Bucket,
    version: FileVersion,
    prepared: Prepared,
    plan: Plan,
    *,
    checksum: str,
    also_md5: bool,
    on_sent: Callable[[int], None],
) -> Response:
    """Send the file; the answer may be a 412 (the key changed hands). Raises ``Fault``."""
    assert version.key is not None
    headers = dict(bucket.watch.headers)
    if also_md5:
        headers["Content-MD5"] = prepared.content_md5
    request = bucket.request(
        Operation.PUT,
        version.key,
        size=version.size,
        content_type=version.content_type,
        checksum=checksum,
        headers=headers,
        if_none_match=plan.if_none_match,
        if_match=plan.if_match,
    )
    # An If-Match whose object is gone is answered 404 NoSuchKey (S3) or 412.
    accept = (404, 412) if plan.if_match else (412,)
    streamed = prepared.data is None or bucket.limited
    body = Slice(prepared.fd, 0, version.size, whole=True) if streamed else prepared.data
    answer = await bucket.send(request, body, accept=accept, on_sent=on_sent)
    if answer.status == 404 and answer.code == "NoSuchBucket":  # noqa: PLR2004
        raise fault("no_such_bucket", "404 NoSuchBucket")
    return answer


def verify(answer: Response, md5: str, *, md5_etags: bool) -> bool:
    """Compare the ETag with what was sent, in a bucket where ETags are MD5s; raise ``bad_digest``.

    Anywhere else (SSE-KMS, SSE-C, a store with a way of its own) it is the store's word for what it took, and
    the checked Content-MD5 or SHA-256 of the request counts. Return whether the answer proves that this very
    body was stored; where it doesn't (no ETag, or one of another make) a HEAD has to. One after each PUT would
    tell nothing more of a store whose ETag is the MD5 of what it took, and took 30 to 45 % of the files a second
    (SeaweedFS, 1 kB files, 16 at a time).
    """
    if answer.opaque_etag or answer.etag.lower() == md5:
        return True
    if md5_etags and is_md5(answer.etag):
        raise fault("bad_digest", "the ETag differs from the MD5 of what was sent")
    return False


def verify_found(found: StoredObject | None, size: int, md5: str, *, md5_etags: bool) -> StoredObject:
    """Take an object found after its PUT for what was sent; raise ``missing_object`` or ``bad_digest``."""
    if found is None:
        raise fault("missing_object")
    tells = md5_etags and is_md5(found.etag) and not found.opaque
    if found.size != size or (tells and found.etag.lower() != md5):
        raise fault("bad_digest", "the object is not what was sent")
    return found
