"""The composition root: builds every part, supervises the loops, and ends them in named steps.

A loop that ends by an error ends the process (systemd starts it again): restart is ordinary input.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

from presignd.app.assembly import Parts, open_parts
from presignd.app.status_line import StatusLine
from presignd.app.work import Work
from presignd.config import Config, WatchConfig
from presignd.config.change import Change, change
from presignd.control import server as control
from presignd.control import socket_file
from presignd.control.requests import Answers
from presignd.control.view import FolderView, SettlingView, View
from presignd.errors import Unavailable
from presignd.ledger import Patience
from presignd.ledger.lock import DaemonLock
from presignd.model import Link, Source
from presignd.pipeline.announce import shown_path
from presignd.pipeline.intake import PRIORITIES
from presignd.pipeline.settle.settler import Settler
from presignd.pipeline.upkeep import upkeep
from presignd.pipeline.watch.watcher import Watcher
from presignd.runtime.service import Service, log_reloaded
from presignd.runtime.systemd import Notifier
from presignd.runtime.tasks import Loops, looping, unless
from presignd.system.clock import utcnow
from presignd.telemetry.log import get_logger, setup
from presignd.web import serving

log = get_logger()

PRESIGNER_SECONDS = 5.0
"""How long the start waits for the presigner's first answer."""

LOCK_SECONDS = 3.0
"""How long the start waits for the ledger's lock: a command holds it for moments, another daemon keeps it."""

UPKEEP_SECONDS = 60.0
"""How long upkeep waits for the first scans: one of a folder that is away never ends."""


class Daemon:
    """One run: watchers, settler, dispatcher, linker, announcer.

    ``service`` ends it and asks for reloads: ``load`` then reads the configuration again, in a thread.
    """

    def __init__(
        self,
        parts: Parts,
        service: Service | None = None,
        load: Callable[[], Config] | None = None,
    ) -> None:
        self.parts = parts
        self.service = service or Service("daemon")
        self.settler = Settler(parts.ledger, parts.make_version, parts.note_enqueued)
        self._load = load
        self._watchers = {watch.name: self._watcher(watch) for watch in parts.config.watches}
        parts.offer = self.settler.offer
        parts.folder_views = self._folder_views
        parts.settling_views = self._settling_views
        parts.started_at = utcnow()

    @property
    def watchers(self) -> list[Watcher]:
        """One for each watch, in the configuration's order."""
        return [self._watchers[watch.name] for watch in self.parts.config.watches]

    def _watcher(self, watch: WatchConfig) -> Watcher:
        parts = self.parts
        folder = parts.work.opened[watch.name]
        return Watcher(watch, folder, self.settler, parts.ledger, log, on_vanished=parts.note_vanished)

    async def serve(self) -> None:
        """Take up what the last run left, and run until stopped; raise what ended a loop."""
        async with looping() as inputs, looping() as loops:
            loops.start("status line", self.service.systemd.show_always(StatusLine(self.parts)))
            if await unless(self.service.stop.requested, self.parts.recover()):
                await self._serve(inputs, loops)

    async def _serve(self, inputs: Loops, loops: Loops) -> None:
        parts, stop = self.parts, self.service.stop
        inputs.start("settler", self.settler.run())
        for name, watcher in self._watchers.items():
            inputs.start(_of_watch(name), watcher.run())
        loops.start("ledger", parts.ledger.died())
        loops.start("linker", parts.linker.run())
        loops.start("announcer", parts.announcer.run())
        self._start_work(loops)
        if await unless(stop.requested, self._watching()):
            log.info("daemon.ready", watches=len(self.watchers))
            self.service.systemd.ready()
            parts.phase = "ready"
        reloading = self.service.reload_when_asked(self._read_again, lambda read: self._switch(*read, inputs, loops))
        await unless(stop.requested, reloading)
        inputs.stop_all()
        await self._drain()

    def _start_work(self, loops: Loops) -> None:
        """Run what goes by the configuration in effect."""
        work = self.parts.work
        loops.start("dispatcher", work.dispatcher.run())
        loops.start("sweeper", work.sweeper.run())
        loops.start("upkeep", self._upkeep(work))

    async def _upkeep(self, work: Work) -> None:
        """Look for what is gone after the first scans: both go through whole folders, and new files have the turn."""
        with suppress(TimeoutError):
            async with asyncio.timeout(UPKEEP_SECONDS):
                await asyncio.gather(*(watcher.scanned.wait() for watcher in self.watchers))
        await upkeep(self.parts.ledger, work.opened, work.config.ledger.keep, self.parts.note_vanished)

    # --- a configuration that is read again -----------------------------------------------------

    async def _read_again(self) -> tuple[Change, Work]:
        """Read and prepare all that may fail: folders opened and locked, keys, certificates. Or nothing."""
        load = self._load or (lambda: self.parts.config)
        found = change(self.parts.config, await asyncio.to_thread(load))
        opened = self.parts.folders_open.open(found.config.watches, lock=True)
        try:
            return found, self.parts.build(found.config, opened)
        except BaseException:
            self._close_unused()
            raise

    async def _switch(self, found: Change, work: Work, inputs: Loops, loops: Loops) -> None:
        """Go on by the new configuration; what is in flight, and watches that stay as they are, go on as they do."""
        parts, stale = self.parts, [*found.removed, *found.changed]
        await inputs.stop(*map(_of_watch, stale))
        for name in stale:
            await self.settler.remove(name)
        before = parts.switch(work)
        self._watchers = {w.name: self._kept(w, stale) or self._watcher(w) for w in work.config.watches}
        await loops.stop("sweeper", "upkeep")
        loops.start("retired", self._finish(before))
        self._start_work(loops)
        await parts.resume(found.added)
        for name in (*found.added, *found.changed):
            inputs.start(_of_watch(name), self._watchers[name].run())
        if before.config.log != work.config.log:
            setup(work.config.log)
        log_reloaded(found.restart, added=found.added, removed=found.removed, changed=found.changed)

    def _kept(self, watch: WatchConfig, stale: Collection[str]) -> Watcher | None:
        return None if watch.name in stale else self._watchers.get(watch.name)

    async def _finish(self, before: Work) -> None:
        """Let a retired work end, and close what nobody else uses."""
        await before.finish()
        self.parts.retired.remove(before)
        await before.close()
        self._close_unused()

    def _close_unused(self) -> None:
        self.parts.folders_open.keep({folder for work in self.parts.works for folder in work.opened.values()})

    # --- the beginning and the end --------------------------------------------------------------

    async def _watching(self) -> None:
        """Return once every folder is watched, and the presigner has answered or is known to be waited for."""
        await asyncio.gather(self._first_grant(), *(watcher.watching.wait() for watcher in self.watchers))

    async def _first_grant(self) -> None:
        try:
            async with asyncio.timeout(PRESIGNER_SECONDS):
                await self.parts.work.gates.ask_presigner()
        except TimeoutError:
            log.warning("presigner.slow", timeout=PRESIGNER_SECONDS)

    async def _drain(self) -> None:
        seconds, works = self.parts.config.upload.drain_timeout, self.parts.works
        self.parts.phase = "draining"
        in_flight = sum(len(work.worker.running) for work in works)
        if not await self.service.drain(_drained(works, seconds), seconds=seconds, in_flight=in_flight):
            await _drained(works, 0)

    def _folder_views(self) -> Sequence[FolderView]:
        return [
            FolderView(watcher.name, watcher.check.mode if watcher.check else "", watcher.next_scan_at, watcher.lost)
            for watcher in self.watchers
        ]

    def _settling_views(self) -> Sequence[SettlingView]:
        return [SettlingView(s.watch, s.path, s.since, s.why) for s in self.settler.snapshot()]


