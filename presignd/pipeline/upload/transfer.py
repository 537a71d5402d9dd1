"""Upload one version: open its file, hash it, name its key, send it.

``Transfer.run`` returns the receipt for the ledger, or raises: a ``Fault``, which ``pipeline.faults`` handles,
``Vanished`` if no file is there, ``Writing`` if a program still writes it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Collection
from contextlib import suppress
from functools import partial

from presignd.config import UploadConfig, WatchConfig
from presignd.errors import fault
from presignd.ledger import Ledger
from presignd.model import FileVersion, Fingerprint
from presignd.pipeline.faults import Vanished, Writing
from presignd.pipeline.files.folder import Folder, Gone, NotRegular, os_errors_as_faults
from presignd.pipeline.files.hash import TINY, Prepared, Read, fingerprint_of, prepare, prepare_to_keep
from presignd.pipeline.files.lease import has_writer
from presignd.pipeline.intake import may_number, needs_hash, refuse_too_large, render_for
from presignd.pipeline.put import PutRequest
from presignd.pipeline.stage import Item, Receipt
from presignd.pipeline.upload import collision
from presignd.pipeline.upload.bucket import Bucket, StoredObject
from presignd.pipeline.upload.collision import Action, Decision, Occupant
from presignd.pipeline.upload.content import Content, Slots
from presignd.pipeline.upload.identify import identify
from presignd.pipeline.upload.multipart import InParts
from presignd.pipeline.upload.streamed import Streamed
from presignd.pipeline.upload.whole import Whole
from presignd.store.support import Support
from presignd.system.filesystem import close_quietly, read_cached
from presignd.system.threads import in_background, opened

MAX_KEY_ATTEMPTS = 6
"""Tries to store under a key that others write and delete concurrently, before the file is retried with backoff."""


class Transfer:
    """One attempt to upload a version."""

    def __init__(
        self,
        bucket: Bucket,
        folder: Folder,
        item: Item,
        ledger: Ledger,
        upload: UploadConfig,
        *,
        slots: Slots,
        host: str,
        put: PutRequest | None,
    ) -> None:
        self._bucket, self._watch, self._folder = bucket, bucket.watch, folder
        self._item, self._version, self._ledger, self._upload = item, item.version, ledger, upload
        self._slots, self._host, self._put = slots, host, put
        # Not a method: transfer and content would reference each other, and only the garbage collector would free them.
        self._on_sent = partial(_report, item, put)
        self._fd: int
        self._content: Content
        self._support: Support
        self._stream = put.stream if put else None
        self._previous, self._key_changed = item.previous, False

    def run(self) -> Awaitable[Receipt]:
        """Upload the content, unless its bytes are stored already. A collision may change the item's key."""
        refuse_too_large(self._watch, self._version.size)  # the limit holds for a retry, and for a put's own key
        return self._open_and_send() if self._item.prepared is None else self._send()

    async def _open_and_send(self) -> Receipt:
        opening = partial(open_to_send, self._folder, self._version, self._put)
        self._fd = await opened(opening, close_quietly, inline=self._folder.inline_limit > 0)
        try:
            if TINY < self._version.size <= self._upload.multipart_threshold and not self._stream:
                # Take the slot before reading, so that a file that waits is not in memory.
                async with self._slots.small:
                    return await self._send()
            return await self._send()
        finally:
            close_quietly(self._fd)

    async def _send(self) -> Receipt:
        in_parts = self._version.size > self._upload.multipart_threshold or self._stream is not None
        self._support = await self._bucket.support(in_parts=in_parts)
        prepared = self._item.prepared
        self._content = content = await self._open_content() if prepared is None else self._whole(prepared)
        require_settled(content.fingerprint, self._version)
        if self._version.key is None:
            await self._reserve_key()
        stored, adopted = await self._store()
        is_final = prepared is not None or self._stream is not None
        fingerprint = content.fingerprint if is_final else await self._require_unchanged()
        self._item.version = self._version
        return Receipt(
            fingerprint,
            content.checksum,
            content.part_size,
            stored.etag,
            stored.version_id,
            adopted=adopted,
            compared=prepared is None,
        )

    # --- hash -----------------------------------------------------------------------------------
    async def _open_content(self) -> Content:
        """Return the content of the open file: hashed now if it is one PUT; parts are hashed when they are sent."""
        upload, size = self._upload, self._version.size
        if self._stream is None and size <= upload.multipart_threshold:
            return self._whole(await self._prepare(size, algorithms_for(self._version, self._watch, self._support)))
        shared = self._bucket, self._ledger, self._slots, self._support, upload
        if self._stream:
            return Streamed(*shared, stream=self._stream, version=self._version, on_sent=self._on_sent)
        gives_way = self._item.gives_way
        return InParts(*shared, fd=self._fd, recheck=self._recheck, on_sent=self._on_sent, gives_way=gives_way)

    def _whole(self, prepared: Prepared) -> Whole:
        shared = self._bucket, self._ledger, self._slots, self._support
        return Whole(*shared, prepared=prepared, on_sent=self._on_sent)

    async def _prepare(self, size: int, algorithms: Collection[str]) -> Prepared:
        """Hash a file: on the event loop if it is tiny and in the page cache, else in a thread."""
        max_in_memory = self._upload.memory // (2 * self._upload.concurrency)  # streamed bodies use as much
        if size <= TINY:
            with suppress(BlockingIOError):
                return prepare(self._fd, size, algorithms, max_in_memory=max_in_memory, read=read_cached)
        return await in_background(prepare, self._fd, size, algorithms, max_in_memory=max_in_memory)

    # --- name and send --------------------------------------------------------------------------
    async def _reserve_key(self, *, after_key: str = "") -> None:
        """Commit the key before any grant: a key that needs the hash, or the next key after a collision."""
        watch, version = self._watch, self._version
        base = version.base_key
        if not base:
            sha256 = await self._content.checksum_like("sha256:", 0) if needs_hash(watch.key) else ""
            base = render_for(
                watch,
                version.path,
                version.file_id,
                version.fingerprint,
                version.queued_at,
                host=self._host,
                sha256=sha256.removeprefix("sha256:"),
                prefix=await self._bucket.prefix(),
            )
        named = await self._ledger.assign_key(
            version, base, fresh=watch.collision == "rename", next_key=may_number(watch), after_key=after_key
        )
        if named is None:
            raise fault("key_taken", base)
        self._version, self._previous = named, await self._ledger.previous_receipt(named)

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
            self._version, stored = await self._content.send(self._version, decision)
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
        policy, previous, support, content = self._watch.collision, self._previous, self._support, self._content
        # The content of a large file isn't hashed yet, so its key is always looked at.
        if not head and content.checksum:
            same = previous is not None and await _is_content_of(previous, content)
            if not collision.needs_head(self._version, previous, support, same_content=same):
                return collision.decide_unseen(previous, policy)
        found = await self._bucket.find(
            self._key, denied_is_absent=support.if_none_match, with_checksums=support.proven
        )
        occupant = await self._identify(found) if found else Occupant.FOREIGN
        decision = collision.decide_seen(found, occupant, policy)
        if decision.action is Action.REFUSE:
            raise fault("exists", self._key)
        return decision

    async def _identify(self, found: StoredObject) -> Occupant:
        # The intent of this attempt can't identify an object that was there before: another's object of the same CRC
        # must not count as ours.
        own = self._item.retried and not self._key_changed
        sent, support = await self._ledger.sent(self._version, own=own), self._support
        # Crash window: a store that checks no conditions may keep the beginning of an interrupted PUT.
        may_be_partial = not support.if_none_match and self._version.attempt > 1 and not self._key_changed
        # The ETag of an object in parts may be 32 hex digits that are no MD5 (the first probe is of a PUT only).
        md5_etags = (await self._bucket.support()).md5_etags and support.md5_etags
        return await identify(
            found, self._content, sent, self._bucket, self._key, md5_etags=md5_etags, may_be_partial=may_be_partial
        )

    # --- the file did not change ------------------------------------------------------------------
    async def _require_unchanged(self) -> Fingerprint:
        """Compare the file with what was sent; in a thread, unless the folder is fast and nothing changed."""
        if self._folder.inline_limit and (now := fingerprint_of(self._fd)) == self._content.fingerprint:
            self._require_same_path(now)
            return now
        return await asyncio.to_thread(self._recheck)

    def _recheck(self) -> Fingerprint:
        """Compare the file with what was sent, by its descriptor and by its path. Blocking.

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
        with suppress(Gone, NotRegular):
            if Fingerprint.of(self._folder.stat(self._version.path)) != now:
                raise fault("changed_while_uploading", "another file took its place")


async def _is_content_of(previous: FileVersion, content: Content) -> bool:
    """Return whether a content is known to be that of an earlier version."""
    if not previous.checksum or previous.size != content.size:
        return False
    return await content.checksum_like(previous.checksum, previous.part_size) == previous.checksum


def open_to_send(folder: Folder, version: FileVersion, put: PutRequest | None) -> int:
    """Open a version's file, only below the watch's root; a put's file by its descriptor. Blocking."""
    if put:
        with os_errors_as_faults():
            return os.dup(put.fd)
    if version.path.startswith(b"/"):
        raise Vanished  # put from outside the watch by a client that is gone, and its descriptor is closed
    try:
        fd = folder.open(version.path)
    except (Gone, NotRegular):
        raise Vanished from None
    if has_writer(fd):
        close_quietly(fd)
        raise Writing
    return fd


