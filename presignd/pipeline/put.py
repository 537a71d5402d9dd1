"""``presignd put``: send a file that a client holds open through the pipeline, and return its link to that client."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

from presignd.errors import CODES, PresigndError, Refused, fault
from presignd.ledger import Ledger, LostUpdate
from presignd.model import FileVersion, Link, NewVersion, Source, State
from presignd.pipeline.files.folder import Folder
from presignd.pipeline.files.hash import fingerprint_of
from presignd.pipeline.intake import Intake
from presignd.pipeline.stream import Stream
from presignd.system.clock import utcnow

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0
"""Seconds between tries to enqueue while an earlier version of the path is in flight."""

LET_GO_SECONDS = 10.0
"""Seconds in which the sender of a withdrawn stream must stop and abort; after that the sweeper aborts."""


@dataclass(frozen=True, slots=True)
class PutRequest:
    """One client's request: its open descriptor, the link's expiry in seconds, and a callback for progress in bytes.

    ``stream``: more is to come than ``fd`` reads now.
    """

    fd: int
    expires: int | None
    progress: Callable[[int], None]
    stream: Stream | None = None
    link: asyncio.Future[Link] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class PutRequests(dict[str, PutRequest]):
    """The requests that wait for a link, by file_id."""

    def linked(self, links: Sequence[Link]) -> None:
        """Send each link to the client that put its file, if any."""
        for link in links:
            request = self.get(link.file_id)
            if request and not request.link.done():
                request.link.set_result(link)

    def ended(self, versions: Sequence[FileVersion]) -> None:
        """Send the reason to each client whose version ended without a link or was quarantined."""
        for version in versions:
            request = self.get(version.file_id)
            if request and not request.link.done() and version.state is not State.FINISHED:
                request.link.set_exception(_refusal(version))


class PutHandler:
    """Enqueues the files that clients put, and waits for each link."""

    def __init__(
        self,
        requests: PutRequests,
        ledger: Ledger,
        *,
        record: Callable[[Sequence[NewVersion]], Awaitable[None]],
        on_vanished: Callable[[Sequence[FileVersion]], None],
    ) -> None:
        self._requests, self._ledger = requests, ledger
        self._record, self._on_vanished = record, on_vanished
        self._turns: WeakValueDictionary[tuple[str, bytes], asyncio.Lock] = WeakValueDictionary()

    async def put(
        self, request: PutRequest, path: bytes, watch: str, *, folder: Folder, intake: Intake, key: str | None
    ) -> Link:
        """Upload what a client sends and return its link; raise ``Refused`` if it is refused.

        ``path`` counts as the watch's file only if the request's descriptor is open on that file. Otherwise a client
        could record other content for that path. A stream's is absolute.
        """
        if not path.startswith(b"/") and not await asyncio.to_thread(_is_same_file, folder, path, request.fd):
            path = folder.absolute(path)
        fingerprint = request.stream.fingerprint() if request.stream else fingerprint_of(request.fd)
        version = intake.make_version(watch, path, fingerprint, Source.PUT)
        if key:
            version = intake.with_key(version, key)
        # One put of a path at a time: the second would supersede the first while its client waits.
        async with self._turns.setdefault((watch, path), asyncio.Lock()):
            return await self._upload(version, request)

    async def _upload(self, version: NewVersion, request: PutRequest) -> Link:
        self._requests[version.file_id] = request
        try:
            await self._enqueue(version)
            return await request.link
        except (asyncio.CancelledError, PresigndError):
            await asyncio.shield(self._withdraw(version, request.stream))
            raise
        finally:
            del self._requests[version.file_id]

    async def _enqueue(self, version: NewVersion) -> None:
        """Record the version when no earlier one of its path is in flight: two uploads would race for one key."""
        pause = FIRST_PAUSE
        while True:
            try:
                return await self._record([version])
            except LostUpdate:
                await asyncio.sleep(pause)
                pause = min(LONGEST_PAUSE, 2 * pause)

    async def _withdraw(self, version: NewVersion, stream: Stream | None) -> None:
        """End a version from outside the watch when its client is gone or was refused: only the client can retry it.

        A file in flight is still sent, as the sender has it open; a stream can't be.
        """
        if stream:
            stream.fail(fault("stream_lost", "the command was interrupted"))
            with suppress(TimeoutError):
                async with asyncio.timeout(LET_GO_SECONDS):
                    while await self._is_uploading(version):  # noqa: ASYNC110 - the ledger has no event for it
                        await asyncio.sleep(FIRST_PAUSE)
        if version.path.startswith(b"/"):
            self._on_vanished(await self._ledger.record_gone(version.watch, [version.path], utcnow()))

    async def _is_uploading(self, version: NewVersion) -> bool:
        now = await self._ledger.by_id(version.file_id)
        return now is not None and now.state is State.UPLOADING


def _is_same_file(folder: Folder, path: bytes, fd: int) -> bool:
    try:
        there, here = folder.stat(path), os.fstat(fd)
    except Exception:  # noqa: BLE001 - any error: not known to be the same file
        return False
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


def _refusal(version: FileVersion) -> Exception:
    if version.state is State.SUPERSEDED:
        return fault("changed_while_uploading")
    if version.state is State.VANISHED:
        return Refused("the file is gone")
    entry = CODES.get(version.error_code)
    return Refused(f"{version.error_code}: {version.error}", fix=entry.fix if entry else "")
