"""Upload a large file in parts, with presigned requests only: create, send what is missing, complete.

Every step is durable: the ledger records the upload before its first part is sent, and each part once the store has
it. So after a crash only the parts that were in flight are sent again. These records count, not ListParts, whose
response has duplicates on some servers; it is used only for a part that a server doesn't accept twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator, Mapping

from presignd.errors import Fault, RetryFault, StoreFault, fault
from presignd.ledger import Ledger, LostUpdate
from presignd.model import FileVersion, Part, Sent
from presignd.pipeline.faults import GaveWay
from presignd.pipeline.files.hash import checksum_like, digest, fingerprint_of
from presignd.pipeline.upload.bucket import Bucket, StoredObject
from presignd.pipeline.upload.collision import Decision, is_still_true, store_checks_it, supported_conditions
from presignd.pipeline.upload.identify import holds_bytes, read_back
from presignd.pipeline.upload.transfer import Transfer
from presignd.pipeline.upload.whole import confirms, proves_upload
from presignd.presign import Operation
from presignd.runtime.crash_points import passed
from presignd.runtime.heartbeat import alive
from presignd.runtime.tasks import within
from presignd.s3.checksums import algorithm_of
from presignd.s3.limits import FEW_PARTS
from presignd.s3.multipart import PartRange, checksum_of_parts, complete_body, in_order, part_ranges, part_size_for
from presignd.s3.responses import Response, bare, is_md5
from presignd.store.client import Slice
from presignd.store.probe import of_whole
from presignd.system.threads import in_background
from presignd.telemetry.log import get_logger

SWEEP_SECONDS = 60.0
"""Seconds between two sweeps for orphans: an abort that failed is sent again then."""

log = get_logger()


class InParts(Transfer):
    """Uploads a file above ``multipart_threshold`` in parts.

    Raises ``upload_lost`` if the store no longer knows the upload: the next attempt begins anew. An item that
    ``gives_way`` sends one part, and raises ``GaveWay`` unless that was the last. The algorithm of the parts' checksums
    is fixed when the upload is created: MD5, of which S3 makes the ETag, or a CRC, which the store returns for the
    whole object.
    """

    in_parts = True

    # --- the content ----------------------------------------------------------------------------
    async def _read(self) -> None:
        self.fingerprint = fingerprint_of(self._fd)
        self.part_size = part_size_for(self.size, self._upload.part_size, self._bucket.max_parts)

    async def checksum_like(self, like: str, part_size: int, size: int | None = None) -> str:
        """Hash the file; return its checksum in the form of ``like``."""
        return await in_background(checksum_like, self._fd, like, self.size if size is None else size, part_size)

    def use_checksum(self, checksum: str, part_size: int) -> None:
        """Use this checksum for the receipt, so that no other is computed."""
        self.checksum, self.part_size = checksum, part_size

    # --- sending it -----------------------------------------------------------------------------
    async def _send_content(self, decision: Decision) -> StoredObject | None:
        """Send what is missing, check the file again, and complete the upload.

        If the store doesn't check the condition, send a HEAD first.
        """
        await self._send_parts()
        parts = [self._parts[number] for number in sorted(self._parts)]
        self.part_size = self._version.part_size
        self._made(checksum_of_parts(self._algorithm, [(part.digest, part.size) for part in parts]))
        await asyncio.to_thread(self._recheck)
        await self._record_intent(self.checksum)
        passed("complete.before")
        found = None
        supported = supported_conditions(decision, self._support)
        if store_checks_it(decision, supported) or is_still_true(decision, await self._find()):
            found = await self._complete(supported)
        passed("complete.after")
        if found is None:
            await self._abort()
        return found

    def _made(self, checksum: str) -> None:
        self.checksum = checksum

    async def _send_parts(self) -> None:
        """Create the upload unless there is one, and send every part that the store doesn't have."""
        self._part_etags_are_md5 = (await self._bucket.support()).md5_etags
        if not self._version.upload_id:
            await self._create(self._support.checksum if self._support.proven else "md5")
        version = self._version
        self._algorithm = algorithm_of(version.intent or "md5:")
        self._parts = {part.number: part for part in await self._ledger.parts(version)}
        self._sending: dict[int, int] = {}
        self._stored = sum(part.size for part in self._parts.values())
        self._report()
        if self._parts:
            log.info("upload.resumed", file_id=version.file_id, key=version.key, parts=len(self._parts))
        try:
            await self._send_missing()
        except BaseExceptionGroup as group:  # "except*" would wrap what it raises in a group again
            raise await self._abort_if_lost(first_fault(group)) from None

    async def _send_missing(self) -> None:
        """Send every part that isn't recorded. Raise ``GaveWay`` after one part if other suspects wait."""
        cut = in_order([*part_ranges(self._version.size, self._version.part_size)])
        missing = [piece for piece in cut if piece.number not in self._parts]
        gives_way = self._item.gives_way
        pieces = iter(missing[:1] if gives_way else missing)
        async with asyncio.TaskGroup() as runners:
            for _ in range(self._upload.part_concurrency):
                runners.create_task(self._send_some(pieces))
        if gives_way and len(missing) > 1:
            raise GaveWay

    async def _create(self, algorithm: str) -> None:
        """Create an upload, and commit its id and its algorithm."""
        version = self._version
        request = self._bucket.request(
            Operation.MULTIPART_CREATE,
            self._key,
            content_type=version.content_type,
            headers=self._watch.headers,
            **of_whole(algorithm),
        )
        upload_id = (await self._bucket.store.send(request)).element("UploadId")
        if not upload_id:
            raise fault("bad_response", "no UploadId")
        part_size = part_size_for(version.size, self._upload.part_size, self._bucket.max_parts)
        # Crash window: an upload that was created but not recorded is an orphan whose id only the store knows. S3's
        # lifecycle rule AbortIncompleteMultipartUpload removes it.
        etag = version.etag
        if algorithm != algorithm_of(version.intent or "md5:"):
            etag = "" if algorithm == "md5" else f"{algorithm}:"
        self._version = await self._ledger.begin_upload(version, upload_id, part_size, etag)

    async def _send_some(self, missing: Iterator[PartRange]) -> None:
        """Send parts until none is left; several of these run concurrently."""
        for piece in missing:
            await self._send_piece(piece)

    async def _send_piece(self, piece: PartRange) -> None:
        digest = await in_background(self._hash, piece)
        async with self._slots.large():
            passed("part.before")
            part = await self._send_part(piece, digest)
        passed("part.after")
        # Crash window: a part that the store has and the ledger doesn't is sent again.
        await self._ledger.record_part(self._version, part)
        self._sending.pop(piece.number, None)
        self._parts[piece.number] = part
        self._stored += part.size
        self._report()

    def _hash(self, piece: PartRange) -> str:
        """Return the digest (hex) of one part of the unchanged file. Blocking."""
        self._check_unchanged()
        return digest(self._fd, self._algorithm, piece.offset, piece.size).hex()

    def _check_unchanged(self) -> None:
        """Raise if the file's size or mtime changed: the other parts need not be sent."""
        if not fingerprint_of(self._fd).same_data(self.fingerprint):
            raise fault("changed_while_uploading", "its size or mtime changed")

    async def _send_part(self, piece: PartRange, digest: str) -> Part:
        def sent(total: int) -> None:
            self._sending[piece.number] = total
            self._report()

        request = self._bucket.request(
            Operation.MULTIPART_PART,
            self._key,
            size=piece.size,
            checksum=f"{self._algorithm}:{digest}",
            upload_id=self._version.upload_id,
            part_number=piece.number,
        )
        body = Slice(self._fd, piece.offset, piece.size, whole=False)
        try:
            response = await self._bucket.store.send(request, body, accept=(404, 501), on_sent=sent)
        except RetryFault as refused:
            if refused.code != "rejected" or piece.number <= FEW_PARTS or self._bucket.max_parts == FEW_PARTS:
                raise
            self._bucket.max_parts = FEW_PARTS  # Swift, Scaleway: "Part number must be … between 1 and 1000"
            raise fault("upload_lost", f"{refused.detail}: begun again in larger parts") from None
        if response.status == 404:  # noqa: PLR2004
            raise _upload_fault(response)
        if response.status == 501:  # noqa: PLR2004 - it has a part of this number, and accepts no second
            return await self._find_sent_part(piece, digest)
        return Part(piece.number, piece.size, digest, self._proven_etag(response, digest))

    def _proven_etag(self, response: Response, digest: str) -> str:
        """Return a part's ETag; raise ``bad_digest`` if the response disproves the part."""
        if self._algorithm == "md5":
            proves_upload(response, digest, md5_etags=self._part_etags_are_md5)
            return response.etag or digest
        confirms(f"{self._algorithm}:{digest}", response.checksum(self._algorithm))
        return response.etag

    async def _find_sent_part(self, piece: PartRange, digest: str) -> Part:
        """Return a part whose response was lost; if its number has other content, raise ``upload_lost``."""
        listing = await self._list(after=piece.number - 1)
        for found in listing.elements("Part"):
            if found.get("PartNumber") == str(piece.number) and bare(found.get("ETag", "")).lower() == digest:
                return Part(piece.number, piece.size, digest, digest)
        raise fault("upload_lost", f"part {piece.number} can't be sent again")

    def _list(self, *, after: int = 0) -> Awaitable[Response]:
        """List the parts with a number above ``after``; a 404 is an answer."""
        request = self._bucket.request(
            Operation.MULTIPART_LIST, self._key, upload_id=self._version.upload_id, part_number=after
        )
        return self._bucket.store.send(request, accept=(404,))

    async def _abort_if_lost(self, problem: Fault) -> Fault:
        """Abort the upload if ``problem`` is ``upload_lost``: the next attempt begins anew. Return ``problem``.

        The store may still have the upload, but without one of its parts, or accept no more parts.
        """
        if problem.code == "upload_lost":
            await self._abort()
        return problem

    def _report(self) -> None:
        self._on_sent(self._stored + sum(self._sending.values()))

    # --- completing it --------------------------------------------------------------------------
    async def _complete(self, decision: Decision) -> StoredObject | None:
        """Complete the upload and compare the object; None when another object was written under the key (412)."""
        try:
            response = await self._send_complete(decision)
        except (StoreFault, RetryFault) as problem:
            return await self._resolve_unclear(problem)
        if response.status == 412:  # noqa: PLR2004
            return None
        if response.status == 404 or response.code:  # noqa: PLR2004 - S3 sends an <Error> with 200, too
            return await self._resolve_unclear(_upload_fault(response))
        found = await self._find_sized()
        if found is None or not await self._is_ours(found, response):
            await self._abort()  # the upload id is no longer valid
            raise fault("bad_digest", "the completed object is not what its parts make")
        return found

    async def _resolve_unclear(self, problem: Fault) -> StoredObject:
        """Return the object if it is there after an unclear response (500, timeout, 404 when done); else raise."""
        if found := await self._find_completed():
            return found
        if problem.code != "upload_lost" and await self._is_gone():
            # The store may have completed the upload between the two requests.
            if found := await self._find_completed():
                return found
            problem = fault("upload_lost", problem.detail)
        raise await self._abort_if_lost(problem)

    async def _is_gone(self) -> bool:
        """Return whether the store certainly no longer knows the upload: it was aborted elsewhere, or completed."""
        try:
            response = await self._list()
        except Fault:
            return False  # s3:ListMultipartUploadParts is a separate permission
        return response.status == 404 and response.code == "NoSuchUpload"  # noqa: PLR2004

    def _send_complete(self, decision: Decision) -> Awaitable[Response]:
        body = complete_body([(part.number, part.etag) for part in self._parts.values()])
        request = self._bucket.request(
            Operation.MULTIPART_COMPLETE,
            self._key,
            size=len(body),
            content_type="application/xml",
            upload_id=self._version.upload_id,
            if_none_match=decision.if_none_match,
            if_match=decision.if_match,
        )
        return self._bucket.store.send(request, body, accept=(404, 412))

    async def _find(self) -> StoredObject | None:
        return await self._bucket.find(self._key, denied_is_absent=False, with_checksums=self._algorithm != "md5")

    async def _find_sized(self) -> StoredObject | None:
        """Return the object under the key if it has our size."""
        found = await self._find()
        return found if found and found.size == self._version.size else None

    async def _has_our_checksum(self, found: StoredObject) -> bool:
        """Return whether the checksum is ours, or the ETag is made of our parts' MD5s or is the MD5 of the file."""
        if self._algorithm != "md5" or found.opaque:
            return self.checksum in found.checksums
        if is_md5(found.etag):
            return await in_background(checksum_like, self._fd, "md5:", found.size) == f"md5:{found.etag.lower()}"
        return f"md5:{found.etag.lower()}" == self.checksum

    async def _is_ours(self, found: StoredObject, response: Response) -> bool:
        """Return whether a Complete with this response made the object.

        Each part was verified when it was sent (if responses prove nothing, the object is read back), and the store
        responded that it assembled them. An ETag that differs disproves that only in a bucket where the ETags of such
        objects are made of MD5s; elsewhere (R2, OSS, a gateway that keeps none) the store chooses the ETag. A
        CRC is returned for every object.
        """
        if self._algorithm != "md5":
            completed = response.checksum_in_body(self._algorithm)
            return self.checksum in found.checksums and completed in ("", self.checksum)
        if await self._has_our_checksum(found):
            return True
        if not found.etag and f"md5:{bare(response.element('ETag')).lower()}" == self.checksum:
            return True
        if not self._support.proves:
            return await holds_bytes(self._bucket, self._key, found, self._ours)
        return found.opaque or not self._support.md5_etags

    @property
    def _ours(self) -> Sent:
        return Sent(self._version.size, self.checksum, self.part_size, "")

    async def _find_completed(self) -> StoredObject | None:
        """Return the object if it is that of a Complete with an unclear response, else None.

        Its checksum or its ETag decides, or it is read back.
        """
        found = await self._find_sized()
        if found is None or await self._has_our_checksum(found):
            return found
        if self._algorithm in {algorithm_of(checksum) for checksum in found.checksums}:
            return None
        etags_tell = self._algorithm == "md5" and self._part_etags_are_md5 and self._support.md5_etags
        if etags_tell and is_md5(found.etag) and not found.opaque:
            return None
        read = await read_back(self._bucket, self._key, found, [self._ours])
        return found if self.checksum in read.values() else None

    async def _abort(self) -> None:
        """Abort the version's upload, and remove it from the ledger."""
        await abort(self._bucket, self._version)
        self._version = await self._ledger.end_upload(self._version)


