"""The composition root: builds every part, supervises the loops, and ends them in named steps.

A loop that ends by an error ends the process (systemd starts it again): restart is ordinary input.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import presignd
from presignd import heartbeat
from presignd.config import Config
from presignd.errors import PresigndError
from presignd.ledger.lock import DaemonLock
from presignd.ledger.patience import Patience
from presignd.log import get_logger, install_loop_handler
from presignd.model import Link, Source
from presignd.notify import Notifier, Service
from presignd.parts import Parts, open_parts
from presignd.pipeline.announce import shown_path, utcnow
from presignd.pipeline.settle import Settler
from presignd.pipeline.upkeep import upkeep
from presignd.pipeline.watch import Watcher
from presignd.status_line import StatusLine
from presignd.web import control, serving, socket_file
from presignd.web.answers import Answers
from presignd.web.view import FolderView, SettlingView, View

log = get_logger()

PRESIGNER_SECONDS = 5.0
"""How long the start waits for the presigner's first answer."""

GRACE_SECONDS = 10.0
"""What ending takes at most beyond the drain, as systemd is told."""


class Stop:
    """Asked to end: once to drain, twice to end at once."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.at_once = asyncio.Event()

    def __call__(self) -> None:
        """Ask, or ask again."""
        if self.asked.is_set():
            self.at_once.set()
        self.asked.set()


class Daemon:
    """One run: watchers, settler, dispatcher, linker, announcer. ``stop`` drains; called again, it ends at once."""

    def __init__(self, parts: Parts, stop: Stop | None = None, service: Service | None = None) -> None:
        self.parts = parts
        self.stop = stop or Stop()
        self.service = service or unwatched()
        self.service.status = StatusLine(parts)
        self.settler = Settler(parts.ledger, parts.intake.make_version, parts.note_enqueued)
        self.watchers = [
            Watcher(watch, parts.opened[watch.name], self.settler, parts.ledger, log, on_vanished=parts.note_vanished)
            for watch in parts.config.watches
        ]
        parts.offer = self.settler.offer
        parts.folder_views = self._folder_views
        parts.settling_views = self._settling_views
        parts.started_at = utcnow()

    async def serve(self) -> None:
        """Take up what the last run left, and run until stopped; raise what ended a loop."""
        if not await _unless(self.stop.asked, self.parts.recover()):
            return
        parts = self.parts
        inputs = [self.settler.run(), *(watcher.run() for watcher in self.watchers)]
        work = [
            parts.dispatcher.run(),
            parts.linker.run(),
            parts.announcer.run(),
            parts.sweeper.run(),
            upkeep(parts.ledger, parts.opened, parts.config.ledger.keep, parts.note_vanished),
        ]
        async with _supervised(inputs) as watching, _supervised(work):
            if await _unless(self.stop.asked, self._watching()):
                log.info("daemon.ready", watches=len(self.watchers))
                self.service.ready()
                parts.phase = "ready"
            await self.stop.asked.wait()
            for task in watching:
                task.cancel()
            await self._drain()

    async def _watching(self) -> None:
        """Return once every folder is watched, and the presigner has answered or is known to be waited for."""
        await asyncio.gather(self._first_grant(), *(watcher.watching.wait() for watcher in self.watchers))

    async def _first_grant(self) -> None:
        try:
            async with asyncio.timeout(PRESIGNER_SECONDS):
                await self.parts.gates.ask_presigner()
        except TimeoutError:
            log.warning("presigner.slow", timeout=PRESIGNER_SECONDS)

    async def _drain(self) -> None:
        dispatcher, seconds = self.parts.dispatcher, self.parts.config.upload.drain_timeout
        self.service.stopping(seconds + GRACE_SECONDS)
        self.parts.phase = "draining"
        log.info("daemon.draining", in_flight=len(self.parts.worker.running), timeout=seconds)
        if not await _unless(self.stop.at_once, dispatcher.drain(seconds)):
            await dispatcher.drain(0)

    def _folder_views(self) -> Sequence[FolderView]:
        return [
            FolderView(watcher.name, watcher.check.mode if watcher.check else "", watcher.next_scan_at, watcher.lost)
            for watcher in self.watchers
        ]

    def _settling_views(self) -> Sequence[SettlingView]:
        return [SettlingView(s.watch, s.path, s.since, s.why) for s in self.settler.snapshot()]


@asynccontextmanager
async def _supervised(loops: Sequence[Coroutine[Any, Any, None]]) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Run loops beside the body; one that fails ends the body with its error, the body's end ends them."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(loop) for loop in loops]
        yield tasks
        for task in tasks:
            task.cancel()


async def _unless(event: asyncio.Event, work: Coroutine[Any, Any, object]) -> bool:
    """Do ``work``, unless ``event`` comes first: then it is cancelled. Tell whether it was done."""
    doing, waiting = asyncio.ensure_future(work), asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait({doing, waiting}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        doing.cancel()
        waiting.cancel()
        await asyncio.gather(doing, waiting, return_exceptions=True)
    if doing.cancelled():
        return False
    doing.result()
    return True


async def run(config: Config, *, on_link: Callable[[Link], None] | None = None) -> None:
    """Run the daemon until SIGTERM or SIGINT; a second one ends it at once.

    ``on_link`` hears each new link; it must neither block nor raise. Raises ``Unavailable`` (another daemon
    has the ledger or a folder), ``UsageError``, or what ended a loop.
    """
    loop, stop = asyncio.get_running_loop(), Stop()
    install_loop_handler(loop)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    service = Service(Notifier.of(os.environ, os.getpid()), overdue=heartbeat.overdue, on_overdue=_wedged)
    log.info("daemon.started", version=presignd.__version__, pid=os.getpid())
    try:
        async with _supervised([service.run()]):
            await _run(config, stop, on_link, service)
    except BaseExceptionGroup as group:
        expected, bugs = group.split(PresigndError)
        if bugs or expected is None:
            raise
        raise _first(expected) from None
    log.info("daemon.stopped")


def unwatched() -> Service:
    """Return a service that nobody is told of."""
    return Service(Notifier(), overdue=heartbeat.overdue, on_overdue=_wedged)


def _wedged(names: list[str]) -> None:
    log.critical("daemon.wedged", loops=names, fix="systemd starts it again; report what hangs, if it is no dead disk")


async def _run(config: Config, stop: Stop, on_link: Callable[[Link], None] | None, service: Service) -> None:
    async with AsyncExitStack() as stack:
        stack.enter_context(DaemonLock(config.ledger.path))
        parts = await stack.enter_async_context(open_parts(config, patience=Patience()))
        # Before anything is taken up: what another daemon watches is not ours to move or delete.
        for folder in parts.opened.values():
            folder.lock()
        daemon = Daemon(parts, stop, service)
        if on_link:
            parts.on_link.append(on_link)
        await stack.enter_async_context(_control(parts))
        await stack.enter_async_context(_status_page(parts))
        await daemon.serve()


def _first(group: BaseExceptionGroup[PresigndError]) -> PresigndError:
    """Return the first expected error of a group: one line is told, not a tree."""
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


@asynccontextmanager
async def _control(parts: Parts) -> AsyncIterator[None]:
    """Answer the other commands over the control socket."""
    path = socket_file.socket_path(parts.config, os.environ)
    answers = Answers(parts)
    async with control.serve(path, parts.config.control.group, answers.answer):
        yield


@asynccontextmanager
async def _status_page(parts: Parts) -> AsyncIterator[None]:
    """Serve the status page, where the configuration wants one."""
    if not parts.config.web.listen:
        yield
        return
    async with serving.serving(parts) as page:
        parts.login_url = page.login_url
        parts.on_link.append(page.hear)
        yield


@asynccontextmanager
async def local_view(config: Config, *, work: bool) -> AsyncIterator[View]:
    """Open the pipeline for one command while no daemon runs; the caller holds the ledger's lock.

    Only with ``work`` (a put) does anything upload meanwhile.
    """
    if not work:
        async with open_parts(config, work=False) as parts:
            yield parts
        return
    # This run's log is nobody's: each ``file.done`` is left for the daemon's next start to say.
    async with open_parts(config, heard=False) as parts:
        await parts.recover()
        async with _supervised([parts.linker.run(), parts.dispatcher.run()]):
            yield parts
            await parts.dispatcher.drain(config.upload.drain_timeout)


async def dry_run(config: Config) -> AsyncIterator[dict[str, Any]]:
    """Yield what would go where: watch, path, bucket, key, size, and the action, or why it would not go."""
    async with AsyncExitStack() as stack:
        stack.enter_context(DaemonLock(config.ledger.path))
        parts = await stack.enter_async_context(open_parts(config, work=False))
        daemon = Daemon(parts)
        for watcher in daemon.watchers:
            for path, fingerprint in await watcher.scan_once():
                version = parts.intake.make_version(watcher.name, path, fingerprint, Source.SCAN)
                yield {
                    "watch": watcher.name,
                    "path": shown_path(parts.opened[watcher.name].root, path),
                    "bucket": version.bucket,
                    "key": version.key or "",
                    "size": fingerprint.size,
                    "action": version.error_code or "upload",
                }
