"""Upload one version: open its file, read it, name its key, send it (``whole.py``, ``multipart.py``, ``streamed.py``).

``Transfer.run`` returns the receipt for the ledger, or raises: a ``Fault``, which ``pipeline.faults`` handles,
``Vanished`` if no file is there, ``Writing`` if a program still writes it.
"""

from __future__ import annotations

import asyncio
import os
from abc import abstractmethod
from collections.abc import Awaitable, Collection
from contextlib import nullcontext, suppress
from functools import partial

from presignd.config import UploadConfig, WatchConfig
from presignd.errors import fault
from presignd.ledger import Ledger
from presignd.model import FileVersion, Fingerprint
from presignd.pipeline.faults import Vanished, Writing
from presignd.pipeline.files.folder import Folder, Gone, NotRegular, os_errors_as_faults
from presignd.pipeline.files.hash import TINY, Prepared, Read, checksum_like, fingerprint_of, prepare
from presignd.pipeline.files.lease import has_writer
from presignd.pipeline.intake import may_number, needs_hash, refuse_too_large, render_for
from presignd.pipeline.put import PutRequest
from presignd.pipeline.stage import Item, Receipt
from presignd.pipeline.upload import collision
from presignd.pipeline.upload.bucket import Bucket, StoredObject
from presignd.pipeline.upload.collision import Action, Decision, Occupant
from presignd.pipeline.upload.identify import Content, identify
from presignd.pipeline.upload.slots import Slots
from presignd.store.support import Support
from presignd.system.filesystem import close_quietly
from presignd.system.threads import opened

MAX_KEY_ATTEMPTS = 6
"""Tries to store under a key that others write and delete concurrently, before the file is retried with backoff."""


