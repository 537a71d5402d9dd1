"""Compare a file with the object that the store holds under its key now.

The object's own checksum decides, else its ETag, else its bytes, which are downloaded. The file is always read: the
ledger's checksum is only what its object is compared with once the file is gone.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from operator import methodcaller
from typing import TypeVar

from presignd.config import Config, WatchConfig
from presignd.errors import (
    Fault,
    GrantFault,
    PresigndError,
    PresignerFault,
    RetryFault,
    StoreFault,
    Unavailable,
    UsageError,
)
from presignd.model import FileVersion
from presignd.pipeline.files.folder import Folder, Gone, NotRegular
from presignd.pipeline.files.ignore import Ignore
from presignd.pipeline.upload.bucket import Bucket, StoredObject
from presignd.pipeline.watch.scan import Scan
from presignd.store.rate import RateLimit
from presignd.store.signed import signed_store
from presignd.system.clock import utcnow
from presignd.system.threads import opened
from presignd.verify.contents import DiffersError, Local, Receipt, open_moved, owned
from presignd.verify.proofs import Against, By, Outcome, Verified, difference, proofs, unchecked

T = TypeVar("T")

PAUSES = (0.5, 2.0)
"""Seconds before the second and the third try of a request that the store or the presigner fails."""

AWAY_AFTER = 5
"""Number of files in a row whose requests failed, after which the store counts as away and no more requests are sent. A
damaged object also causes 5xx, but does not stop the files after it."""

DENIED = "S3 answers so for a missing object too, unless s3:ListBucket is granted"


@asynccontextmanager
async def verifying(config: Config, rate: RateLimit, *, download: bool) -> AsyncIterator[Verifier]:
    """Yield a ``Verifier`` for the watches of ``config``, with folders and connections of its own.

    A reload closes neither, and its requests delay no upload. ``rate`` limits what is sent.
    """
    async with AsyncExitStack() as stack:
        signed = signed_store(config.presign, config.upload, clock=utcnow, rate=rate)
        stack.push_async_callback(signed.close)
        folders = await opened(lambda: _open_folders(config.watches), _close_folders)
        stack.callback(_close_folders, folders)
        buckets = {watch.name: Bucket(watch, config.presign, config.upload, signed) for watch in config.watches}
        yield Verifier(buckets, folders, download=download)


def _open_folders(watches: Sequence[WatchConfig]) -> dict[str, Folder | PresigndError]:
    folders: dict[str, Folder | PresigndError] = {}
    for watch in watches:
        try:
            folders[watch.name] = Folder(watch)
        except UsageError as error:
            folders[watch.name] = Unavailable(error.message, fix=error.fix)
    return folders


def _close_folders(folders: Mapping[str, Folder | PresigndError]) -> None:
    for folder in folders.values():
        if isinstance(folder, Folder):
            folder.close()


class Verifier:
    """Compares files with their objects, over connections of its own: uploads keep theirs.

    ``download``: compare every byte, whatever checksums the store returns.
    """

    def __init__(
        self,
        buckets: Mapping[str, Bucket],
        folders: Mapping[str, Folder | PresigndError],
        *,
        download: bool,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._buckets, self._folders, self._download, self._sleep = buckets, folders, download, sleep
        self._failed = 0
        self._away: Fault | None = None

    async def verify(self, version: FileVersion, fd: int | None = None) -> Verified:
        """Compare the file of a version that has a receipt with its object.

        ``fd`` is the file that a client holds open, for a version from outside the watches; it stays the client's.
        """
        if self._away:
            return unchecked(self._away, skipped=True)
        try:
            if version.watch not in self._buckets:
                raise Unavailable(f"there is no watch {version.watch} any more", fix="run it again")
            local = await opened(lambda: self._open(version, fd), methodcaller("close"))
            try:
                verified = await self._compare(version, local)
                local.require_unchanged()
            finally:
                local.close()
        except PresigndError as problem:
            denied = problem.code == "access_denied"
            return replace(unchecked(problem), why=f"{problem.message}; {DENIED}" if denied else problem.message)
        return replace(verified, against=local.against)

    # --- the file -------------------------------------------------------------------------------
    def _open(self, version: FileVersion, fd: int | None) -> Local:
        """Open the file where it is now. Blocking."""
        if fd is not None:
            return owned(os.dup(fd), Against.FILE)
        if version.path.startswith(b"/"):  # from outside the watches: the daemon's rights are not the client's
            return Receipt(version)
        folder = self._folders[version.watch]
        if isinstance(folder, PresigndError):
            raise folder
        try:
            return owned(folder.open(version.path), Against.FILE)
        except (Gone, NotRegular):
            moved = open_moved(folder, self._buckets[version.watch].watch, version)
        return Receipt(version) if moved is None else owned(moved, Against.MOVED)

    def scan(self, watch: str, directory: bytes) -> Scan | None:
        """Return a scan of a directory in a watch (b"" for all of it), None if the watch's folder can't be opened."""
        folder, config = self._folders.get(watch), self._buckets[watch].watch
        if not isinstance(folder, Folder):
            return None
        return Scan(folder, Ignore(config), directory, recursive=config.recursive)

    def is_directory(self, watch: str, path: bytes) -> bool:
        """Return whether a directory of a watch is at ``path``. Blocking."""
        folder = self._folders.get(watch)
        with suppress(PresigndError):
            return isinstance(folder, Folder) and stat.S_ISDIR(folder.stat(path).st_mode)
        return False

    # --- the object -----------------------------------------------------------------------------
    async def _compare(self, version: FileVersion, local: Local) -> Verified:
        bucket, key = self._buckets[version.watch].for_bucket(version.bucket), version.key or ""
        is_crc = version.checksum.startswith("crc")  # so its upload requested checksums, too
        found = await self._retried(lambda: bucket.find(key, denied_is_absent=False, with_checksums=is_crc))
        if found is None:
            return Verified(Outcome.MISSING, "the object is gone")
        if found.size not in (-1, local.size):
            return await self._explained(version, local, found, By.SIZE)
        for proof in () if self._download else proofs(found, version):
            ours = await local.checksum_like(proof.checksum, proof.part_size)
            if ours == proof.checksum and proof.proves:
                return Verified(Outcome.EQUAL, by=proof.by, found=found)
            if ours and ours != proof.checksum and proof.decides:
                return await self._explained(version, local, found, proof.by)
        return await self._retried(lambda: self._compare_bytes(bucket, version, local, found))

    async def _compare_bytes(self, bucket: Bucket, version: FileVersion, local: Local, found: StoredObject) -> Verified:
        local.restart()
        try:
            if not await bucket.read(version.key or "", local.take):
                return Verified(Outcome.MISSING, "the object is gone", found=found)
        except DiffersError as at:
            return await self._explained(version, local, found, By.DOWNLOAD, at.offset)
        if local.is_equal():
            return Verified(Outcome.EQUAL, by=By.DOWNLOAD, found=found)
        return await self._explained(version, local, found, By.DOWNLOAD)

    async def _explained(
        self, version: FileVersion, local: Local, found: StoredObject, by: By, offset: int | None = None
    ) -> Verified:
        """Return the result for a difference, with which side changed since the upload."""
        file_kept = local.size == version.size and (
            not version.checksum or await local.checksum_like(version.checksum, version.part_size) == version.checksum
        )
        why = difference(version, found, local.size, file_kept=file_kept, offset=offset)
        return Verified(Outcome.DIFFERS, why, by, found=found)

    async def _retried(self, call: Callable[[], Awaitable[T]]) -> T:
        """Return what ``call`` returns, retried if the store or the presigner fails; raise its ``Fault``."""
        pauses = iter(PAUSES)
        while True:
            try:
                done = await call()
            except (StoreFault, PresignerFault, GrantFault, RetryFault) as problem:
                pause = next(pauses, None)
                if pause is None or self._away:
                    self._note_failure(problem)
                    raise
                await self._sleep(max(pause, problem.retry_after or 0.0))
            else:
                self._failed = 0
                return done

    def _note_failure(self, problem: Fault) -> None:
        self._failed += isinstance(problem, (StoreFault, PresignerFault))
        if self._failed >= AWAY_AFTER:
            self._away = problem
