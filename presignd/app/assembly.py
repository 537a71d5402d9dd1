"""Every part of one pipeline, built in order and let go in reverse: the daemon's, and a lone command's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import InitVar, dataclass, field, replace
from datetime import datetime

from presignd.app.work import Limits, Shared, Work
from presignd.config import Config
from presignd.control.view import BlockedView, FolderView, InFlightView, Part, SettlingView
from presignd.errors import Fault, Unavailable, fault
from presignd.ledger import Enqueued, Ledger, Patience, Selection, open_ledger
from presignd.links import LinksFile
from presignd.model import Candidate, FileVersion, Fingerprint, Link, NewVersion, Source, State
from presignd.pipeline.announce import LOG_SECONDS, Announcer, shown_path
from presignd.pipeline.files.folder import Folder
from presignd.pipeline.files.folders import Folders
from presignd.pipeline.files.lease import ignore_sigio
from presignd.pipeline.finish.link import Linker, mint
from presignd.pipeline.intake import PRIORITIES
from presignd.pipeline.put import Puts
from presignd.pipeline.upload.breaker import Shut
from presignd.presign import Grant, GrantRequest
from presignd.states import Event
from presignd.store.signed import register_secrets
from presignd.system.clock import utcnow
from presignd.telemetry.log import Disclosed, get_logger

log = get_logger()


REBUILT_FIX = (
    "none: the files that are there are looked at anew, what the store has already is adopted and gets another link, "
    'and links.jsonl keeps its lines; where a watch says existing = "ignore", touch what was still to be sent'
)
"""For a ledger that knows nothing of links which were issued: it was deleted, or is an older copy."""


_UNLINKED = (State.QUEUED, State.UPLOADING, State.QUARANTINED)


def no_page() -> str:
    """Stand in for the login address of a status page that is off, or has no daemon."""
    raise Unavailable("web: there is no status page", fix="set web.listen, and start the daemon anew")


@dataclass
class Parts:
    """The built pipeline; it is the ``View`` that the control socket answers from.

    Only a ``working`` one starts anything by itself, from ``recover`` on. ``heard`` says that its log reaches
    someone. ``read_back`` are the links past the ledger's mark. ``offer`` takes candidates (a daemon's
    settler; nothing without one); ``on_link`` hears each new link. ``work`` is made by the configuration in
    effect, ``first`` to begin with; those ``retired`` by a reload have something in flight still.
    """

    first: InitVar[tuple[Config, Mapping[str, Folder]]]
    ledger: Ledger
    links: LinksFile
    read_back: Iterator[Link]
    folders_open: Folders
    working: bool = True
    heard: bool = True
    patience: Patience | None = None
    recovered: bool = False
    started_at: datetime | None = None
    offer: Callable[[Sequence[Candidate]], None] = lambda _: None
    on_link: list[Callable[[Link], None]] = field(default_factory=list)
    folder_views: Callable[[], Sequence[FolderView]] | None = None
    settling_views: Callable[[], Sequence[SettlingView]] = tuple
    login_url: Callable[[], str] = no_page
    phase: str = "starting"

    def __post_init__(self, first: tuple[Config, Mapping[str, Folder]]) -> None:
        """Wire the stages together."""
        config, opened = first
        roots = {name: folder.root for name, folder in opened.items()}
        self.announcer = Announcer(self.ledger, roots, self._ended, is_told=self._is_told)
        self.linker = Linker(self.ledger, self.links, self, self.announcer.path)
        self._shared = Shared(
            Limits(config.upload),
            self.ledger,
            self.linker,
            self.announcer,
            offer=lambda candidates: self.offer(candidates),  # noqa: PLW0108 - a daemon sets it later
            on_link=self._linked,
        )
        self.work = self.build(config, opened)
        self.retired: list[Work] = []
        self.puts = Puts(
            self.ledger,
            self.work.intake,
            opened,
            self._shared.held,
            on_enqueued=self.enqueued,
            on_vanished=self.announcer.done,
        )

    # --- the configuration in effect ------------------------------------------------------------

    @property
    def config(self) -> Config:
        """The configuration in effect."""
        return self.work.config

    @property
    def works(self) -> list[Work]:
        """The work in effect, and those that a reload retired and that have something in flight still."""
        return [self.work, *self.retired]

    def build(self, config: Config, opened: Mapping[str, Folder]) -> Work:
        """Make the work of a configuration; nothing of it runs yet. Raises ``UsageError``."""
        register_secrets(config)
        return Work(config, opened, self._shared)

    def switch(self, work: Work) -> Work:
        """Have ``work`` in effect; return the one before, retired: it is to be let ``finish``."""
        before, self.work = self.work, work
        self.retired.append(before)
        self._shared.limits.switch(work)
        for watch in work.config.watches:
            self.announcer.add_watch(watch, work.opened[watch.name].root)
        self.puts.now_by(work.intake, work.opened)
        return before

    def now(self) -> datetime:
        """Return the time of the presigner in effect: for links."""
        return self.work.presigner.now()

    async def grant(self, requests: Sequence[GrantRequest]) -> Sequence[Grant | Exception]:
        """Have the presigner in effect sign: for links."""
        return await self.work.presigner.grant([await self.work.as_opened(each) for each in requests])

    def make_version(
        self, watch: str, path: bytes, fingerprint: Fingerprint, source: Source, *, fault: Fault | None = None
    ) -> NewVersion:
        """Make a version by the configuration in effect (``Intake.make_version``)."""
        return self.work.intake.make_version(watch, path, fingerprint, source, fault=fault)

    # --- what befalls versions ------------------------------------------------------------------

    def _linked(self, link: Link) -> None:
        self._log_link(link)
        self.puts.linked(link)
        for hear in self.on_link:
            hear(link)

    def _log_link(self, link: Link, by_uid: int | None = None) -> None:
        more = {"by_uid": by_uid} if by_uid is not None else {}
        url = {"url": Disclosed(link.url)} if self.config.links.in_log else {}
        log.info(
            "link.created",
            file_id=link.file_id,
            watch=link.watch,
            path=link.path,
            bucket=link.bucket,
            key=link.key,
            expires_at=link.expires_at,
            **more,
            **url,
        )

    def _is_told(self, version: FileVersion) -> bool:
        """Tell whether anyone hears how ``version`` ends: without a log, whoever put it."""
        return self.heard or version.priority == PRIORITIES[Source.PUT]

    def _ended(self, version: FileVersion) -> None:
        self.puts.ended(version)
        if version.upload_id:
            self.work.sweeper.wake()

    async def note_enqueued(self, done: Sequence[Enqueued]) -> None:
        """Hear from the settler what it enqueued."""
        self.enqueued(done)

    async def note_vanished(self, versions: Sequence[FileVersion]) -> None:
        """Hear from a watcher whose files went before they were uploaded."""
        self.announcer.done(versions)

    def enqueued(self, done: Sequence[Enqueued]) -> None:
        """Say what was queued, quarantined from the start, or superseded, and get it worked on."""
        for entry in done:
            if entry.superseded:
                self.announcer.done([entry.superseded])
            if entry.version.state is State.QUARANTINED:
                self.announcer.quarantined(entry.version, fix=fault(entry.version.error_code).fix)
            elif entry.version.state is State.QUEUED:
                self.announcer.event("file.queued", entry.version)
        self.work.dispatcher.wake()

    # --- starting where the last run stopped ----------------------------------------------------

    async def recover(self) -> None:
        """Take the ledger from wherever it stood: restart is ordinary input."""
        unclean = not await self.ledger.was_clean()
        self.work.dispatcher.careful = unclean
        self.recovered = True
        await self._take_links_back()
        for version in await self.ledger.release(unclean=unclean):
            self.announcer.quarantined(version, fix=fault("internal_error").fix)
        if self.heard:
            await self.announcer.replay()
        await self.resume(self.work.buckets)

    async def _take_links_back(self) -> None:
        """Take a line on disk whose commit a crash prevented for what it is: its version is linked."""
        verified = {version.file_id: version for version in await self.ledger.in_state(State.VERIFIED)}
        links: dict[str, Link] = {}
        others: list[str] = []
        for link in self.read_back:
            if link.file_id in verified:
                links[link.file_id] = link
            else:
                others.append(link.file_id)
        if links:
            done = [replace(verified[file_id], expires_at=link.expires_at) for file_id, link in links.items()]
            await self.ledger.linked(done, self.links.mark)
        for link in links.values():
            self._linked(link)
        if others:
            await self._mind_older_ledger(others)

    async def _mind_older_ledger(self, linked: Sequence[str]) -> None:
        """Go on where the ledger knows nothing of links that were issued: nothing of that is silent.

        It was deleted, or is an older copy. What such a copy takes for not linked yet, it would link again under
        the same ``file_id``: those versions end, and the scan makes others of their files.
        """
        rebuilt = await self.ledger.links_mark() is None and await self.ledger.by_id(linked[0]) is None
        counts = [watch.counts for watch in await self.ledger.summary()]
        if any(count.get(state) for count in counts for state in _UNLINKED):
            for file_id in linked:
                version = await self.ledger.by_id(file_id)
                # One with a link's end is known to be linked, and waits for a person to finish its file.
                if version and version.state in _UNLINKED and version.expires_at is None:
                    rebuilt = True
                    await self.ledger.apply(version, Event.SUPERSEDE, done_at=utcnow())  # told by the replay
        if rebuilt:
            log.warning("ledger.rebuilt", links_file=str(self.config.links.file), fix=REBUILT_FIX)

    async def close(self) -> None:
        """End every work."""
        for work in self.works:
            await work.close()

    async def settle_up(self) -> None:
        """Leave the ledger so that the next start has nothing to wonder about: this was no crash."""
        for work in self.works:
            await work.dispatcher.drain(0)
        if self.recovered:
            await self.ledger.release(unclean=False)
        await self.announcer.flush(LOG_SECONDS)

    async def resume(self, watches: Collection[str]) -> None:
        """Carry on with what is verified or linked but not finished, of these watches."""
        for version in await self._left(State.VERIFIED, watches):
            # No line of it is on disk, so its link may get a new date: an old one may be dead already.
            self.work.dispatcher.start(await self.ledger.update(version, signed_at=self.now()))
        for version in await self._left(State.LINKED, watches):
            self.work.dispatcher.start(version)

    async def _left(self, state: State, watches: Collection[str]) -> list[FileVersion]:
        """Return what nobody works on, before the question nor after it: work may end, and begin, meanwhile."""
        at_work = self._at_work()
        found = await self.ledger.in_state(state)
        at_work |= self._at_work()
        return [one for one in found if one.watch in watches and one.file_id not in at_work]

    def _at_work(self) -> set[str]:
        return {file_id for work in self.works for file_id in work.worker.at_work}

    # --- the View -------------------------------------------------------------------------------

    def folders(self) -> Sequence[FolderView]:
        """Return every watch, in the configuration's order."""
        if self.folder_views:
            return self.folder_views()
        return [FolderView(watch.name) for watch in self.config.watches]

    def settling(self) -> Sequence[SettlingView]:
        """Return what is settling now."""
        return self.settling_views()

    def in_flight(self) -> Sequence[InFlightView]:
        """Return what is being uploaded now."""
        now = time.monotonic()
        return [
            InFlightView(run.version, run.sent, run.rate(now), now - run.heard)
            for work in self.works
            for run in work.worker.running.values()
        ]

    def blocked(self) -> Sequence[BlockedView]:
        """Return what is waited for as a whole: watches, the store, the presigner, the ledger, the links file."""
        gates = self.work.gates
        shut: list[tuple[Part, str, Shut | None]] = [
            ("store", "", gates.store.shut),
            ("presigner", "", gates.presigner.shut),
            *(("bucket", name, gate.shut) for name, gate in gates.watches.items()),
        ]
        troubles = [self.linker.trouble, *([self.patience.trouble] if self.patience else [])]
        return [
            *(
                BlockedView(met.part, "", met.problem.code, met.problem.message, met.since)
                for met in troubles
                if met.problem
            ),
            *(BlockedView(part, name, at.fault.code, at.fault.message, at.since) for part, name, at in shut if at),
        ]

    def hint(self, watch: str, path: bytes) -> None:
        """Look at a path now: someone waits for it. What the watch ignores it goes on ignoring."""
        if not self.ignored(watch, path):
            self.offer([Candidate(watch, path, Source.EVENT)])

    def ignored(self, watch: str, path: bytes) -> str:
        """Tell why a watch ignores ``path``, in words; "" where it doesn't."""
        if b"/" in path and not self.work.buckets[watch].watch.recursive:
            return "recursive = false: it lies in a folder below"
        return self.work.ignores[watch].why(path)

    async def link(self, version: FileVersion, expires: int | None, *, by_uid: int) -> Link:
        """Make a fresh link for a version with a receipt."""
        watch = next((w for w in self.config.watches if w.name == version.watch), None)
        seconds = expires or (watch.link_expires if watch else None) or self.config.presign.get_expires
        fresh = replace(version, signed_at=self.now())
        link = await mint(self, fresh, seconds, self.announcer.path(version))
        self._log_link(link, by_uid)
        return link

    async def put(
        self,
        fd: int,
        path: bytes,
        watch: str,
        *,
        key: str | None,
        expires: int | None,
        by_uid: int,
        progress: Callable[[int], None],
    ) -> Link:
        """Upload what ``fd`` reads, through the same pipeline, and return its link."""
        log.info("put.received", watch=watch, path=shown_path(self.work.opened[watch].root, path), by_uid=by_uid)
        return await self.puts.put(fd, path, watch, key=key, expires=expires, progress=progress)

    async def requeue(self, selection: Selection) -> list[FileVersion]:
        """Take quarantined versions back and get them worked on."""
        back = await self.ledger.requeue(selection, utcnow())
        for version in back:
            if version.state is State.LINKED and self.working and version.watch in self.work.buckets:
                self.work.dispatcher.start(version)
        self.work.dispatcher.wake()
        return back


@asynccontextmanager
async def open_parts(
    config: Config, *, work: bool = True, heard: bool = True, patience: Patience | None = None
) -> AsyncIterator[Parts]:
    """Open folders, ledger and links file, and wire the pipeline.

    The caller holds the ledger's lock (``DaemonLock``), and has it taken up by ``recover``. On the way out
    the ledger is closed clean, unless an error ended the run; ``work=False`` takes up nothing that waits in
    it: for questions. Raises ``UsageError`` or ``Unavailable`` for what can't be opened.
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
        parts = Parts((config, opened), ledger, links, read_back, folders, working=work, heard=heard, patience=patience)
        stack.push_async_callback(parts.close)
        interrupted = None
        try:
            yield parts
        except asyncio.CancelledError as error:
            interrupted = error
        finally:
            if patience:
                patience.end()
        if work:
            await parts.settle_up()
            clean = True
        if interrupted:
            raise interrupted
