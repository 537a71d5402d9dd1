"""Compare a file with the object that the store holds under its key now, for ``presignd verify``.

The object's own checksum decides, else its ETag, else its bytes, which are downloaded. The file is always read: the
ledger's checksum is only what its object is compared with once the file is gone.
"""

from __future__ import annotations

import asyncio
import os
import posixpath
import stat
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import takewhile
from operator import methodcaller
from typing import Any, ParamSpec, TypeVar

from presignd.config import Config, WatchConfig
from presignd.errors import (
    Fault,
    GrantFault,
    PresigndError,
    PresignerFault,
    Refused,
    RetryFault,
    StoreFault,
    Unavailable,
    UsageError,
    fault,
)
from presignd.model import FileVersion
from presignd.pipeline.files.folder import Folder, Gone, NotRegular
from presignd.pipeline.files.hash import ALGORITHMS, Digest, checksum_like, fingerprint_of, read_at
from presignd.pipeline.files.ignore import Ignore
from presignd.pipeline.files.rename import numbered_names
from presignd.pipeline.finish.target import target_of
from presignd.pipeline.upload.bucket import Bucket, StoredObject
from presignd.pipeline.watch.scan import Scan
from presignd.s3.checksums import STRONG, algorithm_of
from presignd.s3.responses import is_md5
from presignd.store.rate import RateLimit
from presignd.store.signed import signed_store
from presignd.system.clock import utcnow
from presignd.system.filesystem import close_quietly
from presignd.system.threads import in_background, opened

P = ParamSpec("P")
T = TypeVar("T")

PAUSES = (0.5, 2.0)
"""Seconds before the second and the third try of a request that the store or the presigner fails."""

AWAY_AFTER = 5
"""Files in a row whose requests failed, after which the store counts as away and no more requests are sent. A damaged
object also causes 5xx, but does not stop the files after it."""

DENIED = "S3 answers so for a missing object too, unless s3:ListBucket is granted"

SAME_MTIME_NS = 2_000_000_000
"""How far the mtime of a file that was moved to another filesystem may differ: FAT stores steps of two seconds."""


class Outcome(StrEnum):
    """What the comparison of one file found."""

    EQUAL = "equal"
    DIFFERS = "differs"
    MISSING = "missing"
    """The store holds no object of this file."""
    UNCHECKED = "unchecked"


class By(StrEnum):
    """What decided."""

    SIZE = "size"
    CHECKSUM = "checksum"
    ETAG = "etag"
    DOWNLOAD = "download"


class Against(StrEnum):
    """What the object was compared with."""

    FILE = "file"
    MOVED = "moved"
    """The file in ``move_to``."""
    RECEIPT = "receipt"
    """The receipt's checksum: the file is gone, or is not readable here."""


@dataclass(frozen=True, slots=True)
class Verified:
    """The result for one file; ``why`` is for people, and "" for an equal one.

    ``problem`` is why it was not checked. ``skipped``: nothing was tried, because the store was away already or because
    the file waits for its upload.
    """

    outcome: Outcome
    why: str = ""
    by: By | None = None
    against: Against | None = None
    found: StoredObject | None = None
    problem: PresigndError | None = None
    skipped: bool = False


def unchecked(problem: PresigndError, *, skipped: bool = False) -> Verified:
    """Return the result of a file that could not be checked."""
    return Verified(Outcome.UNCHECKED, problem.message, problem=problem, skipped=skipped)


# --- what the store tells -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Proof:
    """A checksum that the store tells of an object, in the form of ``hash.checksum_like``.

    ``decides``: another checksum means other content. Else it may be made in another way, and only equality counts.
    ``proves``: the same checksum means the same content.
    """

    by: By
    checksum: str
    part_size: int
    decides: bool
    proves: bool = True


def proofs(found: StoredObject, version: FileVersion) -> Iterator[Proof]:
    """Return what the answer to a HEAD tells of the object's content, best first.

    An ETag that the store gave for our own upload stands for what was uploaded, whatever its form. Any other is an MD5
    only where our own was one: some stores, and SSE-KMS, have others. Anyone can make other bytes of a given CRC, so
    one proves something only under the ETag of our own upload.
    """
    is_ours = bool(found.etag) and found.etag == version.etag
    for checksum in sorted(found.checksums, key=lambda told: algorithm_of(told) not in STRONG):
        if algorithm_of(checksum) in ALGORITHMS:
            for proof in _by_checksum(By.CHECKSUM, checksum, found, version, decides=True):
                yield replace(proof, proves=is_ours or algorithm_of(checksum) in STRONG)
    if is_ours and version.checksum:
        yield Proof(By.ETAG, version.checksum, version.part_size, decides=True)
    if not found.opaque and found.etag:
        decides = is_md5(found.etag) and version.checksum == f"md5:{version.etag.lower()}"
        yield from _by_checksum(By.ETAG, f"md5:{found.etag.lower()}", found, version, decides=decides)


