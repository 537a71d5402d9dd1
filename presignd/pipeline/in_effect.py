"""The parts built from one configuration, and which configuration is in effect.

A reload builds another ``Work`` and switches to it; the previous one finishes what it has in flight.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from presignd.config import Config, UploadConfig, WatchConfig
from presignd.errors import Fault, fault
from presignd.ledger import Ledger
from presignd.model import FileVersion, Source, State
from presignd.pipeline.announce import Announcer
from presignd.pipeline.dispatch import Dispatcher
from presignd.pipeline.faults import UploadFaults
from presignd.pipeline.files.folder import Folder
from presignd.pipeline.files.ignore import Ignore
from presignd.pipeline.finish.finisher import WORKERS, Finisher
from presignd.pipeline.finish.link import Linker
from presignd.pipeline.put import PutRequests
from presignd.pipeline.settle.lane import Lane, Record, SettlingPath
from presignd.pipeline.stage import Ahead, Item
from presignd.pipeline.suspects import Suspects
from presignd.pipeline.unit.folders import Markers
from presignd.pipeline.unit.gather import Gatherer
from presignd.pipeline.unit.units import Units
from presignd.pipeline.upload.breakers import Breakers
from presignd.pipeline.upload.bucket import Bucket
from presignd.pipeline.upload.multipart import Sweeper
from presignd.pipeline.upload.slots import Slots
from presignd.pipeline.upload.uploader import Uploader
from presignd.pipeline.upload.verify import Verifier
from presignd.pipeline.watch.watcher import Watcher
from presignd.presign import Grant, GrantRequest
from presignd.presign.stable import StableLink, StableRequest
from presignd.runtime.tasks import first_error, looping
from presignd.s3.limits import MAX_EXPIRES
from presignd.states import backoff
from presignd.store.rate import RateLimit
from presignd.store.signed import register_secrets, signed_store
from presignd.system.clock import utcnow
from presignd.telemetry.log import get_logger

if TYPE_CHECKING:
    from presignd.presign.broker_links import BrokerLinks

log = get_logger()

R = TypeVar("R", GrantRequest, StableRequest)


class InEffect:
    """The configuration in effect and its ``Work``. Parts that outlive a reload look both up here at each use.

    ``works`` has the newest first, then those that a reload retired and that still have something in flight. It is
    empty until the assembly has switched to the first. ``slots`` are for the bodies of all works, and ``suspects`` are
    those of the start, found by ``Recovery``.
    """

    def __init__(self, upload: UploadConfig) -> None:
        self.works: list[Work] = []
        self.roots: dict[str, bytes] = {}
        self.slots = Slots(upload.concurrency)
        self.suspects = Suspects()

    @property
    def work(self) -> Work:
        """The work of the configuration in effect."""
        return self.works[0]

    @property
    def config(self) -> Config:
        """The configuration in effect."""
        return self.work.config

    def switch(self, work: Work) -> None:
        """Put ``work`` into effect; the previous one is retired."""
        self.works.insert(0, work)
        self.slots.resize(work.config.upload.concurrency)
        self.roots |= {name: folder.root for name, folder in work.opened.items()}

    async def finish(self, retired: Work) -> None:
        """Wait until a retired work has finished what it has in flight, then close it."""
        await retired.finish()
        self.works.remove(retired)
        await retired.close()

    async def close(self) -> None:
        """Close every work."""
        for work in [*self.works]:
            await work.close()

    def rate_for(self, upload: UploadConfig) -> RateLimit:
        """Return the rate limit in effect if ``upload`` has the same, else a new one.

        Bodies in flight keep the limit that they began with.
        """
        if self.works and self.work.rate.rate == upload.max_rate:
            return self.work.rate
        return RateLimit(upload.max_rate)

    def at_work(self) -> set[str]:
        """Return the file_ids of the versions that any work works on."""
        return {file_id for work in self.works for file_id in work.at_work}

    def ahead(self, watch: str) -> Ahead | None:
        """Return which new files of a watch are read as they settle (``Uploader``); safe in any thread."""
        work = self.work
        return work.uploader.ahead(watch) if watch in work.buckets else None

    def now(self) -> datetime:
        """Return the time by the clock of the presigner in effect, which dates links."""
        return self.work.presigner.now()

    async def grant(self, requests: Sequence[GrantRequest]) -> Sequence[Grant | Exception]:
        """Sign link requests with the presigner in effect, without version ids that its store can't read."""
        return await self.grant_as_asked(await self.work.with_readable_versions(requests))

    async def grant_as_asked(self, requests: Sequence[GrantRequest]) -> Sequence[Grant | Exception]:
        """Sign link requests with the presigner in effect."""
        return await self.work.presigner.grant(requests)

    async def rewrite_link_file(self, version: FileVersion) -> bool:
        """Write the link file of a finished version again, as its file is back (``Finisher``)."""
        return await self.work.finisher.rewrite_link_file(version)

    def stable_links(self) -> BrokerLinks:
        """Return the client for stable links of the configuration in effect; raise ``no_stable_links``."""
        links = self.work.presigner.links
        if links is None:
            raise fault("no_stable_links", 'presign.kind is "local"')
        return links

    async def make_links(self, requests: Sequence[StableRequest]) -> Sequence[StableLink | Fault]:
        """Make stable links with the presigner in effect, each without a version that its store can't read by id."""
        links = self.stable_links()
        return await links.make(await self.work.with_readable_versions(requests))


