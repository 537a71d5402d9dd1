"""The link stage, verified → linked: make links, write their lines to ``links.jsonl``, then commit; a list at a time.

A link is a signed GET, or a stable link that a broker makes for the id committed in the ledger.

A version whose file is kept as it is (``after = "keep"``) is finished by the same commit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, TypeVar

from presignd.errors import Fault, FileFault
from presignd.ledger import Ledger
from presignd.ledger.changes import Change
from presignd.links import LinksFile
from presignd.model import FileVersion, Link, LinksMark
from presignd.pipeline.stage import Item, Queue
from presignd.presign import Grant, GrantRequest, Operation
from presignd.presign.stable import StableLink, StableRequest
from presignd.runtime.crash_points import passed
from presignd.runtime.heartbeat import alive, beat
from presignd.runtime.outage import Trouble
from presignd.states import Event
from presignd.system.clock import utcnow

if TYPE_CHECKING:
    from presignd.pipeline.in_effect import InEffect

T = TypeVar("T")

RETRY_SECONDS = 5.0
"""Seconds between two tries while the disk, the presigner or the store is away."""

STALE = timedelta(minutes=1)
"""A link that waited longer than this to be signed gets a new date."""


# --- requests, and the links from what comes back ---------------------------------------------------
def stable_request(version: FileVersion, ends: datetime | None) -> StableRequest:
    """Return the request for the version's stable link, valid until ``ends``: the same link each time."""
    assert version.key is not None
    return StableRequest(
        id=version.link_id,
        bucket=version.bucket,
        key=version.key,
        size=version.size,
        content_type=version.content_type,
        filename=version.path.rpartition(b"/")[2].decode("utf-8", "backslashreplace"),
        expires_at=ends,
        version_id=version.fixed_version_id,
        unit=version.is_manifest,
    )


def end_after(version: FileVersion, seconds: int | None) -> datetime | None:
    """Return when a stable link of this lifetime ends, counted from its date; None for no end."""
    return None if seconds is None else (version.signed_at or utcnow()) + timedelta(seconds=seconds)


def link_request(version: FileVersion, expires: int | None) -> GrantRequest:
    """Return the request for a GET of the version, signed at its committed date: the same URL each time."""
    assert version.key is not None
    assert expires is not None, "a presigned link ends"
    return GrantRequest(
        Operation.GET,
        version.bucket,
        version.key,
        expires,
        date=version.signed_at,
        public=True,
        version_id=version.fixed_version_id,
    )


async def make_link(in_effect: InEffect, version: FileVersion, expires: int, path: str) -> Link:
    """Return the link of one verified version, signed to expire after ``expires`` seconds. Raises ``Fault``."""
    (grant,) = await in_effect.grant([link_request(version, expires)])
    if isinstance(grant, Exception):
        raise grant
    return link_of(version, grant, path)


def link_of(version: FileVersion, made: Grant | StableLink, path: str) -> Link:
    """Return the link of a verified version as it was signed, or as the broker made it."""
    assert version.key is not None
    return Link(  # by position: that takes half as long
        version.signed_at or utcnow(),
        version.file_id,
        version.watch,
        path,
        version.bucket,
        version.key,
        version.fingerprint.size,
        version.content_type,
        version.etag,
        version.checksum,
        made.expires_at,
        made.url,
        version.version_id,
    )


def linked_by(version: FileVersion, link: Link, done_at: datetime | None = None) -> Change:
    """Return the change that records a version's link; with ``done_at`` it is finished, too."""
    named = link.version_id if link.version_id and link.names_version else ""
    fields = {"expires_at": link.expires_at, "link_version": named}
    if done_at is None:
        return Change(version, (Event.LINK,), fields)
    return Change(version, (Event.LINK, Event.FINISH), {**fields, "done_at": done_at})


