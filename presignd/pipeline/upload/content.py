"""The two ways a file's content goes under its key: whole, in one PUT, or in parts.

Both are asked the same: what the content is, in whatever form an object's is told, and to send it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import nullcontext
from typing import Protocol

from presignd.config import UploadConfig
from presignd.errors import fault
from presignd.ledger import Ledger
from presignd.model import FileVersion, Fingerprint, Sent
from presignd.pipeline.files.hash import checksum_like, fingerprint_of
from presignd.pipeline.upload.bucket import Bucket, StoredObject
from presignd.pipeline.upload.collision import Plan, as_honoured, is_sure, still_holds
from presignd.pipeline.upload.identify import holds_bytes
from presignd.pipeline.upload.multipart import Multipart
from presignd.pipeline.upload.slots import Slots
from presignd.pipeline.upload.whole import TINY, Prepared, prepare, put, verify, verify_found
from presignd.runtime.crash_points import passed
from presignd.s3.multipart import part_size_for
from presignd.store.probe import Support
from presignd.system.threads import in_background


class Content(Protocol):
    """An open file on its way. ``fingerprint`` was taken before the first byte was read."""

    fingerprint: Fingerprint
    sha256: str

    @property
    def checksum(self) -> str:
        """The receipt's checksum; "" while it isn't known yet."""
        ...

    @property
    def part_size(self) -> int:
        """Bytes in a part, which a checksum of parts is made of; 0 for a whole file."""
        ...

    @property
    def size(self) -> int:
        """Bytes."""
        ...

    async def checksum_like(self, like: str, part_size: int, size: int | None = None) -> str:
        """Return the checksum of it, or of its first ``size`` bytes, in the form of ``like``."""
        ...

    def adopted(self, checksum: str, part_size: int) -> None:
        """Hear that an object holds these bytes, as this checksum tells: the receipt's, unless it has one."""
        ...

    async def send(self, version: FileVersion, plan: Plan, honours: Support) -> tuple[FileVersion, StoredObject | None]:
        """Bring the content under the version's key; None when the key changed hands meanwhile (412)."""
        ...

    def is_unchanged(self) -> bool:
        """Read the content once more and tell whether it is what was sent. Blocking."""
        ...


class Whole:
    """A file that goes as one PUT."""

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
        """Bytes."""
        return self.fingerprint.size

    @property
    def checksum(self) -> str:
        """``md5:…`` or ``sha256:…``, as ``upload.checksum`` says."""
        return self._prepared.checksum(self._kind)

    async def checksum_like(self, like: str, part_size: int, size: int | None = None) -> str:
        """Return what is known already, else hash."""
        if size is None and "-" not in like and (like.startswith("md5:") or self.sha256):
            return self._prepared.checksum(like.partition(":")[0])
        return await in_background(
            checksum_like, self._prepared.fd, like, self.size if size is None else size, part_size
        )

    def adopted(self, checksum: str, part_size: int) -> None:
        """Keep the checksum there is."""

    async def send(self, version: FileVersion, plan: Plan, honours: Support) -> tuple[FileVersion, StoredObject | None]:
        """PUT and verify."""
        version = await _intend(self._ledger, version, self._prepared.md5)
        passed("put.before")
        async with self._slots.small() if self.fingerprint.size <= TINY else nullcontext():
            answer = await put(
                self._bucket,
                version,
                self._prepared,
                as_honoured(plan, honours),
                checksum=self.checksum,
                also_md5=self._kind != "md5" and not honours.sha256,
                on_sent=self._on_sent,
            )
        passed("put.after")
        if answer.status in (404, 412):
            return version, None
        md5, key = self._prepared.md5, version.key or ""
        if verify(answer, md5, md5_etags=honours.md5_etags) and honours.proves:
            return version, StoredObject(version.size, answer.etag, answer.headers.get("x-amz-version-id", ""))
        found = await self._bucket.find(key, denied_is_absent=False)
        found = verify_found(found, version.size, md5, md5_etags=honours.md5_etags)
        if not (honours.proves or await holds_bytes(self._bucket, key, found, Sent(version.size, f"md5:{md5}", 0, ""))):
            raise fault("bad_digest", "the object is not what was sent")
        return version, found

    def is_unchanged(self) -> bool:
        """Hash it again."""
        return prepare(self._prepared.fd, self.fingerprint.size, sha256=False).md5 == self._prepared.md5


class InParts:
    """A file above ``multipart_threshold``. ``recheck`` raises when the file is not what was settled."""

    def __init__(
        self,
        bucket: Bucket,
        ledger: Ledger,
        slots: Slots,
        upload: UploadConfig,
        *,
        fd: int,
        sha256: str,
        recheck: Callable[[], object],
        on_sent: Callable[[int], None],
    ) -> None:
        self._multipart = Multipart(bucket, ledger, slots, upload, fd=fd, check=self._check, on_sent=on_sent)
        self._bucket, self._ledger, self._fd, self._recheck = bucket, ledger, fd, recheck
        self.fingerprint, self.sha256 = fingerprint_of(fd), sha256
        self.part_size = part_size_for(self.size, upload.part_size, bucket.most_parts)
        self.checksum = ""

    @property
    def size(self) -> int:
        """Bytes."""
        return self.fingerprint.size

    async def checksum_like(self, like: str, part_size: int, size: int | None = None) -> str:
        """Hash the file."""
        return await in_background(checksum_like, self._fd, like, self.size if size is None else size, part_size)

    def adopted(self, checksum: str, part_size: int) -> None:
        """Have this checksum in the receipt: the file needs no other one then."""
        self.checksum, self.part_size = checksum, part_size

    async def send(self, version: FileVersion, plan: Plan, honours: Support) -> tuple[FileVersion, StoredObject | None]:
        """Send what is missing, look at the file once more, and complete.

        Where the store doesn't hold to the plan's condition then, a HEAD just before looks at the key instead.
        """
        version = await self._multipart.send_parts(version, honours)
        self.part_size, self.checksum = version.part_size, f"md5:{self._multipart.etag}"
        await asyncio.to_thread(self._recheck)
        version = await _intend(self._ledger, version, self._multipart.etag)
        passed("complete.before")
        found = None
        sure = as_honoured(plan, honours)
        if is_sure(plan, sure) or still_holds(plan, await self._bucket.find(version.key or "", denied_is_absent=False)):
            found = await self._multipart.complete(version, sure)
        passed("complete.after")
        if found is None:
            version = await self._multipart.abort(version)
        return version, found

    def _check(self) -> None:
        """Raise as soon as the file is seen to change: the parts still to come would be for nothing."""
        if not fingerprint_of(self._fd).same_data(self.fingerprint):
            raise fault("changed_while_uploading", "its size or mtime changed")

    def is_unchanged(self) -> bool:
        """Hash the parts again."""
        now = checksum_like(self._fd, self.checksum, self.fingerprint.size, self.part_size)
        return now == self.checksum


async def _intend(ledger: Ledger, version: FileVersion, etag: str) -> FileVersion:
    """Commit the ETag that the object will have.

    Crash window: the object is there and its receipt isn't. When the file has other content by then, its
    newer version knows the object for its own path's by this ETag, and replaces it. So an ETag is never given up:
    other content of the same size and mtime, renamed over the file while it waited, is another version too.
    """
    if version.etag == etag:
        return version
    if version.etag:
        raise fault("changed_while_uploading", "it was sent with other content before")
    return await ledger.update(version, etag=etag)