def _of_watch(name: str) -> str:
    return f"watch {name}"


async def _drained(works: Sequence[Work], seconds: float) -> None:
    await asyncio.gather(*(work.dispatcher.drain(seconds) for work in works))


async def run(
    config: Config, *, on_link: Callable[[Link], None] | None = None, load: Callable[[], Config] | None = None
) -> None:
    """Run the daemon until SIGTERM or SIGINT; a second one ends it at once.

    ``on_link`` hears each new link; it must neither block nor raise. ``load`` reads the configuration again
    on SIGHUP (in a thread) and raises ``UsageError`` for a bad one; without it, SIGHUP is as SIGTERM.
    Raises ``Unavailable`` (another daemon has the ledger or a folder), ``UsageError``, or what ended a loop.
    """
    service = Service("daemon", Notifier.of(os.environ, os.getpid()))
    async with service.running(reloads=load is not None):
        await _run(config, on_link, service, load)


async def _ledger_lock(config: Config) -> DaemonLock:
    """Take the ledger's lock; a command that looked in while no daemon ran is waited for, a daemon is not long."""
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            return DaemonLock(config.ledger.path)
        except Unavailable:
            if time.monotonic() >= deadline:
                raise
        await asyncio.sleep(0.1)


async def _run(
    config: Config,
    on_link: Callable[[Link], None] | None,
    service: Service,
    load: Callable[[], Config] | None,
) -> None:
    async with AsyncExitStack() as stack:
        stack.enter_context(await _ledger_lock(config))
        parts = await stack.enter_async_context(open_parts(config, patience=Patience()))
        # Before anything is taken up: what another daemon watches is not ours to move or delete.
        parts.folders_open.open(config.watches, lock=True)
        daemon = Daemon(parts, service, load)
        if on_link:
            parts.on_link.append(on_link)
        await stack.enter_async_context(_control(parts))
        await stack.enter_async_context(_status_page(parts))
        await daemon.serve()


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
    # This run's log is nobody's: whoever put a file has its link, and all else is left for the daemon to do and say.
    async with open_parts(config, heard=False) as parts:
        parts.work.dispatcher.most_priority = PRIORITIES[Source.PUT]
        await parts.recover()
        async with looping() as loops:
            loops.start("linker", parts.linker.run())
            loops.start("dispatcher", parts.work.dispatcher.run())
            yield parts
            await parts.work.dispatcher.drain(config.upload.drain_timeout)


async def dry_run(config: Config) -> AsyncIterator[dict[str, Any]]:
    """Yield what would go where: watch, path, bucket, key, size, and the action, or why it would not go."""
    async with AsyncExitStack() as stack:
        stack.enter_context(DaemonLock(config.ledger.path))
        parts = await stack.enter_async_context(open_parts(config, work=False))
        daemon = Daemon(parts)
        for watcher in daemon.watchers:
            prefix = await parts.work.buckets[watcher.name].prefix()
            for path, fingerprint in await watcher.scan_once():
                version = parts.work.intake.planned(
                    parts.make_version(watcher.name, path, fingerprint, Source.SCAN), prefix
                )
                yield {
                    "watch": watcher.name,
                    "path": shown_path(parts.work.opened[watcher.name].root, path),
                    "bucket": version.bucket,
                    "key": version.key or "",
                    "size": fingerprint.size,
                    "action": version.error_code or "upload",
                }