class Transfer(Content):
    """One attempt to upload a version: as one PUT, or in parts (``in_parts``)."""

    in_parts = False

    def __init__(
        self,
        bucket: Bucket,
        folder: Folder,
        item: Item,
        ledger: Ledger,
        upload: UploadConfig,
        *,
        slots: Slots,
        put: PutRequest | None,
    ) -> None:
        self._bucket, self._watch, self._folder = bucket, bucket.watch, folder
        self._item, self._version, self._ledger, self._upload = item, item.version, ledger, upload
        self._slots, self._put = slots, put
        self._fd: int
        self._support: Support
        self._previous, self._key_changed = item.previous, False

    def run(self) -> Awaitable[Receipt]:
        """Upload the content, unless its bytes are stored already. A collision may change the item's key."""
        refuse_too_large(self._watch, self._version.size)  # the limit holds for a retry, and for a put's own key
        return self._open_and_send() if self._item.prepared is None else self._send()

    async def _open_and_send(self) -> Receipt:
        opening = partial(open_to_send, self._folder, self._version, self._put)
        self._fd = await opened(opening, close_quietly, inline=self._folder.inline_limit > 0)
        # Take the slot before reading, so that a file that waits is not in memory.
        in_memory = not self.in_parts and self._version.size > TINY
        try:
            async with self._slots.small if in_memory else nullcontext():
                return await self._send()
        finally:
            close_quietly(self._fd)

    async def _send(self) -> Receipt:
        self._support = await self._bucket.support(in_parts=self.in_parts)
        await self._read()
        require_settled(self.fingerprint, self._version)
        if self._version.key is None:
            await self._reserve_key()
        stored, adopted = await self._store()
        compared = self._item.prepared is None
        fingerprint = await self._require_unchanged() if compared else self.fingerprint
        self._item.version = self._version
        return Receipt(
            fingerprint,
            self.checksum,
            self.part_size,
            stored.etag,
            stored.version_id,
            adopted=adopted,
            compared=compared,
        )

    @abstractmethod
    async def _read(self) -> None:
        """Take the fingerprint, and hash the content if it is one PUT: parts are hashed when they are sent."""

    @abstractmethod
    async def _send_content(self, decision: Decision) -> StoredObject | None:
        """Store the content under the version's key; return None if another object was written there (412)."""

    async def _record_intent(self, checksum: str) -> None:
        """Commit the checksum that identifies the object: if it is an MD5, the object's ETag will equal it.

        Crash window: the object is stored and its receipt isn't. If the file has other content by then, its newer
        version finds by this intent that the object belongs to its path, and replaces it. So an intent is only replaced
        by one of the same content, in another algorithm: if a file of the same size and mtime but other content was
        renamed over the file while it waited, that is another version, too.
        """
        version, before = self._version, self._version.intent
        if before == checksum:
            return
        if not before.endswith(":") and before and await self.checksum_like(before, version.part_size) != before:
            raise fault("changed_while_uploading", "it was sent with other content before")
        self._version = await self._ledger.update(version, etag=checksum.removeprefix("md5:"))

    def _on_sent(self, total: int) -> None:
        """Note the number of bytes that the store has or is being sent."""
        self._item.update(total)
        if self._put:
            self._put.progress(total)

    # --- name and send --------------------------------------------------------------------------
    async def _reserve_key(self, *, after_key: str = "") -> None:
        """Commit the key before any grant: a key that needs the hash, or the next key after a collision."""
        watch, version = self._watch, self._version
        base = version.base_key
        if not base:
            sha256 = await self.checksum_like("sha256:", 0) if needs_hash(watch.key) else ""
            base = render_for(
                watch,
                version.path,
                version.file_id,
                version.fingerprint,
                version.queued_at,
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
            if stored := await self._send_content(decision):
                return stored, False
            head = True  # another object was written under the key
        raise fault("precondition_failed")

    @property
    def _key(self) -> str:
        assert self._version.key is not None
        return self._version.key

    async def _decide(self, *, head: bool) -> Decision:
        """Decide what to do under the key; send a HEAD first if ``head`` or ``needs_head`` requires it."""
        policy, previous, support = self._watch.collision, self._previous, self._support
        # The content of a large file isn't hashed yet, so its key is always looked at.
        if not head and self.checksum:
            same = previous is not None and await self._is_content_of(previous)
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

    async def _is_content_of(self, previous: FileVersion) -> bool:
        """Return whether the content is known to be that of an earlier version."""
        if not previous.checksum or previous.size != self.size:
            return False
        return await self.checksum_like(previous.checksum, previous.part_size) == previous.checksum

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
            found, self, sent, self._bucket, self._key, md5_etags=md5_etags, may_be_partial=may_be_partial
        )

    # --- the file did not change ------------------------------------------------------------------
    async def _require_unchanged(self) -> Fingerprint:
        """Compare the file with what was sent; in a thread, unless the folder is fast and nothing changed."""
        if self._folder.inline_limit and (now := fingerprint_of(self._fd)) == self.fingerprint:
            self._require_same_path(now)
            return now
        return await asyncio.to_thread(self._recheck)

    def _recheck(self) -> Fingerprint:
        """Compare the file with what was sent, by its descriptor and by its path. Blocking.

        If only inode or ctime changed (chmod, another link), the content is hashed again. If the path is gone, the
        object holds the file's last content, which was read in full.
        """
        now = fingerprint_of(self._fd)
        if now != self.fingerprint and not (now.same_data(self.fingerprint) and self._is_same_content()):
            raise fault("changed_while_uploading", "its content changed")
        self._require_same_path(now)
        return now

    def _is_same_content(self) -> bool:
        return checksum_like(self._fd, self.checksum, self.size, self.part_size) == self.checksum

    def _require_same_path(self, now: Fingerprint) -> None:
        if self._put or self._version.path.startswith(b"/"):
            return
        with suppress(Gone, NotRegular):
            if Fingerprint.of(self._folder.stat(self._version.path)) != now:
                raise fault("changed_while_uploading", "another file took its place")


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
        prepared = prepare(fd, version.size, algorithms, read=read)
        require_settled(prepared.fingerprint, version)
        if fingerprint_of(fd) != prepared.fingerprint:
            raise fault("changed_while_uploading", "it changed while it was read")
        return prepared._replace(fd=None)
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
