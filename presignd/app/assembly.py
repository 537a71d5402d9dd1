"""Build every part of the pipeline in order, and close them in reverse order."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from enum import Enum

from presignd.app.recovery import Recovery
from presignd.app.webhook_messages import WebhookMessages
from presignd.config import Config
from presignd.control.view import Phase, View
from presignd.inbox.inboxes import Inboxes
from presignd.ledger import Ledger, Patience, open_ledger
from presignd.links import LinksFile
from presignd.model import FileVersion, Link, Source
from presignd.pipeline.announce import Announcer
from presignd.pipeline.files.folder import Folder, Folders
from presignd.pipeline.files.lease import ignore_sigio
from presignd.pipeline.finish.link import Linker
from presignd.pipeline.in_effect import PAUSES, InEffect, Pauses, Shared, Watchers, Work
from presignd.pipeline.intake import UPLOAD_PRIORITIES
from presignd.pipeline.put import PutHandler, PutRequests
from presignd.pipeline.record import Recorder
from presignd.pipeline.settle.settler import Settler
from presignd.pipeline.unit.folders import Markers
from presignd.store.signed import SignedStore, register_secrets
from presignd.system.clock import utcnow
from presignd.webhooks.schedule import Schedule


class Purpose(Enum):
    """What a pipeline is opened for. Only a daemon logs ``file.done`` for versions that others queued."""

    DAEMON = "daemon"
    PUT = "put"
    """Only the command's own files are uploaded; the rest is left to the daemon."""
    QUERY = "query"
    """No queued version is claimed."""


class NewLinks:
    """Calls every subscriber with each new link."""

    def __init__(self) -> None:
        self._subscribers: list[Callable[[Link], None]] = []

    def subscribe(self, subscriber: Callable[[Link], None]) -> None:
        """Call ``subscriber`` from now on; it must neither block nor raise."""
        self._subscribers.append(subscriber)

    def publish(self, links: Sequence[Link]) -> None:
        """Call all subscribers with each link, in the order in which they subscribed."""
        for link in links:
            for subscriber in self._subscribers:
                subscriber(link)


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Everything that ``open_pipeline`` built."""

    ledger: Ledger
    folders: Folders
    in_effect: InEffect
    shared: Shared
    settler: Settler
    watchers: Watchers
    inboxes: Inboxes
    recovery: Recovery
    phase: Phase
    view: View
    new_links: NewLinks
    messages: WebhookMessages
    on_vanished: Callable[[Sequence[FileVersion]], Awaitable[None]]


@asynccontextmanager
async def open_pipeline(
    config: Config,
    purpose: Purpose = Purpose.DAEMON,
    patience: Patience | None = None,
    *,
    pauses: Pauses = PAUSES,
    schedule: Schedule | None = None,
) -> AsyncIterator[Pipeline]:
    """Open folders, ledger and links file, and build the pipeline on them, without running any part of it.

    The caller holds the ledger's lock (``DaemonLock``). On exit, what is in flight is cancelled, and the ledger is
    marked as closed cleanly unless an error ended the run. Raises ``UsageError`` or ``Unavailable`` for what can't be
    opened.
    """
    ignore_sigio()
    register_secrets(config)
    async with AsyncExitStack() as stack:
        folders = stack.enter_context(Folders())
        opened = folders.open(config.watches)
        ledger = await open_ledger(config.ledger.path, patience)
        clean = False

        async def close_ledger() -> None:
            await ledger.close(clean=clean)

        stack.push_async_callback(close_ledger)
        links, read_back = LinksFile.open(config.links, await ledger.links_mark())
        stack.callback(links.close)
        disk = _Opened(folders, opened, ledger, links, read_back)
        pipeline = _build(config, purpose, patience, pauses, disk, schedule=schedule)
        stack.push_async_callback(pipeline.in_effect.close)
        stack.push_async_callback(pipeline.messages.close)
        if config.webhooks or purpose is Purpose.DAEMON:  # before any change that they need a message about
            webhooks = pipeline.messages.webhooks
            await webhooks.switch(webhooks.prepare(config.webhooks))
        interrupted = None
        try:
            yield pipeline
        except asyncio.CancelledError as error:
            interrupted = error
        finally:
            if patience:
                patience.end()
        if purpose is not Purpose.QUERY:
            await pipeline.recovery.release_claims()
            clean = True
        if interrupted:
            raise interrupted


@dataclass(frozen=True, slots=True)
class _Opened:
    """What is open on disk. ``read_back`` are the links in ``links.jsonl`` after the ledger's mark."""

    folders: Folders
    by_watch: Mapping[str, Folder]
    ledger: Ledger
    links: LinksFile
    read_back: Iterator[Link]


