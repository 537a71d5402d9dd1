"""``presignd put``: send what a client puts through the pipeline, and return its link to that client.

Of a file, the client holds it open. Of a stream (``put -``), it sends bytes of unknown length, which are cut into parts
that wait on disk until the store has them. They can't be read twice, so each part stays in an unlinked file until it is
recorded: a part that fails is sent again from there. The file has room for the parts in flight and one more. While all
of them wait for the store, nothing is read, so the writer waits, too.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from weakref import WeakValueDictionary

from presignd.config import UploadConfig, WatchConfig
from presignd.errors import CODES, Fault, PresigndError, Refused, fault, reason_of
from presignd.ledger import Ledger, LostUpdate
from presignd.model import FileVersion, Fingerprint, Link, NewVersion, Source, State
from presignd.pipeline.files.folder import Folder
from presignd.pipeline.files.hash import fingerprint_of
from presignd.pipeline.intake import make_version, with_key
from presignd.runtime.frames import CHUNK, CutOff, Frames
from presignd.runtime.heartbeat import resting
from presignd.s3.limits import LARGEST_PART
from presignd.s3.multipart import PartRange, next_part_size
from presignd.system.clock import utcnow
from presignd.system.durable import write_all

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0
"""Seconds between tries to enqueue while an earlier version of the path is in flight."""

LET_GO_SECONDS = 10.0
"""Seconds in which the sender of a withdrawn stream must stop and abort; after that the sweeper aborts."""

STDIN = b"/dev/stdin/"
"""A stream's path is this and the name that ``--name`` gives: no file can be there, as nothing is below a file that is
no folder."""

LONGEST_NAME = 255


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
        for link in links if self else ():
            request = self.get(link.file_id)
            if request and not request.link.done():
                request.link.set_result(link)

    def ended(self, versions: Sequence[FileVersion]) -> None:
        """Send the reason to each client whose version ended without a link or was quarantined."""
        for version in versions if self else ():
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
        self, request: PutRequest, path: bytes, watch: WatchConfig, *, folder: Folder, key: str | None
    ) -> Link:
        """Upload what a client sends and return its link; raise ``Refused`` if it is refused.

        ``path`` counts as the watch's file only if the request's descriptor is open on that file. Otherwise a client
        could record other content for that path. A stream's is absolute.
        """
        if not path.startswith(b"/") and not await asyncio.to_thread(_is_same_file, folder, path, request.fd):
            path = folder.absolute(path)
        fingerprint = request.stream.fingerprint() if request.stream else fingerprint_of(request.fd)
        version = make_version(watch, path, fingerprint, Source.PUT)
        if key:
            version = with_key(version, key)
        # One put of a path at a time: the second would supersede the first while its client waits.
        async with self._turns.setdefault((watch.name, path), asyncio.Lock()):
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


# --- streams ----------------------------------------------------------------------------------------
def stream_name_problem(name: bytes) -> str:
    """Return why ``name`` can't name a stream, "" if it can: a file must be able to have that name."""
    if not name or name in (b".", b".."):
        return "it names no file"
    if b"/" in name or b"\0" in name:
        return "it holds a slash or a NUL"
    return f"it is longer than {LONGEST_NAME} bytes" if len(name) > LONGEST_NAME else ""


