"""Make links on request: a version's own, or a new one on given terms; revoke and list stable ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from presignd.ledger import Ledger
from presignd.links import last_links
from presignd.model import FileVersion, Link, State
from presignd.pipeline.announce import Announcer
from presignd.pipeline.finish.link import end_after, link_of, make_link, stable_request
from presignd.pipeline.in_effect import InEffect
from presignd.presign.stable import StableLink, StableRequest, id_in, new_link_id, ref_of
from presignd.telemetry.log import get_logger

if TYPE_CHECKING:
    from presignd.presign.broker_links import IssuedLink

log = get_logger()

DAY = 86400
LATEST = 20
"""Links that the status page shows."""


@dataclass(frozen=True, slots=True)
class Terms:
    """The terms of a new stable link: days until it ends, downloads, PIN (secret) and file name.

    With None or "", the watch decides (the end, the name) or there is no limit.
    """

    days: int | None = None
    downloads: int | None = None
    pin: str = field(default="", repr=False)
    name: str = ""


class Revocations:
    """Which of the latest links in ``links.jsonl`` are known to be revoked, by their refs."""

    def __init__(self) -> None:
        self._refs: set[str] = set()

    async def note(self, named: Mapping[str, str], file: Path) -> None:
        """Note what a broker revoked: ``{"id"}``, ``{"ref"}``, or all links to ``{"bucket", "key"}`` in ``file``."""
        if "key" not in named:
            self._refs.add(named.get("ref") or ref_of(named["id"]))
            return
        links = await asyncio.to_thread(last_links, file, LATEST)
        self._refs |= {_ref(link) for link in links if named.items() <= link.items()}

    def unknown(self, links: Iterable[Mapping[str, Any]]) -> set[str]:
        """Return the refs of those stable links that are not known to be revoked."""
        return {ref for link in links if (ref := _ref(link))} - self._refs

    def learn(self, refs: Iterable[str]) -> None:
        """Note the links that a broker reports as revoked."""
        self._refs |= {*refs}

    def has(self, link: Mapping[str, Any]) -> bool:
        """Return whether a link, as ``links.jsonl`` has it, was revoked. A presigned one can't be."""
        return bool(ref := _ref(link)) and ref in self._refs


def _ref(link: Mapping[str, Any]) -> str:
    """Return the ref of a stable link, "" for a presigned one."""
    link_id = id_in(str(link.get("url", "")))
    return ref_of(link_id) if link_id else ""


class LinkRequests:
    """Makes, revokes and lists links for people.

    Each method logs ``by_uid``, the user who requested it. All raise the ``Fault`` of a presigner that is away or
    refuses, and ``no_stable_links`` if stable links are requested and not available.
    """

    def __init__(self, in_effect: InEffect, ledger: Ledger, announcer: Announcer) -> None:
        self._in_effect, self._ledger, self._announcer = in_effect, ledger, announcer
        self.revocations = Revocations()

    async def fresh(self, version: FileVersion, expires: int | None, *, by_uid: int) -> Link:
        """Return a link for a version with a receipt: with ``expires`` (seconds) a presigned one.

        Without, it is the version's stable link as long as that opens, then a new one. It is a presigned one if the
        watch's links are presigned, and for a file that is linked only with its folder.
        """
        own = expires is None and not self._in_effect.work.is_member(version)
        link = await self._own(version) if own else None
        if link is None:
            seconds = expires or self._in_effect.work.presigned_lifetime(version)
            dated = version._replace(signed_at=self._in_effect.now())
            link = await make_link(self._in_effect, dated, seconds, self._announcer.path(version))
        self._log(link, by_uid)
        return link

    async def on_terms(self, version: FileVersion, terms: Terms, *, by_uid: int) -> Link:
        """Return a new stable link for a version with a receipt; the version's own stays as it is."""
        dated = version._replace(signed_at=self._in_effect.now(), link_id=new_link_id())
        ends = end_after(dated, self._lifetime(version) if terms.days is None else terms.days * DAY)
        request = replace(stable_request(dated, ends), max_downloads=terms.downloads, pin=terms.pin)
        if terms.name:
            request = replace(request, filename=terms.name)
        link = link_of(dated, await self._make(request), self._announcer.path(version))
        self._log(link, by_uid)
        return link

    async def revoke(self, named: Mapping[str, str], *, by_uid: int | None = None) -> None:
        """Revoke stable links by ``{"id"}`` or ``{"ref"}``, or by ``{"bucket", "key"}`` all to that object.

        ``by_uid`` is None for a user of the status page.
        """
        await self._in_effect.stable_links().revoke(named)
        by = {} if by_uid is None else {"by_uid": by_uid}
        log.info("link.revoked", **by, **{name: value for name, value in named.items() if name != "id"})
        await self.revocations.note(named, self._in_effect.config.links.file)

    async def look(self, links: Iterable[Mapping[str, Any]]) -> None:
        """Ask the broker which of these links of ``links.jsonl`` were revoked: elsewhere, or before the start."""
        if refs := self.revocations.unknown(links):
            self.revocations.learn(await self._revoked(refs))

    async def _revoked(self, refs: Collection[str]) -> Collection[str]:
        return await self._in_effect.stable_links().revoked(refs)

    async def issued(self) -> AsyncGenerator[list[IssuedLink], None]:
        """Yield the stable links of the broker's token, oldest first, a page at a time."""
        async for page in self._in_effect.stable_links().issued():
            yield page

    async def _own(self, version: FileVersion) -> Link | None:
        """Return the version's stable link, a new one once it no longer opens; None if it gets none."""
        work = self._in_effect.work
        if version.link_id and await work.has_stable_links():
            ends = version.expires_at if version.linked else end_after(version, self._lifetime(version))
            made = await self._make(stable_request(version, ends))
            if made.is_alive:
                return link_of(version, made, self._announcer.path(version))
        return await self._renewed(version) if await work.gives_stable_links(version.watch) else None

    async def _renewed(self, version: FileVersion) -> Link:
        """Return a new stable link, which is the version's own from now on: its id is committed before the request."""
        dated = version._replace(signed_at=self._in_effect.now())
        ends = end_after(dated, self._lifetime(version))
        version = await self._record(dated, link_id=new_link_id(), signed_at=dated.signed_at, expires_at=ends)
        made = await self._make(stable_request(version, ends))
        if made.expires_at != ends:
            version = await self._record(version, expires_at=made.expires_at)
        return link_of(version, made, self._announcer.path(version))

    async def _record(self, version: FileVersion, **fields: Any) -> FileVersion:
        """Record a link of a version whose end is committed; the stages have the others in memory."""
        if version.state is not State.FINISHED:
            return version._replace(**fields)
        return await self._ledger.update(version, **fields)

    async def _make(self, request: StableRequest) -> StableLink:
        (made,) = await self._in_effect.make_links([request])
        if isinstance(made, Exception):
            raise made
        return made

    def _lifetime(self, version: FileVersion) -> int | None:
        return self._in_effect.work.stable_lifetime(version)

    def _log(self, link: Link, by_uid: int) -> None:
        self._announcer.linked([link], disclose=self._in_effect.config.links.in_log, by_uid=by_uid)