def read_whole(
    folder: Folder, version: FileVersion, put: PutRequest | None, algorithms: Collection[str], read: Read
) -> Prepared:
    """Read and hash a small file; its descriptor is closed on return. Blocking.

    Raises as ``open_to_send`` and ``prepare`` do, and ``changed_while_uploading`` if the file isn't what settled.
    """
    fd = open_to_send(folder, version, put)
    try:
        prepared = prepare_to_keep(fd, version.size, algorithms, read)
        require_settled(prepared.fingerprint, version)
        return prepared
    finally:
        close_quietly(fd)


def algorithms_for(version: FileVersion, watch: WatchConfig, support: Support | None) -> set[str]:
    """Return the algorithms by which to hash a file: those that its bucket gets, and SHA-256 if its key needs that."""
    named = {"sha256"} if version.base_key is None and needs_hash(watch.key) else set[str]()
    return named | support.algorithms if support else named


def require_settled(found: Fingerprint, version: FileVersion) -> None:
    """Raise if this is not the content that settled; a chmod, another link or a restore is no change."""
    if not found.same_data(version.fingerprint):
        raise fault("changed_while_uploading", "it changed after it was settled")


def _report(item: Item, put: PutRequest | None, total: int) -> None:
    item.update(total)
    if put:
        put.progress(total)
