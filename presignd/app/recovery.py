"""Take the ledger from wherever the last run left it: a restart is ordinary input."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace

from presignd.errors import fault
from presignd.ledger import Ledger
from presignd.links import LinksFile
from presignd.model import FileVersion, Link, State
from presignd.pipeline.announce import LOG_SECONDS, Announcer
from presignd.pipeline.in_effect import InEffect
from presignd.states import Event
from presignd.system.clock import utcnow
from presignd.telemetry.log import get_logger

log = get_logger()

REBUILT_FIX = (
    "none: the files that are there are looked at anew, what the store has already is adopted and gets another link, "
    'and links.jsonl keeps its lines; where a watch says existing = "ignore", touch what was still to be sent'
)
"""For a ledger that knows nothing of links which were issued: it was deleted, or is an older copy."""

_UNLINKED = (State.QUEUED, State.UPLOADING, State.QUARANTINED)


class Recovery:
    """Continues what the last run left, and leaves the ledger so that the next one can.

    ``read_back`` are the links in ``links.jsonl`` past the ledger's mark. ``replay``: say again how versions ended,
    where an earlier run may not have.
    """

    def __init__(
        self,
        in_effect: InEffect,
        ledger: Ledger,
        links: LinksFile,
        read_back: Iterator[Link],
        *,
        announcer: Announcer,
        on_link: Callable[[Link], None],
        replay: bool,
    ) -> None:
        self._in_effect, self._ledger, self._links, self._read_back = in_effect, ledger, links, read_back
        self._announcer, self._on_link, self._replay = announcer, on_link, replay
        self._recovered = False
        self.unclean = False

    async def recover(self) -> None:
        """Release what was claimed, and continue what is verified or linked. ``unclean`` is known from here on."""
        self.unclean = not await self._ledger.was_clean()
        self._recovered = True
        await self._commit_recorded_links()
        for version in await self._ledger.release(unclean=self.unclean):
            self._announcer.quarantined(version, fix=fault("internal_error").fix)
        if self._replay:
            await self._announcer.replay()
        await self.resume(self._in_effect.work.buckets)

    async def release_claims(self) -> None:
        """Cancel what is in flight and release it, so that the next start sees no crash."""
        for work in self._in_effect.works:
            await work.dispatcher.drain(0)
        if self._recovered:
            await self._ledger.release(unclean=False)
        await self._announcer.flush(LOG_SECONDS)

    # --- verified and linked versions -----------------------------------------------------------
    async def resume(self, watches: Collection[str]) -> None:
        """Continue what is verified, or linked but not finished, of these watches."""
        work = self._in_effect.work
        for version in await self._unattended(State.VERIFIED, watches):
            # No line of it is on disk, so its link may get a new date: an old one may be dead already.
            work.dispatcher.start(await self._ledger.update(version, signed_at=self._in_effect.now()))
        for version in await self._unattended(State.LINKED, watches):
            work.dispatcher.start(version)

    async def _unattended(self, state: State, watches: Collection[str]) -> list[FileVersion]:
        """Return versions in ``state`` that no worker had before or after the query: work ends and begins meanwhile."""
        at_work = self._in_effect.at_work()
        found = await self._ledger.in_state(state)
        at_work |= self._in_effect.at_work()
        return [one for one in found if one.watch in watches and one.file_id not in at_work]

    # --- lines of links.jsonl without a commit --------------------------------------------------
    async def _commit_recorded_links(self) -> None:
        """Commit the links whose line is on disk, where a crash prevented that: their versions are linked."""
        verified = {version.file_id: version for version in await self._ledger.in_state(State.VERIFIED)}
        links: dict[str, Link] = {}
        others: list[str] = []
        for link in self._read_back:
            if link.file_id in verified:
                links[link.file_id] = link
            else:
                others.append(link.file_id)
        if links:
            done = [replace(verified[file_id], expires_at=link.expires_at) for file_id, link in links.items()]
            await self._ledger.linked(done, self._links.mark)
        for link in links.values():
            self._on_link(link)
        if others:
            await self._accept_older_ledger(others)

    async def _accept_older_ledger(self, linked: Sequence[str]) -> None:
        """Continue with a ledger that knows nothing of these links, and log that.

        It was deleted, or is an older copy. Versions that such a copy has as not linked yet would be linked again
        under the same ``file_id``: they end, and the scan makes new versions of their files.
        """
        rebuilt = await self._ledger.links_mark() is None and await self._ledger.by_id(linked[0]) is None
        counts = [watch.counts for watch in await self._ledger.summary()]
        if any(count.get(state) for count in counts for state in _UNLINKED):
            for file_id in linked:
                version = await self._ledger.by_id(file_id)
                # One with a link's end is known to be linked, and waits for a person to finish its file.
                if version and version.state in _UNLINKED and version.expires_at is None:
                    rebuilt = True
                    await self._ledger.apply(version, Event.SUPERSEDE, done_at=utcnow())  # announced by the replay
        if rebuilt:
            log.warning("ledger.rebuilt", links_file=str(self._in_effect.config.links.file), fix=REBUILT_FIX)