def _build(
    config: Config,
    purpose: Purpose,
    patience: Patience | None,
    pauses: Pauses,
    disk: _Opened,
    *,
    schedule: Schedule | None,
) -> Pipeline:
    ledger, is_daemon = disk.ledger, purpose is Purpose.DAEMON
    in_effect, put_requests, new_links = InEffect(config.upload), PutRequests(), NewLinks()

    def ended(version: FileVersion) -> None:
        put_requests.ended(version)
        if version.upload_id:
            in_effect.work.sweeper.wake()
        messages.webhooks.wake()

    announcer = Announcer(
        ledger,
        in_effect.roots,
        on_end=ended,
        is_read=lambda version: is_daemon or version.priority == UPLOAD_PRIORITIES[Source.PUT],
    )

    async def vanished(versions: Sequence[FileVersion]) -> None:
        announcer.done(versions)

    async def returned(version: FileVersion) -> bool:
        return await in_effect.work.finisher.rewrite_link_file(version)

    def created(links: Sequence[Link]) -> None:
        announcer.linked(links, disclose=in_effect.config.links.in_log)
        new_links.publish(links)

    new_links.subscribe(put_requests.linked)
    linker = Linker(
        ledger,
        disk.links,
        announcer.path,
        sign=in_effect.grant,
        sign_again=in_effect.grant_as_asked,
        make=in_effect.make_links,
        now=in_effect.now,
        on_links=created,
    )
    messages = WebhookMessages(ledger, in_effect.roots, linker, schedule)
    recorder, markers = Recorder(in_effect, ledger, announcer), Markers()
    settler = Settler(
        ledger,
        recorder.record,
        socket.gethostname(),
        markers=markers,
        on_return=returned,
        algorithms=in_effect.algorithms_ahead,
    )
    shared = Shared(
        in_effect,
        ledger,
        linker,
        announcer,
        put_requests,
        submit=settler.submit,
        pauses=pauses,
        markers=markers,
        on_store_event=messages.add,
    )
    in_effect.switch(Work(config, disk.by_watch, shared))
    inboxes = Inboxes(
        ledger, lambda: SignedStore(in_effect.work.presigner, in_effect.work.store), backoff=pauses.backoff
    )
    watchers = Watchers(in_effect, settler, ledger, vanished)
    recovery = Recovery(
        in_effect,
        ledger,
        disk.links,
        disk.read_back,
        announcer=announcer,
        on_links=created,
        replay=is_daemon,
    )
    phase = Phase(utcnow() if is_daemon else None)
    view = View(
        in_effect,
        ledger,
        phase,
        watchers=watchers,
        inboxes=inboxes,
        settler=settler,
        puts=PutHandler(put_requests, ledger, record=recorder.record, on_vanished=vanished),
        announcer=announcer,
        troubles=[linker.trouble, *([patience.trouble] if patience else [])],
        webhooks=messages.webhooks,
        working=purpose is not Purpose.QUERY,
    )
    return Pipeline(
        ledger=ledger,
        folders=disk.folders,
        in_effect=in_effect,
        shared=shared,
        settler=settler,
        watchers=watchers,
        inboxes=inboxes,
        recovery=recovery,
        phase=phase,
        view=view,
        new_links=new_links,
        messages=messages,
        on_vanished=vanished,
    )
