"""The link stage, verified → linked: sign the GETs, write lines to ``links.jsonl``, then commit; a batch at a time.

A version whose file is kept as it is (``after = "keep"``) is finished by the same commit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TypeAlias, TypeVar

from presignd.errors import Fault, FileFault
from presignd.ledger import Ledger
from presignd.links import LinksFile
from presignd.model import FileVersion, Link, LinksMark
from presignd.presign import Grant, GrantRequest, Operation
from presignd.runtime.heartbeat import alive, beat, resting
from presignd.runtime.outage import Trouble
from presignd.system.clock import utcnow

T = TypeVar("T")
Sign: TypeAlias = Callable[[Sequence[GrantRequest]], Awaitable[Sequence[Grant | Exception]]]
"""``Presigner.grant`` of the presigner in effect."""

RETRY_SECONDS = 5.0
"""Seconds between two tries while the disk, the presigner or the store is away."""

STALE = timedelta(minutes=1)
"""A link that waited longer than this to be signed gets a new date."""

MANY, LINGER_SECONDS = 8, 0.01
"""After a batch of ``MANY`` links the next one waits this long to fill: each costs one fsync and two commits."""


@dataclass(slots=True)
class _Waiting:
    version: FileVersion
    expires: int
    finish: bool
    future: asyncio.Future[tuple[FileVersion, Link]]


async def make_link(sign: Sign, version: FileVersion, expires: int, path: str) -> Link:
    """Return the link of one verified version, signed to expire after ``expires`` seconds. Raises ``Fault``."""
    return await _signed(sign, link_request(version, expires), version, path)


async def _signed(sign: Sign, request: GrantRequest, version: FileVersion, path: str) -> Link:
    (grant,) = await sign([request])
    if isinstance(grant, Exception):
        raise grant
    return link_of(version, grant, path)


def link_request(version: FileVersion, expires: int) -> GrantRequest:
    """Return the request for a GET of the version, signed at its committed date: the same URL each time.

    A bucket with suspended versioning gives each object the version "null", which is whatever its key holds.
    """
    assert version.key is not None
    return GrantRequest(
        Operation.GET,
        version.bucket,
        version.key,
        expires,
        date=version.signed_at,
        public=True,
        version_id="" if version.version_id == "null" else version.version_id,
    )


def link_of(version: FileVersion, grant: Grant, path: str) -> Link:
    """Return the link of a verified version and its grant."""
    assert version.key is not None
    return Link(
        time=version.signed_at or utcnow(),
        file_id=version.file_id,
        watch=version.watch,
        path=path,
        bucket=version.bucket,
        key=version.key,
        size=version.size,
        content_type=version.content_type,
        etag=version.etag,
        checksum=version.checksum,
        expires_at=grant.expires_at,
        url=grant.url,
        version_id=version.version_id,
    )


def linked_by(version: FileVersion, link: Link) -> FileVersion:
    """Return a version with what the ledger records of its link."""
    named = link.version_id if link.names_version else ""
    return replace(version, expires_at=link.expires_at, link_version=named)


class Linker:
    """Links verified versions: their lines are on disk, in ``links.jsonl``, before the commit.

    ``sign`` and ``now`` are those of the presigner in effect; ``sign`` may leave out an object's version,
    ``sign_again`` does not. ``path_of`` returns a version's path as links show it.
    """

    def __init__(
        self,
        ledger: Ledger,
        links: LinksFile,
        path_of: Callable[[FileVersion], str],
        *,
        sign: Sign,
        sign_again: Sign,
        now: Callable[[], datetime],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._ledger, self._links, self._path_of = ledger, links, path_of
        self._sign, self._sign_again, self._now, self._sleep = sign, sign_again, now, sleep
        self._waiting: list[_Waiting] = []
        self._has_work = asyncio.Event()
        self.trouble = Trouble("links")
        self._has_delayed = False
        self._wake_task: asyncio.Task[None] | None = None

    def now(self) -> datetime:
        """Return the date for a link: the signer's time, as the clock of this machine may be wrong."""
        return self._now()

    async def link(self, version: FileVersion, expires: int, *, finish: bool = False) -> tuple[FileVersion, Link]:
        """Link one verified version; wait while the disk or the presigner is away.

        With ``finish``, the same commit finishes it: nothing is to be done with its file.
        """
        future: asyncio.Future[tuple[FileVersion, Link]] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(version, expires, finish, future))
        self._has_work.set()
        with resting():  # the linker has a heartbeat of its own
            return await future

    async def remake_link(self, version: FileVersion) -> Link:
        """Return the link of a linked version, made again: the same URL, by what is committed of it.

        Waits while the presigner is away. Raises ``FileFault``.
        """
        assert version.signed_at is not None
        assert version.expires_at is not None
        lifetime = version.expires_at - version.signed_at.replace(microsecond=0)
        request = link_request(version, int(lifetime.total_seconds()))
        request = replace(request, version_id=version.link_version)

        async def make() -> Link | FileFault:
            try:
                return await _signed(self._sign_again, request, version, self._path_of(version))
            except FileFault as refused:
                return refused

        link = await self._until_done(make)
        if isinstance(link, FileFault):
            raise link
        return link

    async def run(self) -> None:
        """Link the versions that wait, one batch after the other, until cancelled."""
        batch: list[_Waiting] = []
        try:
            with alive("linker") as heart:
                while True:
                    with heart.resting():
                        await self._has_work.wait()
                        if len(batch) >= MANY:
                            await self._sleep(LINGER_SECONDS)
                    self._has_work.clear()
                    batch, self._waiting = self._waiting, []
                    await self._link(batch)
        finally:
            if self._wake_task:
                self._wake_task.cancel()

    async def _link(self, batch: list[_Waiting]) -> None:
        """Write the lines, then commit; each is retried until it succeeds, and a written line isn't written again."""
        good, mark = await self._until_done(lambda: self._write(batch))
        # Crash window: the next start reads back the lines on disk whose commit is missing.
        done = [linked_by(waiting.version, link) for waiting, link in good]
        ended = {waiting.version.file_id: utcnow() for waiting, _ in good if waiting.finish}
        linked = await self._until_done(lambda: self._ledger.record_linked(done, mark, ended)) if done else []
        for (waiting, link), version in zip(good, linked, strict=True):
            if not waiting.future.done():
                waiting.future.set_result((version, link))

    async def _until_done(self, step: Callable[[], Awaitable[T]]) -> T:
        """Retry ``step`` until it succeeds; return its result."""
        while True:
            try:
                done = await step()
            except Fault as problem:
                self.trouble.met(problem)
                beat(within=RETRY_SECONDS)
                await self._sleep(RETRY_SECONDS)
            else:
                if not self._has_delayed:
                    self.trouble.over()
                return done

    async def _write(self, batch: list[_Waiting]) -> tuple[list[tuple[_Waiting, Link]], LinksMark]:
        """Write the lines to disk; return the links and where the file ends now.

        Links that can't be signed now, such as those of a bucket that is away, are retried with the next batch or
        after RETRY_SECONDS.
        """
        batch += self._waiting
        self._waiting = []
        for waiting in batch:
            await self._date_again(waiting)
        good, delayed = await self._sign_all(batch)
        mark = await self._append([link for _, link in good])
        self._retry_later(delayed)
        return good, mark

    def _retry_later(self, delayed: list[tuple[_Waiting, Fault]]) -> None:
        self._has_delayed = bool(delayed)
        if delayed:
            self.trouble.met(delayed[0][1])
            self._waiting = [waiting for waiting, _ in delayed] + self._waiting
            if self._wake_task is None or self._wake_task.done():
                self._wake_task = asyncio.create_task(self._wake_later(), name="links that wait")

    async def _wake_later(self) -> None:
        await self._sleep(RETRY_SECONDS)
        self._has_work.set()

    async def _date_again(self, waiting: _Waiting) -> None:
        """Give a link that had to wait a new date: it could have expired by the time it is written."""
        version, now = waiting.version, self.now()
        if version.signed_at is None or abs(now - version.signed_at) > STALE:
            waiting.version = await self._ledger.update(version, signed_at=now)

    async def _sign_all(
        self, batch: list[_Waiting]
    ) -> tuple[list[tuple[_Waiting, Link]], list[tuple[_Waiting, Fault]]]:
        """Sign the links of ``batch``: a fault of one file is raised in its worker, any other is waited for."""
        grants = await self._sign([link_request(w.version, w.expires) for w in batch])
        good: list[tuple[_Waiting, Link]] = []
        delayed: list[tuple[_Waiting, Fault]] = []
        for waiting, grant in zip(batch, grants, strict=True):
            if isinstance(grant, FileFault):
                _refuse(waiting, grant)
            elif isinstance(grant, Fault):
                delayed.append((waiting, grant))  # such as a region that can't be asked for while the store is away
            elif isinstance(grant, Exception):
                raise grant
            else:
                good.append((waiting, link_of(waiting.version, grant, self._path_of(waiting.version))))
        return good, delayed

    async def _append(self, links: list[Link]) -> LinksMark:
        """Write the lines to disk. If cancelled, wait for the thread nevertheless: the file is closed next."""
        appending = asyncio.ensure_future(asyncio.to_thread(self._links.append, links))
        try:
            return await asyncio.shield(appending)
        except asyncio.CancelledError:
            await asyncio.wait({appending})
            raise


def _refuse(waiting: _Waiting, problem: Exception) -> None:
    if not waiting.future.done():
        waiting.future.set_exception(problem)
