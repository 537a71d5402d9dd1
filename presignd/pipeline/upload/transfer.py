"""Upload one version: open its file, hash it, name its key, send it, verify it.

``Transfer.run`` returns the receipt for the ledger, or raises: a ``Fault``, which ``pipeline.faults`` handles,
``Vanished`` if no file is there, ``Writing`` if a program still writes it.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from presignd.config import UploadConfig
from presignd.errors import Fault, fault
from presignd.ledger import Ledger
from presignd.model import FileVersion, Fingerprint
from presignd.pipeline.files.folder import Folder, Gone, NotRegular, os_errors_as_faults
from presignd.pipeline.files.hash import checksum_like, fingerprint_of
from presignd.pipeline.files.lease import has_writer
from presignd.pipeline.intake import may_number, refuse_too_large
from presignd.pipeline.key_template import needs_hash, render_for
from presignd.pipeline.put import PutRequest
from presignd.pipeline.upload import collision
from presignd.pipeline.upload.bucket import Bucket, StoredObject
from presignd.pipeline.upload.collision import Action, Decision, Occupant
from presignd.pipeline.upload.content import Content, Slots
from presignd.pipeline.upload.identify import identify
from presignd.pipeline.upload.multipart import InParts
from presignd.pipeline.upload.whole import TINY, Prepared, Whole, prepare
from presignd.store.probe import Support
from presignd.system.filesystem import close_quietly, read_cached
from presignd.system.threads import in_background, opened

PROBE_AGAIN_CODES = ("bad_broker", "bad_digest", "no_such_bucket", "not_implemented", "upload_lost")
"""Faults that a store may cause because it or its bucket was set up anew, or an older broker took the place of one that
signed CRCs: what was probed no longer holds."""

MAX_KEY_ATTEMPTS = 6
"""Tries to store under a key that others write and delete meanwhile, before the file is retried with backoff."""


class Vanished(Exception):
    """There is no regular file at the path."""


class Writing(Exception):
    """A program has the file open for writing."""


@dataclass(slots=True)
class Progress:
    """How far the upload of a version is, for ``status``: bytes sent, and when it began (monotonic seconds).

    ``resumed_from``: bytes that an earlier attempt had sent.
    """

    version: FileVersion
    sent: int = 0
    resumed_from: int = 0
    began: float = field(default_factory=time.monotonic)
    last_progress: float = field(default_factory=time.monotonic)

    def update(self, total: int) -> None:
        """Record the bytes that the store has or is being sent; a resumed upload continues at the first number."""
        self.last_progress = time.monotonic()
        if not self.sent:
            self.resumed_from, self.began = total, self.last_progress
        self.sent = total

    def rate(self, now: float) -> float:
        """Return the bytes a second since this run began to send."""
        return (self.sent - self.resumed_from) / max(now - self.began, 0.001)


@dataclass(frozen=True, slots=True)
class Receipt:
    """One verified upload: the version, whose key a collision may have changed, and the values to record."""

    version: FileVersion
    fingerprint: Fingerprint
    checksum: str
    part_size: int
    etag: str
    version_id: str
    adopted: bool


class Transfer:
    """One attempt to upload a version."""

    def __init__(
        self,
        bucket: Bucket,
        folder: Folder,
        version: FileVersion,
        ledger: Ledger,
        upload: UploadConfig,
        *,
        slots: Slots,
        host: str,
        put: PutRequest | None,
        progress: Progress,
    ) -> None:
        self._bucket, self._watch, self._folder = bucket, bucket.watch, folder
        self._version, self._ledger, self._upload = version, ledger, upload
        self._slots, self._host, self._put, self._progress = slots, host, put, progress
        self._fd: int
        self._content: Content
        self._support: Support
        self._key_changed = False

    async def run(self) -> Receipt:
        """Upload the file, or find its bytes stored already, and check that the file is unchanged at the end."""
        self._fd = await opened(self._open, close_quietly, inline=self._folder.inline_limit > 0)
        try:
            if TINY < self._version.size <= self._upload.multipart_threshold:
                # Take the slot before reading, so that a file that waits is not in memory.
                async with self._slots.small():
                    return await self._run()
            return await self._run()
        except Fault as problem:
            if problem.code in PROBE_AGAIN_CODES:
                self._bucket.forget_support()
            raise
        finally:
            close_quietly(self._fd)

    async def _run(self) -> Receipt:
        refuse_too_large(self._watch, self._version.size)  # the limit holds for a retry, and for a put's own key
        self._support = await self._bucket.support(in_parts=self._version.size > self._upload.multipart_threshold)
        self._content = await self._make_content()
        self._require_settled_content()
        if self._version.key is None:
            await self._reserve_key()
        stored, adopted = await self._store()
        fingerprint = await self._require_unchanged()
        checksum, part_size = self._content.checksum, self._content.part_size
        return Receipt(self._version, fingerprint, checksum, part_size, stored.etag, stored.version_id, adopted)

    # --- open and hash --------------------------------------------------------------------------
    def _open(self) -> int:
        """Open the file, only below the watch's root; a put's file by its descriptor. Blocking."""
        if self._put:
            with os_errors_as_faults():
                return os.dup(self._put.fd)
        if self._version.path.startswith(b"/"):
            raise Vanished  # put from outside the watch by a client that is gone: its descriptor is closed
        try:
            fd = self._folder.open(self._version.path)
        except (Gone, NotRegular):
            raise Vanished from None
        if has_writer(fd):
            close_quietly(fd)
            raise Writing
        return fd

    async def _make_content(self) -> Content:
        """Return the content to send: hashed now if it is one PUT; parts are hashed when they are sent."""
        upload, size = self._upload, self._version.size
        # Not a method: transfer and content would reference each other, and only the garbage collector would free them.
        on_sent = partial(_report, self._progress, self._put)
        by_hash = self._version.base_key is None and needs_hash(self._watch.key)
        if size <= upload.multipart_threshold:
            algorithms = {*self._support.algorithms, *(["sha256"] if by_hash else [])}
            prepared, algorithm = await self._prepare(size, algorithms), self._support.checksum
            return Whole(self._bucket, self._ledger, self._slots, algorithm, prepared=prepared, on_sent=on_sent)
        named = await in_background(checksum_like, self._fd, "sha256:", size) if by_hash else ""
        return InParts(
            self._bucket,
            self._ledger,
            self._slots,
            upload,
            fd=self._fd,
            sha256=named.removeprefix("sha256:"),
            recheck=self._recheck,
            on_sent=on_sent,
        )

    async def _prepare(self, size: int, algorithms: Collection[str]) -> Prepared:
        """Hash a file: on the event loop if it is tiny and in the page cache, else in a thread."""
        max_in_memory = self._upload.memory // (2 * self._upload.concurrency)  # streamed bodies use as much
        if size <= TINY:
            with suppress(BlockingIOError):
                return prepare(self._fd, size, algorithms, max_in_memory=max_in_memory, read=read_cached)
        return await in_background(prepare, self._fd, size, algorithms, max_in_memory=max_in_memory)

    def _require_settled_content(self) -> None:
        """Raise if this is not the content that settled; a chmod, another link or a restore is no change."""
        if not self._content.fingerprint.same_data(self._version.fingerprint):
            raise fault("changed_while_uploading", "it changed after it was settled")

    # --- name and send --------------------------------------------------------------------------
    async def _reserve_key(self, *, after_key: str = "") -> None:
        """Commit the key before any grant: a key that needs the hash, or the next key after a collision."""
        watch, version = self._watch, self._version
        base = version.base_key or render_for(
            watch,
            version.path,
            version.file_id,
            version.fingerprint,
            version.queued_at,
            host=self._host,
            sha256=self._content.sha256,
            prefix=await self._bucket.prefix(),
        )
        named = await self._ledger.assign_key(
            version, base, fresh=watch.collision == "rename", next_key=may_number(watch), after_key=after_key
        )
        if named is None:
            raise fault("key_taken", base)
        self._version = named

    async def _store(self) -> tuple[StoredObject, bool]:
        """Store the content under its key, or find it there; return the object, and True if it was there before."""
        head = False
        for _ in range(MAX_KEY_ATTEMPTS):
            decision = await self._decide(head=head)
            if decision.action is Action.ADOPT and decision.found:
                return decision.found, self._version.attempt <= 1
            if decision.action is Action.NEXT_KEY:
                await self._reserve_key(after_key=self._key)
                self._key_changed, head = True, False
                continue
            self._version, stored = await self._content.send(self._version, decision, self._support)
            if stored:
                return stored, False
            head = True  # another object was written under the key
        raise fault("precondition_failed")

    @property
    def _key(self) -> str:
        assert self._version.key is not None
        return self._version.key

    async def _decide(self, *, head: bool) -> Decision:
        """Decide what to do under the key; send a HEAD first if ``head`` or ``needs_head`` requires it."""
        policy, previous = self._watch.collision, await self._ledger.previous_receipt(self._version)
        if not head and not await self._needs_head(previous):
            return collision.decide_unseen(previous, policy)
        support = self._support
        found = await self._bucket.find(
            self._key, denied_is_absent=support.if_none_match, with_checksums=support.proven
        )
        occupant = await self._identify(found) if found else Occupant.FOREIGN
        decision = collision.decide_seen(found, occupant, policy)
        if decision.action is Action.REFUSE:
            raise fault("exists", self._key)
        return decision

    async def _needs_head(self, previous: FileVersion | None) -> bool:
        """Return whether to HEAD the key first: always for a large file, whose content isn't hashed yet."""
        content = self._content
        if not content.checksum:
            return True
        same = False
        if previous is not None and previous.checksum and previous.size == content.size:
            same = await content.checksum_like(previous.checksum, previous.part_size) == previous.checksum
        return collision.needs_head(self._version, previous, self._support, same_content=same)

    async def _identify(self, found: StoredObject) -> Occupant:
        # What this attempt alone committed tells nothing of an object that was there before it. Another's object of
        # the same CRC must not count as ours.
        own = self._version.attempt > 1 and not self._key_changed
        sent, support = await self._ledger.sent(self._version, own=own), self._support
        # Crash window: a store that checks no conditions may keep the beginning of an interrupted PUT.
        may_be_partial = not support.if_none_match and self._version.attempt > 1 and not self._key_changed
        # The ETag of an object in parts may be 32 hex digits that are no MD5 (the first probe is of a PUT only).
        md5_etags = (await self._bucket.support()).md5_etags and support.md5_etags
        return await identify(
            found, self._content, sent, self._bucket, self._key, md5_etags=md5_etags, may_be_partial=may_be_partial
        )

    # --- verify that the file did not change -----------------------------------------------------
    async def _require_unchanged(self) -> Fingerprint:
        """Compare the file with what was sent; in a thread, unless the folder is fast and nothing changed."""
        if self._folder.inline_limit and (now := fingerprint_of(self._fd)) == self._content.fingerprint:
            self._require_same_path(now)
            return now
        return await asyncio.to_thread(self._recheck)

    def _recheck(self) -> Fingerprint:
        """Compare the file with what was sent, on its descriptor and by its path. Blocking.

        If only inode or ctime changed (chmod, another link), the content is hashed again. If the path is gone, the
        object holds the file's last content, which was read in full.
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
            there = self._folder.stat(self._version.path)
        except (Gone, NotRegular):
            return
        if Fingerprint.of(there) != now:
            raise fault("changed_while_uploading", "another file took its place")


def _report(progress: Progress, put: PutRequest | None, total: int) -> None:
    progress.update(total)
    if put:
        put.progress(total)