class Stream:
    """The bytes that one client sends; they wait in the file ``fd``.

    ``size`` is the number of bytes read so far, all of them once it has ``ended``; more than ``largest`` are a fault. A
    part's ``offset`` is that of its bytes in the file, not in the stream. ``checksum`` is kept here between attempts.
    """

    def __init__(self, frames: Frames, fd: int, upload: UploadConfig, largest: int) -> None:
        self.fd, self._frames, self._upload, self._largest = fd, frames, upload, largest
        self._free = list(range(upload.part_concurrency + 1))
        self._waiting: list[PartRange] = []
        self._parts = 0
        self._problem: Fault | None = None
        self._changed, self._failed = asyncio.Event(), asyncio.Event()
        self.size = self.released = 0
        self.ended = False
        self.checksum = ""

    def fingerprint(self) -> Fingerprint:
        """Return the fingerprint of its file, with the stream's size.

        Until that is known it counts as a large file, so that small ones have senders left, but not as one that the
        watch refuses.
        """
        size = self.size if self.ended else min(max(self.size, self._upload.multipart_threshold), self._largest)
        return fingerprint_of(self.fd)._replace(size=size)

    # --- what comes in ----------------------------------------------------------------------------
    async def read_first(self) -> bool:
        """Read the first part; return True if the stream ended before the part was full: then ``fd`` has all of it.

        Raises ``Fault``.
        """
        await self._read_part()
        if self._problem:
            raise self._problem
        if not self.ended:
            return False
        with _disk_errors_as_faults():
            os.ftruncate(self.fd, self.size)
        return True

    async def read_on(self) -> None:
        """Read to the end, or until something fails: the sender of the parts raises that fault."""
        while not (self.ended or self._problem):
            while not self._free:
                await self._change()
            await self._read_part()

    async def _read_part(self) -> None:
        slot = self._free.pop(0)
        offset, wanted = slot * LARGEST_PART, next_part_size(self.size, self._upload.part_size)
        try:
            size = await self._fill(offset, wanted)
        except Fault as problem:
            self.fail(problem)
            return
        except CutOff:
            self.fail(fault("stream_lost", "its writer ended in the middle of it"))
            return
        self.size += size
        self.ended = size < wanted
        if size:
            self._parts += 1
            self._waiting.append(PartRange(self._parts, offset, size))
        if self.size > self._largest:
            self.fail(fault("too_large", f"over {self._largest} bytes"))
        self._changed.set()

    async def _fill(self, offset: int, wanted: int) -> int:
        """Write up to ``wanted`` bytes of the stream into the file; return how many, fewer only at its end."""
        room, done = memoryview(bytearray(min(CHUNK, wanted))), 0
        while done < wanted:
            size = await self._frames.read_into(room[: wanted - done])
            if not size:
                break
            with _disk_errors_as_faults():
                await asyncio.to_thread(write_all, self.fd, room[:size], offset + done)
            done += size
        return done

    async def _change(self) -> None:
        self._changed.clear()
        with resting():  # a writer may take any time
            await self._changed.wait()

    # --- what is sent -----------------------------------------------------------------------------
    async def take(self) -> PartRange | None:
        """Wait for the next whole part and return it, None after the last. The caller releases it or gives it back."""
        while not self._waiting and not self.ended:
            await self._change()
        return self._waiting.pop(0) if self._waiting else None

    def give_back(self, part: PartRange) -> None:
        """Let a part that was not sent be taken again."""
        self._waiting.insert(0, part)

    def release(self, part: PartRange) -> None:
        """Forget a part that the store has."""
        self.released += part.size
        self._free.append(part.offset // LARGEST_PART)
        self._changed.set()

    def fail(self, problem: Fault) -> None:
        """End the stream: its sender raises ``problem``."""
        self._problem = self._problem or problem
        self._failed.set()

    async def fails(self) -> None:
        """Wait for the fault that ends the stream, and raise it. The heartbeat goes on: senders are watched."""
        await self._failed.wait()
        assert self._problem is not None, "it was set first"
        raise self._problem


@contextmanager
def buffer(folder: Path) -> Iterator[int]:
    """Yield the descriptor of an unnamed file on the disk of ``folder``: it is gone when closed, or after a crash.

    Raises ``Fault``.
    """
    with _disk_errors_as_faults():
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - the caller's error is no error of this disk
    with file:
        yield file.fileno()


@contextmanager
def _disk_errors_as_faults() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise fault("stream_lost", f"the ledger's folder, where its parts wait: {reason_of(error)}") from None
