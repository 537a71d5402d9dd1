"""Build every part of the pipeline in order, and close them in reverse order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from enum import Enum
from operator import attrgetter

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


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Everything that ``open_pipeline`` built.

    Each of ``on_link`` is called with each new link; it must neither block nor raise.
    """

    ledger: Ledger
    folders: Folders
    in_effect: InEffect
    shared: Shared
    watchers: Watchers
    inboxes: Inboxes
    recovery: Recovery
    phase: Phase
    view: View
    on_link: list[Callable[[Link], None]]
    messages: WebhookMessages


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
        folders = Folders()
        stack.callback(folders.close_unused, ())
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
    ledger, in_effect, puts = disk.ledger, InEffect(config.upload), PutRequests()
    on_link: list[Callable[[Link], None]] = []

    def ended(versions: Sequence[FileVersion]) -> None:
        puts.ended(versions)
        if any(map(attrgetter("upload_id"), versions)):
            in_effect.work.sweeper.wake()
        messages.webhooks.wake()

    def created(links: Sequence[Link]) -> None:
        announcer.linked(links, disclose=in_effect.config.links.in_log)
        puts.linked(links)
        for tell in on_link:
            for link in links:
                tell(link)

    is_daemon = purpose is Purpose.DAEMON
    announcer = Announcer(ledger, in_effect.roots, ended, None if is_daemon else UPLOAD_PRIORITIES[Source.PUT])
    linker = Linker(ledger, disk.links, announcer.paths, in_effect, created)
    messages = WebhookMessages(ledger, in_effect.roots, linker, schedule)
    recorder, markers = Recorder(in_effect, ledger, announcer), Markers()
    watchers = Watchers(in_effect, ledger, record=recorder.record, markers=markers, on_vanished=announcer.done)
    shared = Shared(in_effect, ledger, linker, announcer, puts, watchers.submit, pauses, markers, messages.add)
    in_effect.switch(Work(config, disk.by_watch, shared))
    watchers.switch(())
    inboxes = Inboxes(
        ledger, lambda: SignedStore(in_effect.work.presigner, in_effect.work.store), backoff=pauses.backoff
    )
    phase = Phase(utcnow() if is_daemon else None)
    view = View(
        in_effect,
        ledger,
        phase,
        watchers=watchers,
        inboxes=inboxes,
        puts=PutHandler(puts, ledger, record=recorder.record, on_vanished=announcer.done),
        announcer=announcer,
        troubles=[linker.trouble, *([patience.trouble] if patience else [])],
        webhooks=messages.webhooks,
        working=purpose is not Purpose.QUERY,
    )
    recovery = Recovery(
        in_effect,
        ledger,
        disk.links,
        disk.read_back,
        announcer=announcer,
        on_links=created,
        replay=is_daemon,
    )
    return Pipeline(
        ledger, disk.folders, in_effect, shared, watchers, inboxes, recovery, phase, view, on_link, messages
    )