class Linker:
    """Links verified versions: their lines are on disk, in ``links.jsonl``, before the commit.

    ``paths_of`` returns versions' paths as links show them. ``on_links`` gets the links of each list once they are
    recorded.
    """

    def __init__(
        self,
        ledger: Ledger,
        links: LinksFile,
        paths_of: Callable[[Sequence[FileVersion]], Sequence[str]],
        in_effect: InEffect,
        on_links: Callable[[Sequence[Link]], None],
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._ledger, self._links, self._paths_of, self._in_effect = ledger, links, paths_of, in_effect
        self._on_links, self._sleep = on_links, sleep
        self.queue: Queue[Item] = Queue()
        self.trouble = Trouble("links")
        self._delayed: set[Item] = set()
        self._timers: set[asyncio.Task[None]] = set()

    async def remake_link(self, version: FileVersion) -> Link:
        """Make the link of a linked version again, from what the ledger has of it: the URL is the same.

        Waits while the presigner is away. Raises ``FileFault``.
        """

        async def make() -> Link | FileFault:
            try:
                return await self.link_again(version)
            except FileFault as refused:
                return refused

        link = await self._until_done(make)
        if isinstance(link, FileFault):
            raise link
        return link

    async def link_again(self, version: FileVersion) -> Link:
        """Return the link of a linked version as ``remake_link`` does, but raise its ``Fault`` at once."""
        made: Grant | StableLink | Exception
        if version.link_id:
            (made,) = await self._in_effect.make_links([stable_request(version, version.expires_at)])
        else:
            assert version.signed_at is not None
            assert version.expires_at is not None
            lifetime = version.expires_at - version.signed_at.replace(microsecond=0)
            request = link_request(version, int(lifetime.total_seconds()))
            (made,) = await self._in_effect.grant_as_asked([replace(request, version_id=version.link_version)])
        if isinstance(made, Exception):
            raise made
        return link_of(version, made, self._paths_of([version])[0])

    async def run(self) -> None:
        """Link the versions that wait, one list after the other, until cancelled."""
        try:
            with alive("linker") as heart:
                while True:
                    with heart.resting():
                        items = await self.queue.take()
                    await self._link(items)
        finally:
            for task in self._timers:
                task.cancel()

    async def _link(self, items: Sequence[Item]) -> None:
        """Write the lines, then commit; each is retried until it succeeds, and a written line isn't written again."""
        mark = await self._until_done(lambda: self._write(items))
        # Crash window: the next start reads back the lines on disk whose commit is missing.
        now = utcnow()
        linked = [(item, item.link) for item in items if item.link]
        changes = [linked_by(item.version, link, now if item.finishes else None) for item, link in linked]
        if changes:
            versions = await self._until_done(lambda: self._ledger.record_linked(changes, mark))
            for (item, _), version in zip(linked, versions, strict=True):
                item.version = version
            self._on_links([link for _, link in linked])
        done = [item for item in items if item.link or item.problem]
        for after_link, some in groupby(done, attrgetter("after_link")):  # the next stage of each one's configuration
            after_link([*some])

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
                if not self._delayed:
                    self.trouble.over()
                return done

    async def _write(self, items: Sequence[Item]) -> LinksMark:
        """Write the lines to disk; return the mark after them. Items that can't be linked now are queued again."""
        await self._date_again(items)
        delayed = await self._make_links(items)
        mark = await self._append([item.link for item in items if item.link])
        self._delayed.difference_update(items)
        if delayed:
            self._put_back(delayed)
        return mark

    async def _date_again(self, items: Sequence[Item]) -> None:
        """Give links that had to wait a new date: they could have expired by the time they are written."""
        now = self._in_effect.now()  # the presigner's time: this machine's clock may be wrong
        dates = {item.version.signed_at for item in items}  # one for each list of the stage before
        stale = {date for date in dates if date is None or abs(now - date) > STALE}
        if not stale:
            return
        again = [item for item in items if item.version.signed_at in stale]
        dated = await self._ledger.apply_all([Change(item.version, (), {"signed_at": now}) for item in again])
        for item, version in zip(again, dated, strict=True):
            item.version = version

    async def _make_links(self, items: Sequence[Item]) -> dict[Item, Fault]:
        """Give each item its link, or its problem, a fault of its own file; return those to be tried later, and why."""
        made = await self._presigned([item for item in items if not item.version.link_id])
        made |= await self._stable([item for item in items if item.version.link_id])
        passed("links.made")
        delayed: dict[Item, Fault] = {}
        for item, path in zip(items, self._paths_of([item.version for item in items]), strict=True):
            found = made[item]
            item.link = item.problem = None  # those of a try whose lines could not be written
            if not isinstance(found, Exception):
                item.link = link_of(item.version, found, path)
            elif isinstance(found, Fault) and not isinstance(found, FileFault):
                # Such as that of a bucket whose region can't be looked up while the store is away.
                delayed[item] = found
            else:
                item.problem = found
        return delayed

    async def _presigned(self, items: Sequence[Item]) -> dict[Item, Grant | StableLink | Exception]:
        requests = [link_request(item.version, item.expires) for item in items]
        return dict(zip(items, await self._in_effect.grant(requests), strict=True)) if items else {}

    async def _stable(self, items: Sequence[Item]) -> dict[Item, StableLink | Fault]:
        """Make stable links. While the broker's state is away, only these wait; presigned links are still made."""
        if not items:
            return {}
        try:
            requests = [stable_request(item.version, end_after(item.version, item.expires)) for item in items]
            found = await self._in_effect.make_links(requests)
        except Fault as away:
            return dict.fromkeys(items, away)
        return dict(zip(items, found, strict=True))

    def _put_back(self, delayed: Mapping[Item, Fault]) -> None:
        """Put items that can't be linked now into the queue again after ``RETRY_SECONDS``."""
        self.trouble.met(next(iter(delayed.values())))
        items = [*delayed]
        self._delayed.update(items)

        async def later() -> None:
            await self._sleep(RETRY_SECONDS)
            self.queue.put_all(items)

        task = asyncio.create_task(later(), name="links that wait")
        self._timers.add(task)
        task.add_done_callback(self._timers.discard)

    async def _append(self, links: list[Link]) -> LinksMark:
        """Write the lines to disk. If cancelled, still wait for the thread: the file is closed next."""
        # asyncio.to_thread would need a task and a turn of the loop: a lone file's link comes sooner without these.
        appending = asyncio.get_running_loop().run_in_executor(None, self._links.append, links)
        try:
            return await asyncio.shield(appending)
        except asyncio.CancelledError:
            await asyncio.wait({appending})
            raise
