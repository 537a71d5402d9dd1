"""All inboxes of the configuration in effect. Without one, nothing here imports aiohttp: it would slow each start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from presignd.config import Config, InboxConfig
from presignd.ledger import InboxSummary, Ledger, NewArrival
from presignd.runtime.outage import Trouble
from presignd.runtime.tasks import Loops
from presignd.store.signed import SignedStore
from presignd.system.clock import utcnow

if TYPE_CHECKING:
    from presignd.inbox.inbox import Inbox
    from presignd.presign.broker_inbox import BrokerInbox


@dataclass(frozen=True, slots=True)
class InboxView:
    """The state of one inbox: files that wait, of these stopped ones, files received, and when the last one was."""

    config: InboxConfig
    waiting: int
    stopped: int
    received: int
    last_at: datetime | None


OnArrival = Callable[[NewArrival, Path], None]
"""Called with a file that came in, and its place."""


class Inboxes:
    """Runs the inboxes of a configuration; ``store`` returns the store from which they fetch.

    ``on_arrival`` is called with each file once it is in its place.
    """

    def __init__(self, ledger: Ledger, store: Callable[[], SignedStore], *, backoff: Callable[..., float]) -> None:
        self._ledger, self._store, self._backoff = ledger, store, backoff
        self._running: list[Inbox] = []
        self.on_arrival: OnArrival = lambda *_: None

    def start(self, config: Config, loops: Loops) -> None:
        """Start the inboxes of ``config``."""
        self._running = [self._inbox(config, each) for each in config.inboxes]
        for inbox in self._running:
            loops.start(_loop(inbox), inbox.run())

    async def stop(self, loops: Loops) -> None:
        """Stop all inboxes; their downloads stay for the next start."""
        await loops.stop(*map(_loop, self._running))
        self._running = []

    def _inbox(self, config: Config, own: InboxConfig) -> Inbox:
        from presignd.inbox.inbox import Inbox  # noqa: PLC0415 - it brings aiohttp

        return Inbox(
            own,
            broker_inbox(config, own),
            self._ledger.arrivals,
            self._store,
            backoff=self._backoff,
            on_arrival=self.on_arrival,
        )

    def troubles(self) -> list[Trouble]:
        """Return the faults that inboxes wait for."""
        return [trouble for inbox in self._running for trouble in (inbox.listing, inbox.bringing) if trouble.problem]


def broker_inbox(config: Config, own: InboxConfig) -> BrokerInbox:
    """Return a client of the broker with connections of its own: a call that waits must not delay grants."""
    from presignd.presign.broker_client import BrokerClient  # noqa: PLC0415 - it brings aiohttp
    from presignd.presign.broker_inbox import TIMEOUT, BrokerInbox  # noqa: PLC0415 - as above

    return BrokerInbox(BrokerClient(config.presign, clock=utcnow, timeout=TIMEOUT), own.invitation)


async def inbox_views(config: Config, ledger: Ledger) -> Sequence[InboxView]:
    """Return every inbox of a configuration with its numbers, in its order."""
    found = {each.inbox: each for each in await ledger.arrivals.inboxes()} if config.inboxes else {}
    return [_view(own, found.get(own.name)) for own in config.inboxes]


def _view(own: InboxConfig, found: InboxSummary | None) -> InboxView:
    if found is None:
        return InboxView(own, 0, 0, 0, None)
    return InboxView(own, found.waiting, found.stopped, found.received, found.last_at)


def _loop(inbox: Inbox) -> str:
    return f"inbox {inbox.config.name}"
