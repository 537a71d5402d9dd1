"""Continue what the last run left in the ledger, however that run ended."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

from presignd.ledger import Ledger
from presignd.ledger.changes import Change
from presignd.links import LinksFile
from presignd.model import FileVersion, Link, State
from presignd.pipeline.announce import LOG_SECONDS, Announcer
from presignd.pipeline.finish.link import linked_by
from presignd.pipeline.in_effect import InEffect
from presignd.states import Event
from presignd.system.clock import utcnow
from presignd.telemetry.log import get_logger

log = get_logger()

REBUILT_FIX = (
    "none: presignd checks all files again. It adopts objects that are in the store and makes new links for them. "
    'links.jsonl keeps its lines. With existing = "ignore", touch the files that were not yet sent.'
)
"""The fix for a ledger that lacks links which were issued: it was deleted, or it is an older copy."""

_UNLINKED = (State.QUEUED, State.UPLOADING, State.QUARANTINED)


class Recovery:
    """Continues what the last run left, and at the end puts claimed versions back in the queue for the next run.

    ``read_back`` are the links in ``links.jsonl`` after the ledger's mark. ``replay``: log how versions ended
    where an earlier run may not have logged it.
    """

    def __init__(
        self,
        in_effect: InEffect,
        ledger: Ledger,
        links: LinksFile,
        read_back: Iterator[Link],
        *,
        announcer: Announcer,
        on_links: Callable[[Sequence[Link]], None],
        replay: bool,
    ) -> None:
        self._in_effect, self._ledger, self._links, self._read_back = in_effect, ledger, links, read_back
        self._announcer, self._on_links, self._replay = announcer, on_links, replay
        self._recovered = False

    async def recover(self) -> None:
        """Release what was claimed, and continue what is verified or linked."""
        clean = await self._ledger.begin_run()
        self._recovered = True
        await self._commit_recorded_links()
        for version in await self._ledger.release(unclean=not clean):
            self._announcer.quarantined(version)
        self._in_effect.suspects.add(await self._ledger.suspects())
        if self._replay:
            await self._announcer.replay()
        await self.resume(self._in_effect.work.buckets)

    async def release_claims(self) -> None:
        """Cancel what is in flight and release it, so that the next start sees no crash."""
        for work in self._in_effect.works:
            await work.drain(0)
        if self._recovered:
            await self._ledger.release(unclean=False)
        await self._announcer.flush(LOG_SECONDS)

    # --- verified and linked versions -----------------------------------------------------------
    async def resume(self, watches: Collection[str]) -> None:
        """Continue the versions of these watches that are verified, or linked but not finished."""
        work = self._in_effect.work
        verified = await self._not_at_work(State.VERIFIED, watches)
        if verified:
            # Their links are not in links.jsonl, so they may get a new date; with the old one they could have expired.
            now = self._in_effect.now()
            changes = [Change(version, (), {"signed_at": now}) for version in verified]
            work.resume(await self._ledger.apply_all(changes))
        work.resume(await self._not_at_work(State.LINKED, watches))

    async def _not_at_work(self, state: State, watches: Collection[str]) -> list[FileVersion]:
        """Return the versions of ``watches`` in ``state`` that no stage has.

        The stages are checked before and after the query, because versions move during it.
        """
        at_work = self._in_effect.at_work()
        found = await self._ledger.in_state(state)
        at_work |= self._in_effect.at_work()
        return [one for one in found if one.watch in watches and one.file_id not in at_work]

    # --- links in links.jsonl that are not committed ------------------------------------------------
    async def _commit_recorded_links(self) -> None:
        """Commit the links that are in ``links.jsonl`` but, because of a crash, not in the ledger."""
        verified = {version.file_id: version for version in await self._ledger.in_state(State.VERIFIED)}
        links: dict[str, Link] = {}
        others: list[str] = []
        for link in self._read_back:
            if link.file_id in verified:
                links[link.file_id] = link
            else:
                others.append(link.file_id)
        if links:
            done = [linked_by(verified[file_id], link) for file_id, link in links.items()]
            await self._ledger.record_linked(done, self._links.mark)
            self._on_links([*links.values()])
        if others:
            await self._accept_older_ledger(others)

    async def _accept_older_ledger(self, linked: Sequence[str]) -> None:
        """Continue with a ledger that lacks these links, and log that.

        It was deleted, or it is an older copy. A version that such a copy has as not yet linked would be linked
        again under the same ``file_id``. So it is superseded, and the scan makes a new version of its file.
        """
        rebuilt = await self._ledger.links_mark() is None and await self._ledger.by_id(linked[0]) is None
        counts = [watch.counts for watch in await self._ledger.summary()]
        if any(count.get(state) for count in counts for state in _UNLINKED):
            for file_id in linked:
                version = await self._ledger.by_id(file_id)
                if version and version.state in _UNLINKED and not version.linked:
                    rebuilt = True
                    await self._ledger.apply(version, Event.SUPERSEDE, done_at=utcnow())  # the replay logs it
        if rebuilt:
            log.warning("ledger.rebuilt", links_file=str(self._in_effect.config.links.file), fix=REBUILT_FIX)
