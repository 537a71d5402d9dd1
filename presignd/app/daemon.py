"""Supervise the daemon: start the loops, reload, and stop.

A loop that ends by an error ends the process. systemd restarts the process; a start handles any state that the last
run left.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from presignd.app.assembly import Pipeline, open_pipeline
from presignd.app.status_line import StatusLine
from presignd.app.upkeep import upkeep
from presignd.config import Config
from presignd.config.change import Change, change
from presignd.control import location
from presignd.control import server as control
from presignd.control.requests import Responder, no_page
from presignd.control.view import View
from presignd.errors import Unavailable
from presignd.inbox.inboxes import OnArrival
from presignd.ledger import Patience
from presignd.ledger.lock import DaemonLock
from presignd.model import Link
from presignd.pipeline.in_effect import Work
from presignd.runtime.service import Service, log_reloaded
from presignd.runtime.systemd import Notifier
from presignd.runtime.tasks import Loops, looping, unless
from presignd.telemetry.log import get_logger, setup
from presignd.webhooks.schedule import Schedule
from presignd.webhooks.webhooks import Prepared

log = get_logger()

PRESIGNER_SECONDS = 5.0
"""Longest time that the start waits for the presigner's first response."""

LOCK_SECONDS = 3.0
"""Longest time that the start waits for the ledger's lock: a command holds it only briefly, a daemon all the time."""

UPKEEP_SECONDS = 60.0
"""Longest time that upkeep waits for the first scans: the scan of a missing folder never ends."""


class Daemon:
    """One run: watchers, dispatcher, linker, announcer.

    ``service`` stops it and requests reloads: ``load`` then reads the configuration again, in a thread.
    """

    def __init__(
        self, pipeline: Pipeline, service: Service | None = None, load: Callable[[], Config] | None = None
    ) -> None:
        self._pipeline, self._in_effect = pipeline, pipeline.in_effect
        self.service = service or Service("daemon")
        self._load = load

    async def serve(self) -> None:
        """Continue what the last run left, and run until stopped; raise what ended a loop."""
        async with looping() as inputs, looping() as loops:
            loops.start("status line", self.service.systemd.show_always(StatusLine(self._pipeline.view)))
            if await unless(self.service.stop.requested, self._pipeline.recovery.recover()):
                await self._serve(inputs, loops)

    async def _serve(self, inputs: Loops, loops: Loops) -> None:
        pipeline, stop = self._pipeline, self.service.stop
        for watcher in pipeline.watchers:
            inputs.start(_of_watch(watcher.name), watcher.run())
        pipeline.inboxes.start(self._in_effect.config, inputs)
        loops.start("ledger", pipeline.ledger.wait_until_dead())
        loops.start("linker", pipeline.shared.linker.run())
        loops.start("announcer", pipeline.shared.announcer.run())
        loops.start("webhooks", pipeline.messages.webhooks.run())
        self._start_work(loops)
        if await unless(stop.requested, self._watching()):
            log.info("daemon.ready", watches=len(self._in_effect.config.watches))
            self.service.systemd.ready()
            pipeline.phase.name = "ready"
        reloading = self.service.reload_when_asked(self._read_again, lambda read: self._switch(*read, inputs, loops))
        await unless(stop.requested, reloading)
        inputs.stop_all()
        await self._drain()

    def _start_work(self, loops: Loops) -> None:
        """Start the loops of the work in effect."""
        work = self._in_effect.work
        loops.start("work", work.run())
        loops.start("sweeper", work.sweeper.run())
        loops.start("upkeep", self._upkeep(work))

    async def _upkeep(self, work: Work) -> None:
        """Load the HTTP client and run upkeep after the first scans: the start and new files go first."""
        with suppress(TimeoutError):
            async with asyncio.timeout(UPKEEP_SECONDS):
                await asyncio.gather(*(watcher.scanner.scanned.wait() for watcher in self._pipeline.watchers))
        await asyncio.to_thread(work.store.load)
        await upkeep(self._pipeline.ledger, work.opened, work.config.ledger.keep, self._pipeline.shared.announcer.done)

    # --- reload -----------------------------------------------------------------------------------
    async def _read_again(self) -> tuple[Change, Work, Prepared]:
        """Read the configuration and prepare all that may fail: open and lock folders, read keys and certificates."""
        load = self._load or (lambda: self._in_effect.config)
        found = change(self._in_effect.config, await asyncio.to_thread(load))
        opened = self._pipeline.folders.open(found.config.watches, lock=True)
        try:
            webhooks = self._pipeline.messages.webhooks.prepare(found.config.webhooks)
            return found, Work(found.config, opened, self._pipeline.shared), webhooks
        except BaseException:
            self._close_unused()
            raise

    async def _switch(self, found: Change, work: Work, webhooks: Prepared, inputs: Loops, loops: Loops) -> None:
        """Switch to the new configuration; uploads in flight, and watches that did not change, continue."""
        pipeline, stale = self._pipeline, [*found.removed, *found.changed]
        await inputs.stop(*map(_of_watch, stale))
        await pipeline.inboxes.stop(inputs)
        before = self._in_effect.work
        self._in_effect.switch(work)
        await pipeline.messages.webhooks.switch(webhooks)
        pipeline.watchers.switch(stale)
        await loops.stop("sweeper", "upkeep")
        loops.start("retired", self._finish(before))
        self._start_work(loops)
        await pipeline.recovery.resume((*found.added, *found.changed))
        for name in (*found.added, *found.changed):
            inputs.start(_of_watch(name), pipeline.watchers[name].run())
        pipeline.inboxes.start(work.config, inputs)
        if before.config.log != work.config.log:
            setup(work.config.log)
        log_reloaded(found.restart, added=found.added, removed=found.removed, changed=found.changed)

    async def _finish(self, retired: Work) -> None:
        """Wait until a retired work has finished, and close the folders that only it used."""
        await self._in_effect.finish(retired)
        self._close_unused()

    def _close_unused(self) -> None:
        used = {folder for work in self._in_effect.works for folder in work.opened.values()}
        self._pipeline.folders.close_unused(used)

    # --- start and end ----------------------------------------------------------------------------
    async def _watching(self) -> None:
        """Return when every folder is watched and the presigner responded, its breaker tripped, or 5 s passed."""
        await asyncio.gather(self._first_grant(), *(watcher.watching.wait() for watcher in self._pipeline.watchers))

    async def _first_grant(self) -> None:
        try:
            async with asyncio.timeout(PRESIGNER_SECONDS):
                await self._in_effect.work.breakers.ask_presigner()
        except TimeoutError:
            log.warning("presigner.slow", timeout=PRESIGNER_SECONDS)

    async def _drain(self) -> None:
        seconds, works = self._in_effect.config.upload.drain_timeout, self._in_effect.works
        self._pipeline.phase.name = "draining"
        in_flight = sum(len(work.dispatcher.at_work) for work in works)
        if not await self.service.drain(_drain_all(works, seconds), seconds=seconds, in_flight=in_flight):
            await _drain_all(works, 0)


