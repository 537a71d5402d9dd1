"""verified → linked: mint the GET links, put their lines on disk, then commit; many at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

from presignd.errors import Fault
from presignd.ledger import Ledger
from presignd.links import LinksFile
from presignd.log import get_logger
from presignd.model import FileVersion, Link
from presignd.pipeline.announce import utcnow
from presignd.presign import Grant, GrantRequest, Operation, Presigner

RETRY_SECONDS = 5.0


@dataclass(slots=True)
class _Waiting:
    version: FileVersion
    expires: int
    future: asyncio.Future[tuple[FileVersion, Link]]


async def mint(presigner: Presigner, version: FileVersion, expires: int, path: str) -> Link:
    """Make the link of one version with a receipt; ``expires`` in seconds. Raises ``Fault``."""
    (grant,) = await presigner.grant([link_request(version, expires)])
    if isinstance(grant, Exception):
        raise grant
    return link_of(version, grant, path)


def link_request(version: FileVersion, expires: int) -> GrantRequest:
    """Ask for a GET of the version, signed at its committed date, so that the same URL comes again."""
    assert version.key is not None
    return GrantRequest(Operation.GET, version.bucket, version.key, expires, date=version.signed_at, public=True)


def link_of(version: FileVersion, grant: Grant, path: str) -> Link:
    """Put a receipt and its grant together."""
    assert version.key is not None
    return Link(
        time=version.signed_at or utcnow(),
        file_id=version.file_id,
        watch=version.watch,
        path=path,
        bucket=version.bucket,
        key=version.key,
        size=version.size,
        content_type=version.content_type,
        etag=version.etag,
        checksum=version.checksum,
        expires_at=grant.expires_at,
        url=grant.url,
        version_id=version.version_id,
    )


class Linker:
    """Takes verified versions and returns them linked, their lines on disk before the commit."""

    def __init__(
        self, ledger: Ledger, links: LinksFile, presigner: Presigner, path_of: Callable[[FileVersion], str]
    ) -> None:
        self._ledger, self._links, self._presigner, self._path_of = ledger, links, presigner, path_of
        self._waiting: list[_Waiting] = []
        self._more = asyncio.Event()
        self._log = get_logger()
        self._told = ""

    async def link(self, version: FileVersion, expires: int) -> tuple[FileVersion, Link]:
        """Link one verified version; waits as long as the disk or the presigner is away."""
        future: asyncio.Future[tuple[FileVersion, Link]] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(version, expires, future))
        self._more.set()
        return await future

    async def again(self, version: FileVersion, expires: int) -> Link:
        """Make the link of a linked version once more: the same URL, by its committed signing date."""
        return await mint(self._presigner, version, expires, self._path_of(version))

    async def run(self) -> None:
        """Link whatever waits, as one batch, for ever."""
        while True:
            await self._more.wait()
            self._more.clear()
            batch, self._waiting = self._waiting, []
            if batch and not await self._try(batch):
                self._waiting = batch + self._waiting
                await asyncio.sleep(RETRY_SECONDS)
                self._more.set()

    async def _try(self, batch: list[_Waiting]) -> bool:
        try:
            await self._link(batch)
        except Fault as problem:
            if problem.code != self._told:
                self._log.error("links.blocked", error_code=problem.code, error=problem.message, fix=problem.fix)
            self._told = problem.code
            return False
        if self._told:
            self._told = ""
            self._log.info("links.unblocked")
        return True

    async def _link(self, batch: list[_Waiting]) -> None:
        grants = await self._presigner.grant([link_request(w.version, w.expires) for w in batch])
        good: list[tuple[_Waiting, Link]] = []
        for waiting, grant in zip(batch, grants, strict=True):
            if isinstance(grant, Exception):
                _refuse(waiting, grant)
            else:
                good.append((waiting, link_of(waiting.version, grant, self._path_of(waiting.version))))
        if not good:
            return
        # Crash window: a line on disk whose commit is missing is read back at the next start.
        mark = await asyncio.to_thread(self._links.append, [link for _, link in good])
        linked = await self._ledger.linked([_dated(waiting.version, link) for waiting, link in good], mark)
        for (waiting, link), version in zip(good, linked, strict=True):
            if not waiting.future.done():
                waiting.future.set_result((version, link))


def _refuse(waiting: _Waiting, problem: Exception) -> None:
    if not waiting.future.done():
        waiting.future.set_exception(problem)


def _dated(version: FileVersion, link: Link) -> FileVersion:
    """Carry the link's end to the ledger with the version."""
    return replace(version, expires_at=link.expires_at)