def _by_checksum(by: By, checksum: str, found: StoredObject, version: FileVersion, *, decides: bool) -> Iterator[Proof]:
    """Yield a checksum of the whole, or one of as many parts as our upload had: others can't be computed here."""
    digest, dash, parts = checksum.partition("-")
    if not dash and (by is not By.ETAG or is_md5(found.etag)):
        yield Proof(by, digest, 0, decides)
    elif dash and version.part_size and parts == str(-(-found.size // version.part_size)):
        yield Proof(by, checksum, version.part_size, decides=False)


# --- what it is compared with -------------------------------------------------------------------------


class _DiffersError(Exception):
    """The object has another byte at ``offset`` than the file."""

    def __init__(self, offset: int) -> None:
        self.offset = offset


class OpenFile:
    """A file, open for reading. Threads read it; ``close`` stops them, and the last one closes the descriptor."""

    def __init__(self, fd: int, against: Against) -> None:
        self._fd, self.against = fd, against
        self._stop = threading.Event()
        self._reading: asyncio.Future[Any] | None = None
        self._before = fingerprint_of(fd)
        self._offset = 0

    @property
    def size(self) -> int:
        """The file's size in bytes."""
        return self._before.size

    async def checksum_like(self, like: str, part_size: int) -> str:
        """Return the content's checksum in the form of ``like``."""
        return await self._read(checksum_like, self._fd, like, self.size, part_size, stop=self._stop)

    def restart(self) -> None:
        """Begin a comparison with an object's bytes."""
        self._offset = 0

    async def take(self, piece: bytes) -> None:
        """Compare the next bytes of the object; raise ``_DiffersError``."""
        offset, self._offset = self._offset, self._offset + len(piece)
        ours = await self._read(read_at, self._fd, len(piece), offset)
        if ours != piece:
            raise _DiffersError(offset + _common(ours, piece))

    def is_equal(self) -> bool:
        """Return whether the bytes that ``take`` compared are the whole file."""
        return self._offset == self.size

    def require_unchanged(self) -> None:
        """Raise ``changed_while_uploading`` if the file changed since it was opened."""
        if fingerprint_of(self._fd) != self._before:
            raise fault("changed_while_uploading")

    async def _read(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        reading = asyncio.ensure_future(in_background(call, *args, **kwargs))
        self._reading = reading
        return await asyncio.shield(reading)

    def close(self) -> None:
        """Close the file, once no thread reads from it."""
        self._stop.set()
        if self._reading is None or self._reading.done():
            close_quietly(self._fd)
        else:
            self._reading.add_done_callback(self._close_after)

    def _close_after(self, read: asyncio.Future[Any]) -> None:
        _ = read.cancelled() or read.exception()  # nobody else asks for it any more
        close_quietly(self._fd)


class Receipt:
    """The recorded checksum of a file that is gone, or that only another user can read."""

    against = Against.RECEIPT

    def __init__(self, version: FileVersion) -> None:
        self._version, self.size = version, version.size
        self.restart()

    async def checksum_like(self, like: str, _part_size: int) -> str:
        """Return the recorded checksum if it has the form of ``like``, else ""."""
        ours = self._version.checksum
        return ours if _form(ours) == _form(like) else ""

    def restart(self) -> None:
        """Begin to hash an object's bytes."""
        self._digest = Digest(self._version.checksum or "md5:", self._version.part_size)

    async def take(self, piece: bytes) -> None:
        """Hash the next bytes of the object; raise ``Refused`` where there is no checksum to compare with."""
        if not self._version.checksum:
            raise Refused("the file is gone, and its receipt has no checksum to compare with")
        await in_background(self._digest.update, piece)

    def is_equal(self) -> bool:
        """Return whether the bytes that ``take`` hashed have the recorded checksum."""
        return self._digest.checksum == self._version.checksum

    def require_unchanged(self) -> None:
        """Do nothing: a receipt does not change."""

    def close(self) -> None:
        """Do nothing: nothing is open."""


Local = OpenFile | Receipt


def _form(checksum: str) -> tuple[str, str]:
    return algorithm_of(checksum), checksum.partition("-")[2]


def _common(ours: bytes, theirs: bytes) -> int:
    """Return how many bytes both begin with."""
    return len(posixpath.commonprefix([ours, theirs]))


# --- one file -----------------------------------------------------------------------------------------


@asynccontextmanager
async def verifying(config: Config, rate: RateLimit, *, download: bool) -> AsyncIterator[Verifier]:
    """Yield a ``Verifier`` for the watches of ``config``, with folders and connections of its own.

    A reload closes neither, and uploads wait for none of its requests. ``rate`` limits what is sent.
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

    ``download``: compare every byte, whatever the store tells.
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
            return _owned(os.dup(fd), Against.FILE)
        if version.path.startswith(b"/"):  # from outside the watches: the daemon's rights are not the client's
            return Receipt(version)
        folder = self._folders[version.watch]
        if isinstance(folder, PresigndError):
            raise folder
        try:
            return _owned(folder.open(version.path), Against.FILE)
        except (Gone, NotRegular):
            moved = _open_moved(folder, self._buckets[version.watch].watch, version)
        return Receipt(version) if moved is None else _owned(moved, Against.MOVED)

    def scan(self, watch: str, directory: bytes) -> Scan | None:
        """Return a scan of a directory in a watch (b"" for all of it), None if the watch's folder can't be opened."""
        folder, config = self._folders.get(watch), self._buckets[watch].watch
        if not isinstance(folder, Folder):
            return None
        return Scan(folder, Ignore.of(config), directory, recursive=config.recursive)

    def is_directory(self, watch: str, path: bytes) -> bool:
        """Return whether a directory of a watch is at ``path``. Blocking."""
        folder = self._folders.get(watch)
        with suppress(PresigndError):
            return isinstance(folder, Folder) and stat.S_ISDIR(folder.stat(path).st_mode)
        return False

    # --- the object -----------------------------------------------------------------------------
    async def _compare(self, version: FileVersion, local: Local) -> Verified:
        bucket, key = self._buckets[version.watch].for_bucket(version.bucket), version.key or ""
        is_crc = version.checksum.startswith("crc")  # so its upload asked for checksums, too
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
        except _DiffersError as at:
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
        """Return what ``call`` returns, tried again where the store or the presigner fails; raise its ``Fault``."""
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


def difference(version: FileVersion, found: StoredObject, size: int, *, file_kept: bool, offset: int | None) -> str:
    """Return how a file of ``size`` bytes and its object differ, and which of them changed since the upload. Pure."""
    object_kept = bool(found.etag) and found.etag == version.etag and found.size in (-1, version.size)
    changed = [] if file_kept else ["the file changed since it was uploaded"]
    if not object_kept:
        changed.append("the object was replaced" + (f" on {found.modified}" if found.modified else ""))
    if not changed:
        changed = ["the object holds other bytes than were uploaded, under the same ETag"]
    if found.size not in (-1, size):
        changed.append(f"the object has {found.size} bytes, not {size}")
    elif offset is not None:
        changed.append(f"they differ from byte {offset} on")
    return "; ".join(changed)


def _owned(fd: int, against: Against) -> OpenFile:
    try:
        return OpenFile(fd, against)
    except PresigndError:
        close_quietly(fd)
        raise


def _open_moved(folder: Folder, watch: WatchConfig, version: FileVersion) -> int | None:
    """Open the file that was moved to ``move_to``; None where it is not there. Blocking.

    It may have a number there, as another file had its name: its inode tells, or on another filesystem its size and
    time.
    """
    if watch.after != "move":
        return None
    parent, name = posixpath.split(version.path)
    with suppress(OSError), target_of(folder, watch, parent, make=False) as target:
        there = [(each, os.stat(each, dir_fd=target, follow_symlinks=False)) for each in _taken(target, name)]
        regular = [(each, st) for each, st in there if stat.S_ISREG(st.st_mode)]
        same = [each for each, st in regular if st.st_ino == version.fingerprint.ino]
        alike = [each for each, st in regular if _is_alike(st, version)]
        for each in (same + alike)[:1]:
            return os.open(each, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=target)
    return None


def _taken(directory: int, name: bytes) -> Iterator[bytes]:
    def is_taken(each: bytes) -> bool:
        with suppress(FileNotFoundError):
            os.stat(each, dir_fd=directory, follow_symlinks=False)
            return True
        return False

    return takewhile(is_taken, numbered_names(name))


def _is_alike(st: os.stat_result, version: FileVersion) -> bool:
    recorded = version.fingerprint
    return st.st_size == recorded.size and abs(st.st_mtime_ns - recorded.mtime_ns) <= SAME_MTIME_NS
