"""The ledger port: the durable record of every version and where it stands.

Every method returns after its commit. Many calls share one commit. Each update names the state it
leaves (``states.TRANSITIONS``) and must hit exactly one row, else ``LostUpdate`` is raised: a bug.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any, Protocol

from presignd.model import FileVersion, Fingerprint, LinksMark, Listed, NewVersion, Part, Sent, State
from presignd.states import Event

NOTHING: Mapping[str, Any] = MappingProxyType({})


class LostUpdate(RuntimeError):
    """An update did not find its row in the state it named: a bug."""


@dataclass(frozen=True, slots=True)
class Enqueued:
    """What ``enqueue`` did: the version as recorded, and the one it took the place of, if that ended now."""

    version: FileVersion
    superseded: FileVersion | None


@dataclass(frozen=True, slots=True)
class WatchSummary:
    """One watch's numbers for ``status``: versions by state, and when the oldest queued one was queued."""

    watch: str
    counts: Mapping[State, int]
    oldest_queued_at: datetime | None


@dataclass(frozen=True, slots=True)
class Selection:
    """Which quarantined versions ``retry`` means; every given field must match."""

    path: tuple[str, bytes] | None = None
    watch: str | None = None
    error_code: str | None = None


class Ledger(Protocol):
    """Opened by ``sqlite.open_ledger``; one process at a time."""

    # --- settle ---------------------------------------------------------------------------------
    async def known(self, watch: str, paths: Sequence[bytes]) -> dict[bytes, FileVersion]:
        """Return the current version at each of ``paths`` that has one."""
        ...

    async def differing(self, watch: str, listed: Sequence[Listed]) -> list[Listed]:
        """Return those of ``listed`` that may need settling, in their order: nearly none in a folder that is uploaded.

        Left out is what is surely recorded as it is: the path's current version has this fingerprint, is not noted
        as gone and was readable. Of what is returned, ``known`` tells exactly. Cheapest for the whole of a directory.
        """
        ...

    async def paths(self, watch: str, after: bytes, limit: int) -> list[bytes]:
        """Return current paths of ``watch`` that aren't noted as gone, in byte order, those after ``after``.

        A scan compares them, page by page, with what it found: so what was deleted while nobody looked
        is noted as ``gone`` too. Start with ``b""``; fewer than ``limit`` means the end.
        """
        ...

    async def first_start(self, watch: str, now: datetime) -> tuple[datetime, bool]:
        """Return when this watch was first started, and whether its first scan is still to be finished."""
        ...

    async def first_scan_done(self, watch: str) -> None:
        """Record that the first scan of ``watch`` went through."""
        ...

    async def enqueue(self, versions: Sequence[NewVersion]) -> list[Enqueued]:
        """Record new versions, each the current one of its path from now on.

        A current version that is queued or quarantined ends as superseded. One in flight raises
        ``LostUpdate``: the caller waits for it. The key is reserved for the path: a path's newer version
        with the same ``base_key`` takes over its predecessor's key, unless ``fresh_key``; a key that is
        another path's becomes the next free ``name~2.ext`` with ``next_key``, else the version is
        recorded as quarantined with ``key_taken``. A NewVersion may come as IGNORED or QUARANTINED.
        """
        ...

    async def refingerprint(self, file_id: str, fingerprint: Fingerprint) -> None:
        """Record that the same content now has this fingerprint (chmod, another link, a restore).

        It counts no longer as gone: call it as well when a version with ``gone_at`` is there again. Raises
        ``LostUpdate`` where the version has left its path meanwhile: vanished, or another's predecessor.
        """
        ...

    async def gone(self, watch: str, paths: Sequence[bytes], now: datetime) -> list[FileVersion]:
        """Record that no file is at ``paths`` (or below them) any more, as was seen at ``now``.

        Versions queued after that are left as they are: their files were made since.
        Queued and quarantined versions end as vanished and are returned; for all others the time is
        noted, for ``prune``.
        """
        ...

    # --- worker ---------------------------------------------------------------------------------
    async def claim(
        self,
        watch: str,
        limit: int,
        now: datetime,
        *,
        below_size: int | None = None,
        most_priority: int | None = None,
    ) -> list[FileVersion]:
        """Move up to ``limit`` due queued versions of ``watch`` to uploading, by priority, then age.

        ``attempt`` grows by one. ``below_size`` (bytes) leaves larger ones where they are, ``most_priority`` those
        of a higher number.
        """
        ...

    async def next_due(self, watches: Collection[str], after: datetime) -> datetime | None:
        """Return the earliest ``not_before`` past ``after`` among queued versions of ``watches``; None without any."""
        ...

    async def assign_key(
        self, version: FileVersion, base_key: str, *, fresh: bool, next_key: bool, beyond: str = ""
    ) -> FileVersion | None:
        """Reserve a key for a claimed version and commit it before any grant.

        ``beyond`` names a key that turned out to be another's object: the next free ``name~N.ext`` after
        it is taken. None when the key is another path's and ``next_key`` is false.
        """
        ...

    async def previous_receipt(self, version: FileVersion) -> FileVersion | None:
        """Return the newest version before this one, of the same path, bucket and key, that was verified."""
        ...

    async def sent(self, version: FileVersion) -> frozenset[Sent]:
        """Return all that was sent, or was about to be, under this version's key from its path, verified or not."""
        ...

    async def apply(self, version: FileVersion, event: Event, **changes: Any) -> FileVersion:
        """Move ``version`` by ``event`` from the state it has, with column ``changes``; return it as it is now."""
        ...

    async def update(self, version: FileVersion, **changes: Any) -> FileVersion:
        """Change columns of ``version`` without moving it (its state must still be the one named)."""
        ...

    # --- multipart ------------------------------------------------------------------------------
    async def begin_upload(self, version: FileVersion, upload_id: str, part_size: int) -> FileVersion:
        """Record that a multipart upload was created for a claimed version; parts of an earlier one go."""
        ...

    async def part_done(self, version: FileVersion, part: Part) -> None:
        """Record one part that the store has; unclean exits before it count no more."""
        ...

    async def parts(self, version: FileVersion) -> list[Part]:
        """Return the recorded parts of the version's upload, by number."""
        ...

    async def end_upload(self, version: FileVersion) -> FileVersion:
        """Record that the version's upload is completed, aborted or lost: no upload id, no parts."""
        ...

    async def uploads_left(self) -> list[FileVersion]:
        """Return versions that are past uploading (verified, ended, quarantined) and still name an upload."""
        ...

    async def linked(
        self, versions: Sequence[FileVersion], mark: LinksMark, ended: Mapping[str, datetime] = NOTHING
    ) -> list[FileVersion]:
        """Move verified versions to linked, with how far the links file is known, in one commit.

        Each version's ``expires_at`` (the link's end) is recorded as given. Those in ``ended``, by file_id,
        are finished in the same commit, done at that time: nothing is to be done with their files.
        """
        ...

    # --- start, end, upkeep ---------------------------------------------------------------------
    async def release(self, *, unclean: bool) -> list[FileVersion]:
        """Put uploading versions back in the queue (start, drain).

        After an unclean exit, uploading versions count it; those at ``states.UNCLEAN_LIMIT`` are
        quarantined with ``internal_error`` and returned.
        """
        ...

    async def was_clean(self) -> bool:
        """Tell whether the last run ended by a clean close; from now on it counts as unclean until ``close``."""
        ...

    async def in_state(self, state: State) -> list[FileVersion]:
        """Return every version in ``state`` (used for the few in verified and linked at start)."""
        ...

    async def unannounced(self) -> list[FileVersion]:
        """Return ended versions whose ``file.done`` was not recorded as said."""
        ...

    async def announced(self, file_ids: Sequence[str]) -> None:
        """Record that ``file.done`` was said for these."""
        ...

    async def links_mark(self) -> LinksMark | None:
        """Return how far the links file is known."""
        ...

    async def prune(self, before: datetime) -> int:
        """Forget files gone since before ``before``, and superseded versions ended before it."""
        ...

    # --- questions ------------------------------------------------------------------------------
    async def summary(self, states: Collection[State] = tuple(State)) -> list[WatchSummary]:
        """Return the numbers of each watch, in ``states``: only versions in these are counted."""
        ...

    async def quarantined(self) -> list[FileVersion]:
        """Return every quarantined version, newest first."""
        ...

    async def by_key(self, key: str, bucket: str | None = None) -> FileVersion | None:
        """Return the newest verified version stored under ``key``."""
        ...

    async def by_path(self, watch: str, path: bytes) -> FileVersion | None:
        """Return the current version at a path."""
        ...

    async def by_id(self, file_id: str) -> FileVersion | None:
        """Return one version."""
        ...

    async def requeue(self, selection: Selection, now: datetime) -> list[FileVersion]:
        """Take quarantined versions back (``states.retry_event``), faults and unclean counts at zero.

        One that goes to the queue counts as queued ``now``; its ``key`` is None where it was ``key_taken``.
        """
        ...

    async def died(self) -> None:
        """Wait for ever, unless nothing can be recorded any more: then raise why (``LedgerLost``, or a bug)."""
        ...

    async def close(self, *, clean: bool) -> None:
        """Write what is pending and close; ``clean`` is remembered for the next start."""
        ...
