"""The files of a link to a folder: its manifest, read from the store by a presigned request of the broker's own.

A manifest may hold anything, as its writer is not trusted. So a file counts only if its key lies in the manifest's own
folder, and only a limited part of a manifest is read.
"""

from __future__ import annotations

import asyncio
import mimetypes
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from pydantic import TypeAdapter, ValidationError

from presignd.broker.state.links import NewLink
from presignd.presign import GrantRequest, Operation
from presignd.store.signed import SignedStore

MANIFEST = "MANIFEST.json"
"""The path below the link at which the manifest itself is, unless a file of the folder has it."""

LARGEST = 8 << 20
"""Most bytes of a manifest that are read: some 40,000 files."""

KEPT, KEPT_SECONDS = 8, 60.0
"""Manifests that are cached, and for how long: there may be a newer one under the key later."""

AT_A_TIME = 2
"""Most manifests that are read at a time, as strangers cause the reads."""

EXPIRES, NOT_FOUND = 300, 404


class NoManifest(Exception):
    """There is no manifest under the link's key, or it is too long, or damaged."""


class File(NamedTuple):
    """One file: its path in the folder, its key, and its size in bytes."""

    path: str
    key: str
    size: int

    @property
    def name(self) -> str:
        """Its name alone."""
        return self.path.rpartition("/")[2]

    @property
    def kind(self) -> str:
        """Its media type, by its name."""
        kind, packed = mimetypes.guess_type(self.name, strict=False)
        return "application/octet-stream" if packed or not kind else kind


@dataclass(frozen=True, slots=True)
class _Entry:
    path: str
    key: str
    size: int


@dataclass(frozen=True, slots=True)
class _Manifest:
    files: list[_Entry]


_MANIFEST = TypeAdapter(_Manifest)


class FolderFiles:
    """Reads manifests, and keeps the newest few. ``store`` returns the one in use: a reload replaces it."""

    def __init__(self, store: Callable[[], SignedStore], monotonic: Callable[[], float] = time.monotonic) -> None:
        self._store, self._monotonic = store, monotonic
        self._kept: OrderedDict[tuple[str, str, str], tuple[float, Mapping[str, File]]] = OrderedDict()
        self._turns = asyncio.Semaphore(AT_A_TIME)

    async def of(self, link: NewLink) -> Mapping[str, File]:
        """Return the files of a folder by their paths, in the manifest's order.

        Raises ``NoManifest``, and the ``Fault`` of a store that can't be reached.
        """
        what = link.bucket, link.key, link.version_id
        if (kept := self._kept_of(what)) is not None:
            return kept
        async with self._turns:
            if (kept := self._kept_of(what)) is not None:  # another visitor's request has read it
                return kept
            files = await asyncio.to_thread(files_in, await self._read(link), link.key)
            self._kept[what] = self._monotonic() + KEPT_SECONDS, files
            self._kept.move_to_end(what)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            return files

    def _kept_of(self, what: tuple[str, str, str]) -> Mapping[str, File] | None:
        until, files = self._kept.get(what, (0.0, {}))
        return files if until > self._monotonic() else None

    async def _read(self, link: NewLink) -> bytes:
        body = bytearray()

        async def take(piece: bytes) -> None:
            body.extend(piece)
            if len(body) > LARGEST:
                raise NoManifest

        asked = GrantRequest(Operation.GET, link.bucket, link.key, EXPIRES, version_id=link.version_id)
        if (await self._store().send(asked, accept=(NOT_FOUND,), into=take)).status == NOT_FOUND:
            raise NoManifest
        return bytes(body)


def files_in(body: bytes, key: str) -> dict[str, File]:
    """Return the files in a manifest stored under ``key``; raise ``NoManifest`` if this is no manifest. Pure."""
    try:
        manifest = _MANIFEST.validate_json(body)
    except ValidationError:
        raise NoManifest from None
    folder = key.rpartition("/")[0] + "/"
    found = (File(entry.path, entry.key, entry.size) for entry in manifest.files)
    return {file.path: file for file in found if file.path and file.size >= 0 and _lies_in(file.key, folder)}


def _lies_in(key: str, folder: str) -> bool:
    return key.startswith(folder) and not {".", "..", ""} & {*key.removeprefix(folder).split("/")}
