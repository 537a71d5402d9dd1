"""Send a file as one PUT: hash it, send it from the same descriptor, and compare it with the store's response."""

from __future__ import annotations

from collections.abc import Awaitable
from contextlib import nullcontext, suppress

from presignd.errors import fault
from presignd.model import Sent
from presignd.pipeline.files.hash import TINY, Prepared, prepare
from presignd.pipeline.upload.bucket import StoredObject
from presignd.pipeline.upload.collision import Decision, supported_conditions
from presignd.pipeline.upload.identify import holds_bytes
from presignd.pipeline.upload.transfer import Transfer, algorithms_for
from presignd.presign import Operation
from presignd.runtime.crash_points import passed
from presignd.s3.checksums import algorithm_of, header_of
from presignd.s3.responses import Response, is_md5
from presignd.store.client import Slice
from presignd.system.filesystem import read_cached
from presignd.system.threads import in_background


def confirms(checksum: str, returned: str) -> bool:
    """Return whether the store returned the checksum of what was sent; raise ``bad_digest`` if it returned another.

    Both are in the same algorithm; ``returned`` is "" if the store returned none.
    """
    if returned and returned != checksum:
        raise fault("bad_digest", f"the store returned {returned} for what was sent with {checksum}")
    return returned != ""


def proves_upload(response: Response, md5: str, *, md5_etags: bool) -> bool:
    """Return whether the response proves that this body was stored; raise ``bad_digest`` if it disproves it.

    ``md5`` is in hex. An ETag that differs disproves it only in a bucket where ETags are MD5s (``md5_etags``).
    Elsewhere (SSE-KMS, SSE-C, some stores) the store chooses the ETag, and the checksum that it checked counts. If the
    response proves nothing (no ETag, or one of another form), the caller sends a HEAD. After every PUT, a HEAD would
    prove no more than an ETag that is the MD5, and cost 30 to 45 % of the throughput in files a second (SeaweedFS,
    1 kB files, 16 at a time).
    """
    if response.opaque_etag or response.etag.lower() == md5:
        return True
    if md5_etags and is_md5(response.etag):
        raise fault("bad_digest", "the ETag differs from the MD5 of what was sent")
    return False


class Whole(Transfer):
    """Uploads a file as one PUT."""

    async def _read(self) -> None:
        prepared, support = self._item.prepared or await self._prepare(), self._support
        self._prepared, known = prepared, prepared.checksums
        for algorithm in support.algorithms - known.keys():  # the bucket was probed anew since the file was read
            known[algorithm] = prepared.checksum_like(f"{algorithm}:", self._version.size, 0)
        self.fingerprint, self.checksum = prepared.fingerprint, known[support.checksum]

    async def _prepare(self) -> Prepared:
        """Hash a file: on the event loop if it is tiny and in the page cache, else in a thread."""
        size, algorithms = self._version.size, algorithms_for(self._version, self._watch, self._support)
        max_in_memory = self._upload.memory // (2 * self._upload.concurrency)  # streamed bodies use as much
        if size <= TINY:
            with suppress(BlockingIOError):
                return prepare(self._fd, size, algorithms, max_in_memory=max_in_memory, read=read_cached)
        return await in_background(prepare, self._fd, size, algorithms, max_in_memory=max_in_memory)

    async def checksum_like(self, like: str, part_size: int, size: int | None = None) -> str:
        """Return the checksum in the form of ``like``; hash only if it isn't known."""
        hashed, known, algorithm = self._prepared.checksum_like, self._prepared.checksums, algorithm_of(like)
        if size is not None or "-" in like:
            return await in_background(hashed, like, self.size if size is None else size, part_size)
        if algorithm not in known:
            known[algorithm] = await in_background(hashed, like, self.size, 0)
        return known[algorithm]

    def use_checksum(self, checksum: str, part_size: int) -> None:
        """Do nothing: the checksum is known."""

    async def _send_content(self, decision: Decision) -> StoredObject | None:
        """PUT the file and verify the object."""
        await self._record_intent(self._prepared.intent(self._support))
        passed("put.before")
        async with self._slots.small if self.size <= TINY else nullcontext():  # a larger one holds its slot already
            response = await self._put_file(supported_conditions(decision, self._support))
        passed("put.after")
        if response.status not in (404, 412):
            return await self._verify(response)
        if response.code == "NoSuchBucket":
            raise fault("no_such_bucket", "404 NoSuchBucket")
        return None

    def _put_file(self, decision: Decision) -> Awaitable[Response]:
        """Send the file; the response may be a 412 (another object is under the key). Raises ``Fault``."""
        prepared, support, headers = self._prepared, self._support, self._watch.headers
        if not support.proven and support.checksum != "md5":
            headers = dict([*headers.items(), header_of(prepared.checksums["md5"])])
        body: bytes | Slice | None = prepared.data
        if prepared.fd is not None and (body is None or self._bucket.limited):
            body = Slice(prepared.fd, 0, self.size, whole=True)
        request = self._bucket.request(
            Operation.PUT,
            self._key,
            size=self.size,
            content_type=self._version.content_type,
            checksum=self.checksum,
            headers=headers,
            if_none_match=decision.if_none_match,
            if_match=decision.if_match,
        )
        # If the object of an If-Match is gone, the response is 404 NoSuchKey (S3) or 412.
        accept = (404, 412) if decision.if_match else (412,)
        return self._bucket.store.send(request, body, accept=accept, on_sent=self._on_sent)

    async def _verify(self, response: Response) -> StoredObject:
        """Return the object that the PUT made; raise ``missing_object`` or ``bad_digest``."""
        support, etag = self._support, response.etag
        if support.proven:
            proven = confirms(self.checksum, response.checksum(support.checksum)) and etag != ""
        else:
            md5 = self._prepared.checksums["md5"].removeprefix("md5:")
            proven = proves_upload(response, md5, md5_etags=support.md5_etags) and support.proves
        if proven:
            return StoredObject(self.size, etag, response.headers.get("x-amz-version-id", ""))
        found = await self._bucket.find(self._key, denied_is_absent=False, with_checksums=support.proven)
        if found is None:
            raise fault("missing_object")
        if found.size != self.size or not await self._is_ours(found):
            raise fault("bad_digest", "the object is not what was sent")
        return found

    async def _is_ours(self, found: StoredObject) -> bool:
        """Return whether an object of our size holds what was sent."""
        support = self._support
        if support.proven:
            alike = [each for each in found.checksums if algorithm_of(each) == support.checksum]
            return confirms(self.checksum, alike[0] if alike else "")
        md5 = self._prepared.checksums["md5"]
        etag_is_md5 = support.md5_etags and is_md5(found.etag) and not found.opaque
        if etag_is_md5 and f"md5:{found.etag.lower()}" != md5:
            return False
        return support.proves or await holds_bytes(self._bucket, self._key, found, Sent(self.size, md5, 0, ""))