@dataclass(frozen=True, slots=True)
class Pauses:
    """How long files wait.

    ``backoff``: before a retry (``states.backoff``). ``writer``: while a program has the file open for writing.
    ``finish``: seconds before the file's end is tried a second time.
    """

    backoff: Callable[..., float] = backoff
    writer: timedelta = timedelta(milliseconds=500)
    finish: float = 0.5


PAUSES = Pauses()


@dataclass(frozen=True, slots=True)
class Shared:
    """The parts that every ``Work`` uses and that outlive a reload."""

    in_effect: InEffect
    ledger: Ledger
    linker: Linker
    announcer: Announcer
    puts: PutRequests
    submit: Callable[[str, list[bytes]], None]
    pauses: Pauses
    markers: Markers
    on_store_event: Callable[[str, Mapping[str, Any]], None]
    """Records an event about the store for the webhooks."""


class Work:
    """One configuration's presigner, store and buckets, and the stages that its claimed versions pass.

    ``opened`` are its folders by watch. Raises ``UsageError`` for TLS files or credentials that can't be used.
    """

    def __init__(self, config: Config, opened: Mapping[str, Folder], shared: Shared) -> None:
        register_secrets(config)
        self.config, self.opened, self._shared = config, opened, shared
        self.rate = shared.in_effect.rate_for(config.upload)
        signed = signed_store(config.presign, config.upload, clock=utcnow, rate=self.rate)
        self.presigner, self.store = signed.presigner, signed.client
        self.buckets = {watch.name: Bucket(watch, config.presign, config.upload, signed) for watch in config.watches}
        self.ignores = {watch.name: Ignore(watch) for watch in config.watches}
        self.breakers = Breakers(self.buckets, self.presigner, self._wake, shared.pauses.backoff, shared.on_store_event)
        self.finisher = Finisher(config.watches, opened, shared, self._leave)
        self.faults = UploadFaults(config.upload.attempts, opened, shared, self.breakers, self._give_back)
        self._verifier = Verifier(
            opened,
            shared.ledger,
            puts=shared.puts,
            faults=self.faults,
            now=shared.in_effect.now,
            gives_stable_links=self.gives_stable_links,
            verified=self._link,
        )
        self.uploader = Uploader(
            self.buckets,
            opened,
            config.upload,
            shared.ledger,
            puts=shared.puts,
            slots=shared.in_effect.slots,
            faults=self.faults,
            sent=self._verify,
        )
        suspects = shared.in_effect.suspects
        self.dispatcher = Dispatcher(shared.ledger, self.uploader, config.upload, self.breakers, suspects)
        self.sweeper = Sweeper(shared.ledger, self.buckets)
        gatherers = {watch.name: self._make_gatherer(watch.name) for watch in config.watches if watch.links_folders}
        self.units = Units(gatherers, self.dispatcher)
        self._closing, self._ended = asyncio.Event(), asyncio.Event()
        self._ended.set()

    def _make_gatherer(self, watch: str) -> Gatherer:
        return Gatherer(
            self.buckets[watch],
            self.opened[watch],
            self.ignores[watch],
            self._shared,
            dispatcher=self.dispatcher,
            finisher=self.finisher,
            lifetime=self._lifetime,
        )

    # --- its run ----------------------------------------------------------------------------------------
    @property
    def at_work(self) -> set[str]:
        """The file_ids of the versions that are worked on or wait to be finished."""
        return {*self.dispatcher.at_work, *self.finisher.waiting}

    async def run(self, *, max_priority: int | None = None) -> None:
        """Run every stage until ``finish`` or ``drain``; raise what a stage could not record.

        ``max_priority`` is explained at ``Dispatcher.run``.
        """
        self._ended.clear()
        try:
            async with looping() as loops:
                # Two at least: a large file's parts release their slot again and again, but the file keeps its sender.
                for number in range(max(2, self.config.upload.concurrency)):
                    loops.start(f"sender {number}", self.uploader.run())
                loops.start("verifier", self._verifier.run())
                for watch in self.config.watches:
                    # Where files stay as they are, only versions from before a change of the configuration are left.
                    workers = WORKERS if watch.link_file or watch.after != "keep" else 1
                    for number in range(workers):
                        loops.start(f"finisher {number} of {watch.name}", self.finisher.run(watch.name))
                loops.start("finisher", self.finisher.record())
                if max_priority is None:
                    loops.start("units", self.units.run())
                loops.start("dispatcher", self.dispatcher.run(max_priority=max_priority))
                await self._closing.wait()
        except BaseExceptionGroup as group:  # many stages met one error, such as a lost ledger
            raise first_error(group) from None
        finally:
            self._ended.set()

    def resume(self, versions: Sequence[FileVersion]) -> None:
        """Continue versions that are verified, or linked but not finished."""
        verified = [Item(version) for version in versions if version.state is State.VERIFIED]
        linked = [
            Item(version)
            for version in versions
            if version.state is State.LINKED
            and not (version.is_manifest and version in self.units)  # a unit's loop finishes it, once its members are
        ]
        self.dispatcher.add([*verified, *linked])
        self._link(verified)
        self.finisher.take(linked)
        self.units.wake()

    # --- from stage to stage ------------------------------------------------------------------------
    def _verify(self, item: Item) -> None:
        self._verifier.queue.put_all([item])
        self.dispatcher.sent()

    def _link(self, items: Sequence[Item]) -> None:
        items = self.units.hold(items)
        lifetimes: dict[tuple[str, bool], int | None] = {}  # the same for a watch's links of one kind, but for a put's
        for item in items:
            kind = (item.version.watch, item.version.link_id != "")
            if item.version.file_id in self._shared.puts:
                item.expires = self._lifetime(item.version)
            elif kind in lifetimes:
                item.expires = lifetimes[kind]
            else:
                item.expires = lifetimes[kind] = self._lifetime(item.version)
            item.finishes = not self.finisher.has_work(item.version)
            item.after_link = self.finisher.take
        self._shared.linker.queue.put_all(items)

    # --- links --------------------------------------------------------------------------------------
    async def has_stable_links(self) -> bool:
        """Return whether the presigner makes stable links; raise ``PresignerFault`` if this can't be found out now."""
        links = self.presigner.links
        return links is not None and bool(await links.root())

    async def gives_stable_links(self, watch: str) -> bool:
        """Return whether a watch's files get stable links; raise ``PresignerFault`` as above. False for no watch."""
        kind = self.buckets[watch].watch.links if watch in self.buckets else "presigned"
        return kind == "stable" or (kind == "auto" and await self.has_stable_links())

    def _lifetime(self, version: FileVersion) -> int | None:
        return self.stable_lifetime(version) if version.link_id else self.presigned_lifetime(version)

    def is_member(self, version: FileVersion) -> bool:
        """Return whether a version's file is linked with its folder alone, and has no link of its own."""
        return version in self.units and not version.is_made

    def stable_lifetime(self, version: FileVersion) -> int | None:
        """Return how many seconds a stable link is valid, as its ``put`` or else its watch says; None for no end."""
        put = self._shared.puts.get(version.file_id)
        watch = self.buckets[version.watch].watch if version.watch in self.buckets else None
        return (put.expires if put else None) or (watch.link_expires if watch else None)

    def presigned_lifetime(self, version: FileVersion) -> int:
        """Return how many seconds a presigned link is valid; there is a default, and 7 days at most."""
        return min(self.stable_lifetime(version) or self.config.presign.get_expires, MAX_EXPIRES)

    def _leave(self, items: Sequence[Item]) -> None:
        self.dispatcher.leave(items)
        self.units.wake()

    def _give_back(self, item: Item) -> None:
        """Return a version to the ledger, where it may wait for another try."""
        self.dispatcher.leave([item])
        self.dispatcher.wake()

    def _wake(self) -> None:
        self.dispatcher.wake()

    async def with_readable_versions(self, links: Sequence[R]) -> list[R]:
        """Return links' requests, without the object's version id where versions can't be read by their id."""
        return [await self._with_readable_version(link) if link.version_id else link for link in links]

    async def _with_readable_version(self, link: R) -> R:
        bucket = next((each for each in self.buckets.values() if each.watch.bucket == link.bucket), None)
        if bucket and await bucket.reads_versions(link.key, link.version_id):
            return link
        return replace(link, version_id="")

    # --- its end ------------------------------------------------------------------------------------
    async def finish(self) -> None:
        """Claim nothing more; return when all that was claimed has ended, however long that takes."""
        self.units.retire()
        await self.dispatcher.retire()
        await self.finisher.wait_for_retries()

    async def drain(self, seconds: float) -> bool:
        """Claim nothing more and wait for what is at work; cancel it after ``seconds``, and return False then."""
        self.units.retire()
        done = await self.dispatcher.drain(seconds)
        self._closing.set()
        await self._ended.wait()
        return done

    async def close(self) -> None:
        """Cancel what is in flight, and close every connection."""
        await self.drain(0)
        self.finisher.close()
        await self.breakers.close()
        await self.presigner.close()
        await self.store.close()


