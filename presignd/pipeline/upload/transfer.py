"""uploading → verified, for one version: open, hash, name, bring it under its key, compare.

``Transfer.run`` returns what the ledger is to record, or raises: a ``Fault`` says what is done about it,
``Vanished`` that no file is there, ``Writing`` that somebody still writes.
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from presignd.config import UploadConfig, WatchConfig
from presignd.errors import Fault, fault
from presignd.ledger import Ledger
from presignd.model import FileVersion, Fingerprint
from presignd.pipeline.files.folder import Folder, Gone, NotRegular, translated
from presignd.pipeline.files.hash import checksum_like, fingerprint_of
from presignd.pipeline.files.lease import has_writer
from presignd.pipeline.intake import refuse_too_large
from presignd.pipeline.key_template import may_number, needs_hash, render_for
from presignd.pipeline.put import PutRequest
from presignd.pipeline.upload import collision
from presignd.pipeline.upload.bucket import Bucket, StoredObject
from presignd.pipeline.upload.collision import Act, Plan, Whose
from presignd.pipeline.upload.content import Content, InParts, Whole
from presignd.pipeline.upload.identify import whose
from presignd.pipeline.upload.slots import Slots
from presignd.pipeline.upload.whole import TINY, Prepared, prepare, read_cached
from presignd.store.probe import Support
from presignd.system.filesystem import close_quietly
from presignd.system.threads import in_background, opened

UNLIKE_PROOF = ("bad_digest", "no_such_bucket", "not_implemented")
"""Answers that a store may give because it is another than it was: set up anew, or a bucket made anew."""

ROUNDS = 6
"""Looks at a key that changes hands before the file backs off."""


class Vanished(Exception):
    """No regular file is at the path any more."""


class Writing(Exception):
    """Somebody has the file open for writing."""


@dataclass(slots=True)
class Room:
    """What the work on one watch's files needs."""

    watch: WatchConfig
    folder: Folder
    bucket: Bucket


@dataclass(slots=True)
class Running:
    """A version under work, for ``status``: bytes sent so far, and since when (monotonic seconds)."""

    version: FileVersion
    sent: int = 0
    stood: int = 0
    began: float = field(default_factory=time.monotonic)
    heard: float = field(default_factory=time.monotonic)

    def moved(self, total: int) -> None:
        """Hear of the bytes that the store has or gets; the first word is where a resumed upload stood."""
        self.heard = time.monotonic()
        if not self.sent:
            self.stood, self.began = total, self.heard
        self.sent = total

    def rate(self, now: float) -> float:
        """Return bytes a second since this run began to send."""
        return (self.sent - self.stood) / max(now - self.began, 0.001)


@dataclass(frozen=True, slots=True)
class Stored:
    """What a transfer leaves to be recorded: the version (its key may have moved on) and its receipt."""

    version: FileVersion
    fingerprint: Fingerprint
    checksum: str
    part_size: int
    etag: str
    version_id: str
    adopted: bool


