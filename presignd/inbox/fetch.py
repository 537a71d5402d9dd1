"""Downloads one object into its file: resumed where it broke off, compared with what was received, and synced."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from presignd.errors import NO_SPACE, Fault, fault, system_fault
from presignd.inbox.folder import Identity, InboxFolder, checksum_like, is_comparable
from presignd.ledger import NewArrival
from presignd.presign import GrantRequest, Operation
from presignd.runtime.crash_points import passed
from presignd.runtime.heartbeat import resting
from presignd.store.signed import SignedStore
from presignd.system.durable import write_all

EXPIRES = 900
"""Lifetime of the grants in seconds; a download that began may take longer."""

WRITTEN = 1 << 20
"""Bytes that are buffered before they are written: the memory that one file takes, and what a crash may lose of it."""

NOT_FOUND = 404

R = TypeVar("R")


class Fetcher:
    """Downloads objects into ``folder``. ``store`` returns the one in use: a reload replaces it."""

    def __init__(self, folder: InboxFolder, store: Callable[[], SignedStore]) -> None:
        self._folder, self._store = folder, store

    async def fetch(self, new: NewArrival) -> Identity:
        """Download the rest of a file; return its identity once it is whole, compared and synced.

        Raises the faults of store and presigner, ``missing_object``, ``wrong_bytes`` (the next try begins anew), and
        ``disk_full`` or ``inbox_failed`` for the folder.
        """
        fd = await in_thread(self._folder.open_download, new.ref)
        try:
            have = os.fstat(fd).st_size
            if have > new.size:
                os.ftruncate(fd, have := 0)
            if have < new.size:
                await self._download(fd, new, have)
            return await in_thread(_completed, fd, new)
        finally:
            os.close(fd)

    async def _download(self, fd: int, new: NewArrival, have: int) -> None:
        body = _Body(fd, new.size, have)
        try:
            await self._get(new, body, have)
        except _TooLong:
            if not have:
                raise fault("wrong_bytes", f"it has more than {new.size} bytes") from None
            # The store ignored Range, and sent the whole.
            os.ftruncate(fd, 0)
            await self._download(fd, new, 0)
            return
        finally:
            await body.flush()
        if body.end < new.size:
            raise fault("wrong_bytes", f"it has {body.end} of {new.size} bytes")

    async def _get(self, new: NewArrival, body: _Body, have: int) -> None:
        with resting():  # grant and download have their deadlines
            store = self._store()
            grant = await store.grant(GrantRequest(Operation.GET, new.bucket, new.key, EXPIRES))
            if have:
                grant = replace(grant, headers={**grant.headers, "Range": f"bytes={have}-"})
            response = await store.client.send(grant, accept=(NOT_FOUND,), into=body.add)
        if response.status == NOT_FOUND:
            raise fault("no_such_bucket" if response.code == "NoSuchBucket" else "missing_object")


class _TooLong(Exception):
    """The store sends more bytes than the file has."""


class _Body:
    """Appends the bytes that come in to the file."""

    def __init__(self, fd: int, size: int, have: int) -> None:
        self._fd, self._size = fd, size
        self.end = have
        self._held = bytearray()

    async def add(self, piece: bytes) -> None:
        """Add the next bytes. Raises no ``OSError``: the client would take it for an error of the connection."""
        if self.end + len(self._held) + len(piece) > self._size:
            self._held.clear()
            raise _TooLong
        self._held += piece
        if len(self._held) >= WRITTEN:
            await self.flush()

    async def flush(self) -> None:
        """Write the buffered bytes."""
        if not self._held:
            return
        data, self._held = bytes(self._held), bytearray()
        await in_thread(write_all, self._fd, data, self.end)
        self.end += len(data)
        passed("inbox.download.step")


def _completed(fd: int, new: NewArrival) -> Identity:
    """Compare a file with what was received, and sync it; raise ``wrong_bytes``. Blocking."""
    if new.checksum and is_comparable(new.checksum, new.part_size):
        found = checksum_like(fd, new.size, new.checksum, new.part_size)
        if found != new.checksum:
            os.ftruncate(fd, 0)
            raise fault("wrong_bytes", f"{found}, not {new.checksum}")
    os.fsync(fd)
    passed("inbox.downloaded")
    st = os.fstat(fd)
    return Identity(st.st_ino, st.st_mtime_ns)


async def in_thread(call: Callable[..., R], *args: object) -> R:
    """Run a blocking call, and turn its ``OSError`` into a fault of the folder."""
    try:
        return await asyncio.to_thread(call, *args)
    except OSError as error:
        raise folder_fault(error) from None


def folder_fault(error: OSError) -> Fault:
    """Return the fault for an error of the inbox's folder."""
    return system_fault("disk_full" if error.errno in NO_SPACE else "inbox_failed", error)