async def abort(bucket: Bucket, version: FileVersion) -> None:
    """Abort a version's upload; raise ``Fault``.

    An upload that the store no longer knows, or that the broker has as another client's, counts as aborted.
    """
    try:
        assert version.key is not None
        request = bucket.request(Operation.MULTIPART_ABORT, version.key, upload_id=version.upload_id)
        await bucket.store.send(request, accept=(404,))
    except RetryFault as problem:
        if problem.code != "upload_lost":
            raise


def _upload_fault(response: Response) -> Fault:
    """Return the fault for a 404, or for an error in a 200, of a part or a Complete."""
    if response.status != 404:  # noqa: PLR2004
        return fault("server_error", response.code)
    if response.code == "NoSuchBucket":
        return fault("no_such_bucket", "404 NoSuchBucket")
    return fault("upload_lost", response.code)


def first_fault(group: BaseExceptionGroup) -> Fault:
    """Return the first fault of a group that holds nothing else; raise any other group."""
    faults, bugs = group.split(Fault)
    if faults is None or bugs is not None:
        raise group
    first = faults.exceptions[0]
    return first_fault(first) if isinstance(first, BaseExceptionGroup) else first


class Sweeper:
    """Aborts orphans: uploads in the ledger whose versions are no longer uploading."""

    def __init__(self, ledger: Ledger, buckets: Mapping[str, Bucket], *, pause: float = SWEEP_SECONDS) -> None:
        self._ledger, self._buckets, self._pause = ledger, buckets, pause
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Sweep now: a version that has an upload ended or was quarantined."""
        self._wake.set()

    async def run(self) -> None:
        """Sweep at the start, on ``wake``, and every ``pause`` seconds; never return."""
        with alive("sweeper") as heart:
            while True:
                self._wake.clear()
                await self.sweep()
                heart.beat(within=self._pause)
                await within(self._pause, self._wake)

    async def sweep(self) -> None:
        """Abort all orphans that the ledger has now."""
        for version in await self._ledger.uploads_left():
            await self._abort(version)

    async def _abort(self, version: FileVersion) -> None:
        bucket = self._buckets.get(version.watch)
        if bucket is None or version.key is None:
            return
        try:
            await abort(bucket.for_bucket(version.bucket), version)
            await self._ledger.end_upload(version)
        except (Fault, LostUpdate) as problem:
            log.debug("upload.abort_failed", file_id=version.file_id, key=version.key, error=str(problem))