class Transfer:
    """One version's way under its key."""

    def __init__(
        self,
        room: Room,
        version: FileVersion,
        ledger: Ledger,
        upload: UploadConfig,
        *,
        slots: Slots,
        host: str,
        put: PutRequest | None,
        running: Running,
    ) -> None:
        self._room, self._version, self._ledger, self._upload = room, version, ledger, upload
        self._slots, self._host, self._put, self._running = slots, host, put, running
        self._fd: int
        self._content: Content
        self._honours: Support
        self._moved = False

    async def run(self) -> Stored:
        """Upload the file, or find that its bytes are there; its content is unchanged at the end."""
        fd = await opened(self._open, close_quietly, inline=self._room.folder.inline_limit > 0)
        try:
            return await self._run(fd)
        except Fault as problem:
            if problem.code in UNLIKE_PROOF:
                self._room.bucket.prove_again()
            raise
        finally:
            close_quietly(fd)

    async def _run(self, fd: int) -> Stored:
        self._fd = fd
        if TINY < self._version.size <= self._upload.multipart_threshold:
            async with self._slots.small():  # before it is read: what waits holds none of its bytes
                return await self._bring()
        return await self._bring()

    async def _bring(self) -> Stored:
        refuse_too_large(self._room.watch, self._version.size)  # a retry, or a put's own key, changes no limit
        self._content = await self._read_content()
        self._require_settled_content()
        self._honours = await self._room.bucket.support(in_parts=self._content.part_size > 0)
        if self._version.key is None:
            await self._reserve_key()
        found, adopted = await self._store()
        fingerprint = await self._unchanged()
        content = self._content
        return Stored(
            self._version, fingerprint, content.checksum, content.part_size, found.etag, found.version_id, adopted
        )

    async def _read_content(self) -> Content:
        """Hash the file as far as its way needs it: a small one whole, parts as they are sent."""
        bucket, upload, size = self._room.bucket, self._upload, self._version.size
        # No method of this transfer: it and its content would know each other, and the bytes wait for the collector.
        on_sent = partial(_sent, self._running, self._put)
        by_hash = self._version.base_key is None and needs_hash(self._room.watch.key)
        if size <= upload.multipart_threshold:
            sha256 = by_hash or upload.checksum == "sha256"
            prepared = await self._prepare(size, sha256=sha256)
            return Whole(bucket, self._ledger, self._slots, upload, prepared=prepared, on_sent=on_sent)
        named = await in_background(checksum_like, self._fd, "sha256:", size) if by_hash else ""
        return InParts(
            bucket,
            self._ledger,
            self._slots,
            upload,
            fd=self._fd,
            sha256=named.removeprefix("sha256:"),
            recheck=self._recheck,
            on_sent=on_sent,
        )

    async def _prepare(self, size: int, *, sha256: bool) -> Prepared:
        """Hash a file: at once where it is tiny and the page cache has it; else in a thread."""
        most = self._upload.memory // (2 * self._upload.concurrency)  # as streamed bodies have it
        if size <= TINY:
            with suppress(BlockingIOError):
                return prepare(self._fd, size, sha256=sha256, most=most, read=read_cached)
        return await in_background(prepare, self._fd, size, sha256=sha256, most=most)

    def _open(self) -> int:
        """Open the file, below the watch's root and nowhere else. Blocking."""
        if self._put:
            with translated():
                return os.dup(self._put.fd)
        if self._version.path.startswith(b"/"):
            raise Vanished  # a put from elsewhere, whose client, and with it the descriptor, is gone
        try:
            fd = self._room.folder.open(self._version.path)
        except (Gone, NotRegular):
            raise Vanished from None
        if has_writer(fd):
            close_quietly(fd)
            raise Writing
        return fd

    def _require_settled_content(self) -> None:
        """Go on only with what was settled; a chmod, another link or a restore is no change."""
        if not self._content.fingerprint.same_data(self._version.fingerprint):
            raise fault("changed_while_uploading", "it changed after it was settled")

    async def _reserve_key(self, *, beyond: str = "") -> None:
        """Commit the key before any grant: one that needed the hash, or the next after a collision."""
        watch, version = self._room.watch, self._version
        base = version.base_key or render_for(
            watch,
            version.path,
            version.file_id,
            version.fingerprint,
            version.queued_at,
            host=self._host,
            sha256=self._content.sha256,
            prefix=await self._room.bucket.prefix(),
        )
        named = await self._ledger.assign_key(
            version, base, fresh=watch.collision == "rename", next_key=may_number(watch), beyond=beyond
        )
        if named is None:
            raise fault("key_taken", base)
        self._version = named

    async def _store(self) -> tuple[StoredObject, bool]:
        """Bring the content under its key by a PUT, or find it there (True: before we ever sent it)."""
        look = False
        for _ in range(ROUNDS):
            plan = await self._plan(look=look)
            if plan.act is Act.ADOPT and plan.found:
                return plan.found, self._version.attempt <= 1
            if plan.act is Act.NEXT_KEY:
                await self._reserve_key(beyond=self._key)
                self._moved = True
                look = False
                continue
            self._version, stored = await self._content.send(self._version, plan, self._honours)
            if stored:
                return stored, False
            look = True
        raise fault("precondition_failed")

    @property
    def _key(self) -> str:
        assert self._version.key is not None
        return self._version.key

    async def _plan(self, *, look: bool) -> Plan:
        policy, honours = self._room.watch.collision, self._honours
        previous = await self._ledger.previous_receipt(self._version)
        checksum = self._content.checksum
        if not look and checksum and not collision.must_look(self._version, previous, checksum, honours):
            return collision.plan_unseen(previous, policy)
        found = await self._room.bucket.find(self._key, denied_is_absent=honours.if_none_match)
        of = await self._whose(found) if found else Whose.ANOTHERS
        plan = collision.plan_seen(found, of, policy)
        if plan.act is Act.REFUSE:
            raise fault("exists", self._key)
        return plan

    async def _whose(self, found: StoredObject) -> Whose:
        sent, honours = await self._ledger.sent(self._version), self._honours
        # Crash window: where conditions count for nothing, some stores keep what came of a PUT that broke off.
        torn = not honours.if_none_match and self._version.attempt > 1 and not self._moved
        bucket = self._room.bucket
        # Of an object in parts, 32 hex digits may be a name as any other (the bucket's own proof is of a PUT).
        md5_etags = (await bucket.support()).md5_etags and honours.md5_etags
        return await whose(found, self._content, sent, bucket, self._key, md5_etags=md5_etags, torn=torn)

    async def _unchanged(self) -> Fingerprint:
        """Compare the file with what was sent: at once where that may be and nothing moved, else in a thread."""
        if self._room.folder.inline_limit and (now := fingerprint_of(self._fd)) == self._content.fingerprint:
            self._require_same_path(now)
            return now
        return await asyncio.to_thread(self._recheck)

    def _recheck(self) -> Fingerprint:
        """Compare the file with what was sent, on its descriptor and by its path. Blocking.

        Only inode or ctime moved (chmod, another link): the content is hashed once more. A path that is
        gone now was whole when it was read: the object is its last content.
        """
        was, now = self._content.fingerprint, fingerprint_of(self._fd)
        if now != was and not (now.same_data(was) and self._content.is_unchanged()):
            raise fault("changed_while_uploading", "its content changed")
        self._require_same_path(now)
        return now

    def _require_same_path(self, now: Fingerprint) -> None:
        if self._put or self._version.path.startswith(b"/"):
            return
        try:
            there = self._room.folder.stat(self._version.path)
        except (Gone, NotRegular):
            return
        if Fingerprint.of(there) != now:
            raise fault("changed_while_uploading", "another file took its place")


def _sent(running: Running, put: PutRequest | None, total: int) -> None:
    running.moved(total)
    if put:
        put.progress(total)
