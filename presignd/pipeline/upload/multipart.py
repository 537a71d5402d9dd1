"""A large file in parts, by grants alone: create, send what is missing, complete; every step durable.

The ledger knows the upload before its first part is sent and each part once the store has it, so after a
crash only the parts that were in flight go again. Trust is in those records, not in ListParts, which some
servers answer with duplicates; it is asked only about a part that a server refuses to take twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from presignd.config import UploadConfig
from presignd.errors import Fault, RetryFault, StoreFault, fault
from presignd.ledger import Ledger
from presignd.model import FileVersion, Part, Sent
from presignd.pipeline.files.hash import checksum_like, digest
from presignd.pipeline.upload.bucket import Bucket, StoredObject
from presignd.pipeline.upload.collision import Plan, is_md5
from presignd.pipeline.upload.identify import holds_bytes, read_back
from presignd.pipeline.upload.slots import Slots
from presignd.pipeline.upload.whole import verify
from presignd.presign import Operation
from presignd.runtime.crash_points import passed
from presignd.s3.limits import FEW_PARTS
from presignd.s3.multipart import PartRange, complete_body, etag_of_parts, in_order, part_ranges, part_size_for
from presignd.s3.responses import Response, bare
from presignd.store.body import Slice
from presignd.store.probe import Support
from presignd.system.threads import in_background
from presignd.telemetry.log import get_logger

log = get_logger()


class Multipart:
    """One version's upload in parts, from an open descriptor.

    ``check`` is asked before each part and raises once the file is not what it was; ``on_sent`` hears the
    bytes that the store has or gets.

    Raises ``Fault``; ``upload_lost`` when the store knows the upload no more: the version begins again.
    """

    def __init__(
        self,
        bucket: Bucket,
        ledger: Ledger,
        slots: Slots,
        upload: UploadConfig,
        *,
        fd: int,
        check: Callable[[], None],
        on_sent: Callable[[int], None],
    ) -> None:
        self._bucket, self._ledger, self._slots, self._upload = bucket, ledger, slots, upload
        self._fd, self._check, self._on_sent = fd, check, on_sent
        self._parts: dict[int, Part] = {}
        self._stored = 0
        self._moving: dict[int, int] = {}
        self._md5_etags = self._parts_tell = self._proves = True

    async def send_parts(self, version: FileVersion, honours: Support) -> FileVersion:
        """Create the upload unless there is one, and send every part the store doesn't have."""
        self._md5_etags, self._parts_tell = (await self._bucket.support()).md5_etags, honours.md5_etags
        self._proves = honours.proves
        version = await self._created(version)
        self._parts = {part.number: part for part in await self._ledger.parts(version)}
        self._stored = sum(part.size for part in self._parts.values())
        self._told()
        if self._parts:
            log.info("upload.resumed", file_id=version.file_id, key=version.key, parts=len(self._parts))
        cut = in_order([*part_ranges(version.size, version.part_size)])
        missing = iter([piece for piece in cut if piece.number not in self._parts])
        try:
            async with asyncio.TaskGroup() as runners:
                for _ in range(self._upload.part_concurrency):
                    runners.create_task(self._run(version, missing))
        except BaseExceptionGroup as group:  # what an "except*" raises would come wrapped in a group again
            faults, bugs = group.split(Fault)
            if faults is None or bugs is not None:
                raise
            raise await self._lost(version, _first(faults)) from None
        return version

    async def _created(self, version: FileVersion) -> FileVersion:
        """Return the version with its upload; crash window: one created but not recorded is nobody's.

        Its id is known to the store alone then; S3's lifecycle rule AbortIncompleteMultipartUpload is for it.
        """
        if version.upload_id:
            return version
        request = self._bucket.request(
            Operation.MULTIPART_CREATE,
            _key(version),
            content_type=version.content_type,
            headers=self._bucket.watch.headers,
        )
        answer = await self._bucket.send(request)
        upload_id = answer.element("UploadId")
        if not upload_id:
            raise fault("bad_response", "no UploadId")
        part_size = part_size_for(version.size, self._upload.part_size, self._bucket.most_parts)
        return await self._ledger.begin_upload(version, upload_id, part_size)

    async def _run(self, version: FileVersion, missing: Iterator[PartRange]) -> None:
        """Send parts until none is left; several run side by side."""
        for piece in missing:
            md5 = await in_background(self._hash, piece)
            async with self._slots.large():
                passed("part.before")
                part = await self._send(version, piece, md5)
            passed("part.after")
            # Crash window: a part that the store has and the ledger doesn't goes once more.
            await self._ledger.part_done(version, part)
            self._moving.pop(piece.number, None)
            self._parts[piece.number] = part
            self._stored += part.size
            self._told()

    def _hash(self, piece: PartRange) -> str:
        """Return the MD5 (hex) of one part of the unchanged file. Blocking."""
        self._check()
        return digest(self._fd, "md5", piece.offset, piece.size).hex()

    async def _send(self, version: FileVersion, piece: PartRange, md5: str) -> Part:
        def sent(total: int) -> None:
            self._moving[piece.number] = total
            self._told()

        request = self._bucket.request(
            Operation.MULTIPART_PART,
            _key(version),
            size=piece.size,
            checksum=f"md5:{md5}",
            upload_id=version.upload_id,
            part_number=piece.number,
        )
        body = Slice(self._fd, piece.offset, piece.size, whole=False)
        try:
            answer = await self._bucket.send(request, body, accept=(404, 501), on_sent=sent)
        except RetryFault as refused:
            if refused.code != "rejected" or piece.number <= FEW_PARTS or self._bucket.most_parts == FEW_PARTS:
                raise
            self._bucket.most_parts = FEW_PARTS  # Swift, Scaleway: "Part number must be … between 1 and 1000"
            raise fault("upload_lost", f"{refused.detail}: begun again in larger parts") from None
        if answer.status == 404:  # noqa: PLR2004
            raise _no_upload(answer)
        if answer.status == 501:  # noqa: PLR2004 - it has a part of this number, and takes none twice
            return await self._listed(version, piece, md5)
        verify(answer, md5, md5_etags=self._md5_etags)
        return Part(piece.number, piece.size, md5, answer.etag or md5)

    async def _listed(self, version: FileVersion, piece: PartRange, md5: str) -> Part:
        """Find a part that went through unseen; any other content under its number means to begin again."""
        request = self._bucket.request(
            Operation.MULTIPART_LIST, _key(version), upload_id=version.upload_id, part_number=piece.number - 1
        )
        listing = await self._bucket.send(request, accept=(404,))
        for found in listing.elements("Part"):
            if found.get("PartNumber") == str(piece.number) and bare(found.get("ETag", "")).lower() == md5:
                return Part(piece.number, piece.size, md5, md5)
        raise fault("upload_lost", f"part {piece.number} can't be sent again")

    async def _lost(self, version: FileVersion, problem: Fault) -> Fault:
        """Give up an upload that is lost, once no part of it moves any more: the next attempt begins anew.

        The store may still have it: one that lost a single part, or takes no more of them.
        """
        if problem.code == "upload_lost":
            await self.abort(version)
        return problem

    def _told(self) -> None:
        self._on_sent(self._stored + sum(self._moving.values()))

    @property
    def etag(self) -> str:
        """The ETag that the object must have, by the parts."""
        return etag_of_parts([self._parts[number].md5 for number in sorted(self._parts)])

    async def complete(self, version: FileVersion, plan: Plan) -> StoredObject | None:
        """Complete the upload and compare the object; None when the key changed hands meanwhile (412)."""
        try:
            answer = await self._complete(version, plan)
        except (StoreFault, RetryFault) as problem:
            return await self._settled(version, problem)
        if answer.status == 412:  # noqa: PLR2004
            return None
        if answer.status == 404 or answer.code:  # noqa: PLR2004 - S3 answers 200 with an <Error>, too
            return await self._settled(version, _no_upload(answer))
        found = await self._there(version)
        if found is None or not await self._is_its_own(version, found, answer):
            await self.abort(version)  # it is used up, and the next attempt would only be told so
            raise fault("bad_digest", "the completed object is not what its parts make")
        return found

    async def _settled(self, version: FileVersion, problem: Fault) -> StoredObject:
        """Settle an unclear answer (500, a timeout, 404 after it was done) by what is there; else raise it."""
        if found := await self._found_again(version):
            return found
        if problem.code != "upload_lost" and await self._is_gone(version):
            # The store may have been at it all the while, and have ended between the two looks.
            if found := await self._found_again(version):
                return found
            problem = fault("upload_lost", problem.detail)
        raise await self._lost(version, problem)

    async def _is_gone(self, version: FileVersion) -> bool:
        """Tell whether the store surely knows the upload no more: aborted elsewhere, or done."""
        request = self._bucket.request(Operation.MULTIPART_LIST, _key(version), upload_id=version.upload_id)
        try:
            answer = await self._bucket.send(request, accept=(404,))
        except Fault:
            return False  # s3:ListMultipartUploadParts is a right of its own
        return answer.status == 404 and answer.code == "NoSuchUpload"  # noqa: PLR2004

    async def _complete(self, version: FileVersion, plan: Plan) -> Response:
        body = complete_body([(part.number, part.etag) for part in self._parts.values()])
        request = self._bucket.request(
            Operation.MULTIPART_COMPLETE,
            _key(version),
            size=len(body),
            content_type="application/xml",
            upload_id=version.upload_id,
            if_none_match=plan.if_none_match,
            if_match=plan.if_match,
        )
        return await self._bucket.send(request, body, accept=(404, 412))

    async def _there(self, version: FileVersion) -> StoredObject | None:
        """Return the object under the key when it has our size."""
        found = await self._bucket.find(_key(version), denied_is_absent=False)
        return found if found and found.size == version.size else None

    async def _is_called_ours(self, found: StoredObject) -> bool:
        """Tell whether the ETag is the MD5 of our parts, or of the whole."""
        if found.opaque:
            return False
        if is_md5(found.etag):
            return await in_background(checksum_like, self._fd, "md5:", found.size) == f"md5:{found.etag.lower()}"
        return found.etag.lower() == self.etag

    async def _is_its_own(self, version: FileVersion, found: StoredObject, answer: Response) -> bool:
        """Tell whether an answered Complete made this object.

        Each part was checked as it came (where nothing proves that, the object is read back), and the store says
        that it put them together. An ETag that differs tells otherwise only in a bucket where the ETags of such
        objects are made of MD5s; anywhere else (R2, OSS, a gateway that keeps none) it is the name the store gave
        this object.
        """
        if await self._is_called_ours(found):
            return True
        if not found.etag and bare(answer.element("ETag")).lower() == self.etag:
            return True
        if not self._proves:
            return await holds_bytes(self._bucket, _key(version), found, self._ours(version))
        return found.opaque or not self._parts_tell

    def _ours(self, version: FileVersion) -> Sent:
        return Sent(version.size, f"md5:{self.etag}", version.part_size, "")

    async def _found_again(self, version: FileVersion) -> StoredObject | None:
        """Return the object of a Complete whose answer was unclear: known by its ETag, else read back."""
        found = await self._there(version)
        if found is None or await self._is_called_ours(found):
            return found
        if self._md5_etags and self._parts_tell and is_md5(found.etag) and not found.opaque:
            return None
        ours = self._ours(version)
        read = await read_back(self._bucket, _key(version), found, [ours])
        return found if read.get(ours) == ours.checksum else None

    async def abort(self, version: FileVersion) -> FileVersion:
        """Abort the upload that ``send_parts`` began, and forget it."""
        await abort(self._bucket, version)
        return await self._ledger.end_upload(version)


async def abort(bucket: Bucket, version: FileVersion) -> None:
    """Abort a version's upload; one that nobody knows, or the broker takes for another's, is aborted.

    Raises ``Fault``.
    """
    request = bucket.request(Operation.MULTIPART_ABORT, _key(version), upload_id=version.upload_id)
    try:
        await bucket.send(request, accept=(404,))
    except RetryFault as problem:
        if problem.code != "upload_lost":
            raise


def _key(version: FileVersion) -> str:
    assert version.key is not None
    return version.key


def _no_upload(answer: Response) -> Fault:
    """Say what a 404, or an error in a 200, means for the upload."""
    if answer.status != 404:  # noqa: PLR2004
        return fault("server_error", answer.code)
    if answer.code == "NoSuchBucket":
        return fault("no_such_bucket", "404 NoSuchBucket")
    return fault("upload_lost", answer.code)


def _first(group: BaseExceptionGroup[Fault]) -> Fault:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