class Watchers:
    """The watcher of each watch in the configuration in effect, in the configuration's order."""

    def __init__(
        self,
        in_effect: InEffect,
        ledger: Ledger,
        *,
        record: Record,
        markers: Markers,
        on_vanished: Callable[[Sequence[FileVersion]], None],
    ) -> None:
        self._in_effect, self._ledger = in_effect, ledger
        self._record, self._markers, self._on_vanished = record, markers, on_vanished
        self._by_name: dict[str, Watcher] = {}

    def __iter__(self) -> Iterator[Watcher]:
        return iter(self._by_name.values())

    def __getitem__(self, name: str) -> Watcher:
        return self._by_name[name]

    def switch(self, stale: Collection[str]) -> None:
        """Use the watches of the configuration in effect; keep each watcher unless its watch is ``stale``."""
        before = {name: watcher for name, watcher in self._by_name.items() if name not in stale}
        self._by_name = {
            watch.name: before.get(watch.name) or self._make(watch) for watch in self._in_effect.config.watches
        }

    def _make(self, watch: WatchConfig) -> Watcher:
        return Watcher(
            watch,
            self._in_effect.work.opened[watch.name],
            Lane(watch, self._ledger, record=self._record, on_return=self._in_effect.rewrite_link_file),
            self._ledger,
            log,
            ahead=self._in_effect.ahead,
            markers=self._markers.of(watch.name),
            on_vanished=self._on_vanished,
        )

    def submit(self, watch: str, paths: Collection[bytes]) -> None:
        """Settle paths of a watch that may hold something new; those of an unknown watch are ignored."""
        if watch in self._by_name:
            self._by_name[watch].lane.submit(paths, Source.EVENT)

    def settling(self, watch: str, path: bytes) -> SettlingPath | None:
        """Return a path of a watch if it is settling."""
        return self._by_name[watch].lane.settling(path) if watch in self._by_name else None