def _of_watch(name: str) -> str:
    return f"watch {name}"


async def _drain_all(works: Sequence[Work], seconds: float) -> None:
    """Drain every work; cancel after ``seconds`` what is still in flight."""
    await asyncio.gather(*(work.drain(seconds) for work in works))


async def run(
    config: Config,
    *,
    on_link: Callable[[Link], None] | None = None,
    on_arrival: OnArrival | None = None,
    load: Callable[[], Config] | None = None,
    schedule: Schedule | None = None,
) -> None:
    """Run the daemon until SIGTERM or SIGINT; a second one ends it at once.

    ``on_link`` is called with each new link, ``on_arrival`` with each file that an inbox has placed; they must neither
    block nor raise. ``load`` reads the configuration again on SIGHUP (in a thread) and raises ``UsageError`` for an
    invalid one; without it, SIGHUP acts as SIGTERM.
    ``schedule`` says when webhooks are tried again.
    Raises ``Unavailable`` (another daemon has the ledger or a folder), ``UsageError``, or what ended a loop.
    """
    service = Service("daemon", Notifier.of(os.environ, os.getpid()))
    async with service.running(reloads=load is not None):
        await _run(config, (on_link, on_arrival), service, load, schedule)


async def _ledger_lock(config: Config) -> DaemonLock:
    """Take the ledger's lock. Wait up to 3 s: a command holds it only briefly."""
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
    listeners: tuple[Callable[[Link], None] | None, OnArrival | None],
    service: Service,
    load: Callable[[], Config] | None,
    schedule: Schedule | None,
) -> None:
    async with AsyncExitStack() as stack:
        stack.enter_context(await _ledger_lock(config))
        pipeline = await stack.enter_async_context(open_pipeline(config, patience=Patience(), schedule=schedule))
        # Lock first, before any file is moved or deleted: another daemon may watch the folder.
        pipeline.folders.open(config.watches, lock=True)
        on_link, on_arrival = listeners
        if on_link:
            pipeline.on_link.append(on_link)
        if on_arrival:
            pipeline.inboxes.on_arrival = on_arrival
        login_url = await stack.enter_async_context(_status_page(pipeline))
        await stack.enter_async_context(_control(pipeline.view, login_url))
        await Daemon(pipeline, service, load).serve()


@asynccontextmanager
async def _control(view: View, login_url: Callable[[], str]) -> AsyncIterator[None]:
    """Serve the control socket for the other commands."""
    path = location.socket_path(view.config, os.environ)
    async with control.serve(path, view.config.control.group, Responder(view, login_url).answer):
        yield


@asynccontextmanager
async def _status_page(pipeline: Pipeline) -> AsyncIterator[Callable[[], str]]:
    """Serve the status page if it is configured. Yield the function that makes login addresses."""
    if not pipeline.view.config.web.listen:
        yield no_page
        return
    from presignd.web import serving  # noqa: PLC0415 - only if a page is served: it loads aiohttp's server

    async with serving.serving(pipeline.view) as page:
        pipeline.on_link.append(page.hear)
        yield page.login_url
