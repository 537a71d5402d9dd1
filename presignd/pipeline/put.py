"""``presignd put``: an open descriptor goes through the same stages, and whoever sent it gets the link."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from weakref import WeakValueDictionary

from presignd.errors import CODES, PresigndError, Refused, fault
from presignd.ledger import Enqueued, Ledger, LostUpdate
from presignd.model import FileVersion, Link, NewVersion, Source, State
from presignd.pipeline.files.folder import Folder
from presignd.pipeline.files.hash import fingerprint_of
from presignd.pipeline.intake import Intake
from presignd.pipeline.upload.transfer import Held
from presignd.system.clock import utcnow

BUSY_FIRST, BUSY_LONGEST = 0.05, 1.0
"""Seconds between looks whether an earlier version of the path is through."""


class Puts:
    """Enqueues what was handed over and waits for its link."""

    def __init__(
        self,
        ledger: Ledger,
        intake: Intake,
        folders: Mapping[str, Folder],
        held: dict[str, Held],
        *,
        on_enqueued: Callable[[list[Enqueued]], None],
        on_vanished: Callable[[list[FileVersion]], None],
    ) -> None:
        self._ledger, self._intake, self._folders, self._held = ledger, intake, folders, held
        self._on_enqueued, self._on_vanished = on_enqueued, on_vanished
        self._waiting: dict[str, asyncio.Future[Link]] = {}
        self._turns: WeakValueDictionary[tuple[str, bytes], asyncio.Lock] = WeakValueDictionary()

    def now_by(self, intake: Intake, folders: Mapping[str, Folder]) -> None:
        """Take what is handed over from now on by these."""
        self._intake, self._folders = intake, folders

    async def put(
        self,
        fd: int,
        path: bytes,
        watch: str,
        *,
        key: str | None,
        expires: int | None,
        progress: Callable[[int], None],
    ) -> Link:
        """Upload what ``fd`` reads and return its link; raise ``Refused`` where it can't go through.

        ``path`` is a name only. It stands for the watch's own file just when ``fd`` is that very file:
        else whoever may use the socket could have another content recorded for a watched path.
        """
        fingerprint = fingerprint_of(fd)
        if not path.startswith(b"/") and not await asyncio.to_thread(self._is_same_file, watch, path, fd):
            path = self._folders[watch].absolute(path)
        version = self._intake.make_version(watch, path, fingerprint, Source.PUT)
        if key:
            version = self._intake.named(version, key)
        # Two of one path go one after the other: neither takes the other's place while somebody waits for it.
        async with self._turns.setdefault((watch, path), asyncio.Lock()):
            return await self._upload(version, Held(fd, expires, progress))

    async def _upload(self, version: NewVersion, held: Held) -> Link:
        future: asyncio.Future[Link] = asyncio.get_running_loop().create_future()
        self._waiting[version.file_id] = future
        self._held[version.file_id] = held
        try:
            self._on_enqueued(await self._enqueue(version))
            return await future
        except (asyncio.CancelledError, PresigndError):
            await asyncio.shield(self._withdraw(version))
            raise
        finally:
            self._waiting.pop(version.file_id, None)
            self._held.pop(version.file_id, None)

    def _is_same_file(self, watch: str, path: bytes, fd: int) -> bool:
        try:
            there, here = self._folders[watch].stat(path), os.fstat(fd)
        except Exception:  # noqa: BLE001 - whatever keeps us from seeing it there, it is not known to be that file
            return False
        return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)

    async def _enqueue(self, version: NewVersion) -> list[Enqueued]:
        """Record the version, once no earlier one of its path is in flight: two of one key never race."""
        pause = BUSY_FIRST
        while True:
            try:
                return await self._ledger.enqueue([version])
            except LostUpdate:
                await asyncio.sleep(pause)
                pause = min(BUSY_LONGEST, 2 * pause)

    async def _withdraw(self, version: NewVersion) -> None:
        """Nobody waits any more, or was told why not: what is no watch's own file can't be retried, and ends."""
        if version.path.startswith(b"/"):
            self._on_vanished(await self._ledger.gone(version.watch, [version.path], utcnow()))

    def linked(self, link: Link) -> None:
        """Hear of a link."""
        future = self._waiting.get(link.file_id)
        if future and not future.done():
            future.set_result(link)

    def ended(self, version: FileVersion) -> None:
        """Hear of a version that ended or was quarantined: without a link, whoever waits is told why."""
        future = self._waiting.get(version.file_id)
        if future and not future.done() and version.state is not State.FINISHED:
            future.set_exception(_refusal(version))


def _refusal(version: FileVersion) -> Exception:
    if version.state is State.SUPERSEDED:
        return fault("changed_while_uploading")
    if version.state is State.VANISHED:
        return Refused("the file is gone")
    entry = CODES.get(version.error_code)
    return Refused(f"{version.error_code}: {version.error}", fix=entry.fix if entry else "")
