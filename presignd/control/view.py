"""The running pipeline as the control socket and the status page see it.

``presignd/app/view.py`` implements ``View``, for ``run`` and for commands while no daemon runs; rooms below ``app``
can't import that. Every
snapshot method is synchronous, cheap, and safe to call at any time from the event loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from presignd.config import Config
    from presignd.ledger import Ledger, Selection
    from presignd.model import FileVersion, Link


@dataclass(frozen=True, slots=True)
class FolderView:
    """One watch as it runs. ``writer_check`` is ``lease`` or ``quiet``; ``lost`` while its folder is away.

    ``next_scan`` is UTC, None when none is planned (no daemon).
    """

    watch: str
    writer_check: str = ""
    next_scan: datetime | None = None
    lost: bool = False


@dataclass(frozen=True, slots=True)
class SettlingView:
    """One path that is settling: since when (UTC), and what it waits for, in words."""

    watch: str
    path: bytes
    since: datetime
    why: str


@dataclass(frozen=True, slots=True)
class InFlightView:
    """One upload in progress: bytes sent, bytes a second, seconds since the last byte."""

    version: FileVersion
    sent: int
    rate: float
    idle: float = 0.0


Part = Literal["bucket", "store", "presigner", "ledger", "links"]

_WORDS: dict[Part, str] = {
    "store": "the store",
    "presigner": "the presigner",
    "ledger": "the ledger",
    "links": "the links file",
}


@dataclass(frozen=True, slots=True)
class BlockedView:
    """What blocks more than one file: the bucket of one ``watch``, or, where that is "", a ``part`` that all need.

    ``code`` is one of ``errors.CODES``, ``cause`` the latest error's message, ``since`` UTC.
    """

    part: Part
    watch: str
    code: str
    cause: str
    since: datetime

    @property
    def what(self) -> str:
        """Return what is waited for, in words."""
        return f"the bucket of watch {self.watch}" if self.watch else _WORDS[self.part]


class View(Protocol):
    """The running pipeline, as the control socket and the status page see it."""

    @property
    def config(self) -> Config:
        """The configuration in effect."""
        ...

    @property
    def ledger(self) -> Ledger:
        """The open ledger."""
        ...

    @property
    def started_at(self) -> datetime | None:
        """When the daemon started (UTC); None where there is none, so nothing goes on by itself."""
        ...

    @property
    def phase(self) -> str:
        """``starting``, ``ready`` (every folder is watched), or ``draining``."""
        ...

    def folders(self) -> Sequence[FolderView]:
        """Return every watch, in the configuration's order."""
        ...

    def settling(self) -> Sequence[SettlingView]:
        """Return what is settling now."""
        ...

    def in_flight(self) -> Sequence[InFlightView]:
        """Return what is being uploaded now."""
        ...

    def blocked(self) -> Sequence[BlockedView]:
        """Return what blocks more than one file: the ledger, the links file, the store, the presigner, a bucket."""
        ...

    def hint(self, watch: str, path: bytes) -> None:
        """Look at ``path`` (below the watch's root) now: a client waits for it."""
        ...

    def ignored(self, watch: str, path: bytes) -> str:
        """Return why a watch ignores ``path`` (below its root), in words; "" where it doesn't."""
        ...

    async def link(self, version: FileVersion, expires: int | None, *, by_uid: int) -> Link:
        """Make a fresh link for a version with a receipt and log ``link.created`` with ``by_uid``.

        ``expires`` is in seconds, None for the watch's own. Raises ``Unavailable`` or a ``Fault``.
        """
        ...

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
        """Upload what ``fd`` reads, through the same pipeline, and return its link.

        ``fd`` is a regular file open for reading only; it stays the caller's, who closes it after the
        call. ``path`` is as in ``FileVersion`` (below the watch's root, or absolute for a file from elsewhere)
        and is a name only: nothing is opened by it.
        ``key`` None means the watch's template. ``progress`` takes bytes sent so far, on the event loop.
        Raises ``Refused`` or ``FileFault`` (exit 4) where the file is quarantined, ``Unavailable`` or the
        store's ``Fault`` where there is no daemon that would go on trying. Cancelled when the client goes.
        """
        ...

    async def requeue(self, selection: Selection) -> list[FileVersion]:
        """Put quarantined versions back in the queue."""
        ...
