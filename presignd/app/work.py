"""The half of the pipeline that one configuration makes: a reload builds another, and this one finishes."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from presignd.config import Config, UploadConfig
from presignd.ledger import Ledger
from presignd.model import Candidate, Link
from presignd.pipeline.announce import Announcer
from presignd.pipeline.dispatch import Dispatcher
from presignd.pipeline.files.folder import Folder
from presignd.pipeline.files.ignore import Ignore
from presignd.pipeline.finish.finisher import Finisher
from presignd.pipeline.finish.link import Linker
from presignd.pipeline.intake import Intake
from presignd.pipeline.quarantine import Quarantine
from presignd.pipeline.upload.breakers import Gates
from presignd.pipeline.upload.bucket import Bucket
from presignd.pipeline.upload.orphans import Sweeper
from presignd.pipeline.upload.slots import Slots
from presignd.pipeline.upload.transfer import Held, Room
from presignd.pipeline.worker import Worker
from presignd.presign import GrantRequest
from presignd.store.rate import RateLimit
from presignd.store.signed import signer_and_store
from presignd.system.clock import utcnow


class Limits:
    """What all that is in flight may take together: by the newest configuration, and by those before it."""

    def __init__(self, upload: UploadConfig) -> None:
        self.slots, self.rate = Slots(upload.concurrency), RateLimit(upload.max_rate)

    def rate_for(self, upload: UploadConfig) -> RateLimit:
        """Return the one there is, unless another is asked for: what is in flight keeps that which it began by."""
        return self.rate if self.rate.rate == upload.max_rate else RateLimit(upload.max_rate)

    def switch(self, work: Work) -> None:
        """Go by the limits of ``work`` from now on."""
        self.slots.resize(work.config.upload.concurrency)
        self.rate = work.rate


@dataclass(frozen=True, slots=True)
class Shared:
    """What outlives a reload. ``held`` is what ``put`` handed over, by file_id."""

    limits: Limits
    ledger: Ledger
    linker: Linker
    announcer: Announcer
    offer: Callable[[list[Candidate]], None]
    on_link: Callable[[Link], None]
    held: dict[str, Held] = field(default_factory=dict)


class Work:
    """Who signs, where to, and the work on claimed versions, by one configuration.

    ``opened`` are its folders by watch. Raises ``UsageError`` for TLS files or credentials that can't be used.
    """

    def __init__(self, config: Config, opened: Mapping[str, Folder], shared: Shared) -> None:
        host = socket.gethostname()
        self.config, self.opened = config, opened
        self.rate = shared.limits.rate_for(config.upload)
        self.presigner, self.store = signer_and_store(config, clock=utcnow, rate=self.rate)
        self.buckets = {
            watch.name: Bucket(watch, config.presign, config.upload, self.presigner, self.store)
            for watch in config.watches
        }
        self.ignores = {watch.name: Ignore.of(watch) for watch in config.watches}
        self.intake = Intake(config.watches, host)
        self.gates = Gates(self.buckets, self.presigner, self._wake)
        quarantine = Quarantine(shared.ledger, shared.announcer)
        self.finisher = Finisher(
            {watch.name: watch for watch in config.watches},
            opened,
            shared.ledger,
            linker=shared.linker,
            announcer=shared.announcer,
            quarantine=quarantine,
            offer=shared.offer,
        )
        self.worker = Worker(
            config,
            shared.ledger,
            linker=shared.linker,
            announcer=shared.announcer,
            finisher=self.finisher,
            quarantine=quarantine,
            rooms={name: Room(bucket.watch, opened[name], bucket) for name, bucket in self.buckets.items()},
            gates=self.gates,
            slots=shared.limits.slots,
            host=host,
            offer=shared.offer,
            on_link=shared.on_link,
        )
        self.worker.held = shared.held
        self.dispatcher = Dispatcher(
            shared.ledger, self.worker, config.upload, list(self.buckets), is_open=self.gates.is_open
        )
        self.sweeper = Sweeper(shared.ledger, self.buckets)

    async def as_opened(self, link: GrantRequest) -> GrantRequest:
        """Return a link's request with the object's version named only where the store lets it be read by that name."""
        of = [bucket for bucket in self.buckets.values() if bucket.watch.bucket == link.bucket]
        if not link.version_id or (of and await of[0].opens_versions(link.key, link.version_id)):
            return link
        return replace(link, version_id="")

    def _wake(self) -> None:
        self.dispatcher.wake()

    async def finish(self) -> None:
        """Claim nothing more; return once what was claimed is through, however long that takes."""
        await self.dispatcher.retire()
        await self.finisher.finished()

    async def close(self) -> None:
        """End what is in flight, and every connection."""
        await self.dispatcher.drain(0)
        await self.finisher.close()
        await self.gates.close()
        await self.presigner.close()
        await self.store.close()
