"""The ledger on SQLite: changes go through one writer thread, queries through a reader thread.

A change returns after its commit; many calls share one. Each update names the state that it leaves
(``states.TRANSITIONS``) and must change exactly one row, else ``LostUpdate`` is raised. A query sees every change whose
call has returned: it starts after that commit.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from presignd.errors import LedgerLost
from presignd.ledger import changes, queries
from presignd.ledger.arrivals import ArrivalRecords
from presignd.ledger.changes import NOTHING, Change, Claim, Intents
from presignd.ledger.lock import prepare
from presignd.ledger.outbox import LedgerOutbox
from presignd.ledger.rows import Claimed, Enqueued, Selection, Suspect, WatchSummary
from presignd.ledger.schema import LEDGER
from presignd.ledger.units import UnitRecords
from presignd.ledger.writer import Database, Patience, Reader, Writer
from presignd.model import FileVersion, Fingerprint, LinksMark, Listed, NewVersion, Part, Sent, State
from presignd.states import Event
from presignd.system.durable import sync_folder
from presignd.system.sqlite import BUSY_SECONDS, DatabaseFile, closed_on_error, finish_log, presence_check
from presignd.system.threads import opened

FILE = "ledger.sqlite3"


async def open_ledger(folder: Path, patience: Patience | None = None, *, busy: float = BUSY_SECONDS) -> Ledger:
    """Open the ledger in ``folder`` (made 0700 where missing; the file is 0600).

    With ``patience`` calls wait instead of failing while the disk is full or another program has the lock. ``busy`` is
    how many seconds a change waits for another program's lock.

    The caller holds ``lock.DaemonLock`` on that folder. Raises ``UsageError`` for a folder or file that can't hold a
    ledger (network filesystem, newer version, another program's, damaged), ``Unavailable`` while another program holds
    it, the fault ``disk_full``.
    """
    file = DatabaseFile(folder / FILE, LEDGER)
    writing, reading = await opened(partial(_open, file, busy), _close)
    return Ledger(file, writing, reading, patience)


def _open(file: DatabaseFile, busy: float) -> tuple[sqlite3.Connection, sqlite3.Connection]:
    folder = file.path.parent
    prepare(folder)
    writing = file.open(busy=busy)
    with closed_on_error(writing):
        sync_folder(folder)
        reading = file.connect(busy=busy)
        with closed_on_error(reading):
            reading.execute("PRAGMA query_only = ON")
    return writing, reading


def _presence_check(path: Path, connection: sqlite3.Connection) -> Callable[[], None]:
    """Return a check that raises ``LedgerLost`` once the ledger's files are not those that were opened."""
    changed = presence_check(path)

    def check() -> None:
        if how := changed():
            finish_log(connection)
            raise LedgerLost(
                f"the ledger's file {how}, and what is recorded from now on would be lost",
                fix="start presignd again: it goes on with the ledger that is there, or makes a new one; what is"
                " uploaded already is found in the store, and links.jsonl keeps its lines",
            )

    return check


def _close(connections: Sequence[sqlite3.Connection]) -> None:
    for connection in connections:
        connection.close()


class Ledger:
    """The record of every version; one process at a time opens it, by ``open_ledger``.

    A change that can't be written raises ``disk_full`` and changes nothing. Later calls are tried normally.
    ``UsageError`` means that the file is damaged, ``Unavailable`` that it can't be reached. With ``patience``, calls
    wait instead of raising ``disk_full`` or ``Unavailable``.
    """

    def __init__(
        self,
        file: DatabaseFile,
        writing: sqlite3.Connection,
        reading: sqlite3.Connection,
        patience: Patience | None,
    ) -> None:
        self._database = Database(
            Writer(writing, file.explain, _presence_check(file.path, writing)), Reader(reading, file.explain), patience
        )
        self._do, self._do_all, self._ask = self._database.do, self._database.do_all, self._database.ask
        self._running = False
        self.units = UnitRecords(self._database)
        self.arrivals = ArrivalRecords(self._database)

    # --- settle -------------------------------------------------------------------------------------

    async def known(self, watch: str, paths: Sequence[bytes]) -> dict[bytes, FileVersion]:
        """Return the current version at each of ``paths`` that has one."""
        return await self._ask(queries.known, watch, paths)

    async def differing(self, watch: str, listed: Sequence[Listed]) -> list[Listed]:
        """Return those of ``listed`` that aren't recorded as they are (``states.is_recorded``), in their order.

        Cheapest for the whole of a directory.
        """
        return await self._ask(queries.differing, watch, listed)

    async def paths(self, watch: str, after: bytes, limit: int) -> list[bytes]:
        """Return up to ``limit`` current paths of ``watch`` after ``after``, in byte order, but none recorded as gone.

        Upkeep (``app/upkeep.py``) checks page by page which of them are missing. Start with ``b""``; fewer than
        ``limit`` means the end.
        """
        return await self._ask(queries.paths, watch, after, limit)

    async def first_start(self, watch: str, now: datetime) -> tuple[datetime, bool]:
        """Return when this watch was first started, and whether its first scan is still to be finished."""
        return await self._do(changes.first_start, watch, now)

    async def first_scan_done(self, watch: str) -> None:
        """Record that the first scan of ``watch`` is finished."""
        await self._do(changes.first_scan_done, watch)

    async def enqueue(self, versions: Sequence[NewVersion], intents: Intents = NOTHING) -> list[Enqueued]:
        """Record new versions, each the current one of its path from now on.

        A current version that is queued or quarantined ends as superseded. One in flight raises
        ``LostUpdate``, with nothing recorded: the caller waits for it. The key is reserved for the path: a path's
        newer version with the same ``base_key`` gets its predecessor's key, unless ``fresh_key``; where the
        key is another path's, the version gets the next free ``name~2.ext`` with ``next_key``, else it is recorded
        as quarantined with ``key_taken``. A new version may be IGNORED or QUARANTINED from the start. One that is
        queued and has one of ``intents``, by file_id, is claimed too, as ``claim`` would.
        """
        try:
            return await self._do_all(changes.enqueue_new, versions, intents, name="enqueue")
        except sqlite3.IntegrityError:  # not all paths and keys are new
            return await self._do_all(changes.enqueue, versions, intents)

    async def refingerprint(self, found: Sequence[tuple[str, Fingerprint]]) -> None:
        """Record that the same content now has another fingerprint (chmod, another link, a restore), by ``file_id``.

        The versions no longer count as gone: this is also for one with ``gone_at`` whose file is there again. Raises
        ``LostUpdate``, with nothing recorded, if a version has left its path since: it vanished, or a newer one took
        its place.
        """
        await self._do_all(changes.refingerprint, found)

    async def record_gone(self, watch: str, paths: Sequence[bytes], now: datetime) -> list[FileVersion]:
        """Record that at ``now`` no file was at ``paths`` or below them any more.

        Versions queued after that stay as they are: their files were made since. Queued and quarantined versions end as
        vanished and are returned; for all others the time is recorded, for ``prune``.
        """
        ended: list[FileVersion] = []
        more = True
        while more:
            some, more = await self._do(changes.record_gone, watch, paths, now)
            ended += some
        return ended

    # --- worker -------------------------------------------------------------------------------------

    async def due(
        self,
        watch: str,
        limit: int,
        now: datetime,
        *,
        below_size: int | None = None,
        max_priority: int | None = None,
    ) -> list[FileVersion]:
        """Return up to ``limit`` queued versions of ``watch`` that may be sent now, by priority, then age.

        ``below_size`` (bytes) excludes larger ones, ``max_priority`` those of a higher number (less urgent).
        """
        return await self._ask(
            partial(queries.due, below_size=below_size, max_priority=max_priority), watch, limit, now
        )

    async def claim(self, wanted: Sequence[Claim]) -> list[Claimed | None]:
        """Move queued versions to uploading; return None for one that ended or was claimed since it was read.

        ``attempt`` grows by one. The same commit records each object's intent, before any request, unless the version
        has one already (see ``upload.transfer.Transfer``).
        """
        return await self._do_all(changes.claim, wanted)

    async def next_due(self, watches: Collection[str], after: datetime) -> datetime | None:
        """Return the earliest ``not_before`` past ``after`` among queued versions of ``watches``; None without any."""
        return await self._ask(queries.next_due, watches, after)

    async def suspects(self) -> list[str]:
        """Return the file_ids of queued versions that were in flight at an unclean exit and made no progress since.

        Those that were least often alone at one come first, by priority, then age.
        """
        return await self._ask(queries.suspects)

    async def suspects_left(
        self, file_ids: Collection[str], now: datetime, *, max_priority: int | None = None
    ) -> tuple[list[Suspect], int]:
        """Return those of ``file_ids`` that are still suspects, queued or uploading, and how many versions upload now.

        With ``max_priority``, those of a higher number are not due.
        """
        return await self._ask(queries.suspects_left, file_ids, now, max_priority)

    async def assign_key(
        self, version: FileVersion, base_key: str, *, fresh: bool, next_key: bool, after_key: str = ""
    ) -> FileVersion | None:
        """Reserve a key for a claimed version and commit it before any grant.

        ``fresh`` excludes keys that the path had before. ``after_key`` is a key that turned out to hold another's
        object: the next free ``name~N.ext`` after it is reserved. Returns None where the key is another path's and
        ``next_key`` is false.
        """
        return await self._do(
            changes.assign_key, version, base_key, fresh=fresh, next_key=next_key, after_key=after_key
        )

    async def previous_receipt(self, version: FileVersion) -> FileVersion | None:
        """Return the newest version before this one, of the same path, bucket and key, that was verified."""
        return await self._ask(queries.previous_receipt, version)

    async def sent(self, version: FileVersion, *, own: bool = True) -> frozenset[Sent]:
        """Return all that was sent, or was about to be, under this version's key from its path, verified or not.

        Without ``own``, what was committed for this very version is left out.
        """
        return await self._ask(queries.sent, version, own)

    async def apply(self, version: FileVersion, event: Event, **fields: Any) -> FileVersion:
        """Move ``version`` by ``event`` from its state and change ``fields``; return it as recorded."""
        (moved,) = await self.apply_all([Change(version, (event,), fields)])
        return moved

    async def update(self, version: FileVersion, **fields: Any) -> FileVersion:
        """Change fields of ``version`` without moving it (its state must still be the one named)."""
        (changed,) = await self.apply_all([Change(version, (), fields)])
        return changed

    async def apply_all(self, wanted: Sequence[Change]) -> list[FileVersion]:
        """Move versions and change their fields in one commit, all of them or none; return them as recorded."""
        name = f"apply.{wanted[0].events[-1]}" if wanted[0].events else "update"
        return await self._do_all(changes.apply, wanted, name=name)

    # --- multipart ----------------------------------------------------------------------------------

    async def begin_upload(self, version: FileVersion, upload_id: str, part_size: int, etag: str = "") -> FileVersion:
        """Record that a multipart upload was created for a claimed version; parts of an earlier one are forgotten.

        ``etag`` has the algorithm of its parts (see ``FileVersion``).
        """
        begun = Change(version, (), {"upload_id": upload_id, "part_size": part_size, "etag": etag})
        (changed,) = await self._do(changes.apply, [begun], name="begin_upload")
        return changed

    async def record_part(self, version: FileVersion, part: Part) -> None:
        """Record one part that the store has; the version is no suspect any more."""
        await self._do(changes.record_part, version, part)

    async def parts(self, version: FileVersion) -> list[Part]:
        """Return the recorded parts of the version's upload, by number."""
        return await self._ask(queries.parts, version)

    async def end_upload(self, version: FileVersion) -> FileVersion:
        """Record that the version's upload is completed, aborted or lost: no upload id, no parts.

        ``part_size`` stays, as the checksum of parts needs it.
        """
        (changed,) = await self._do(changes.apply, [Change(version, (), {"upload_id": ""})], name="end_upload")
        return changed

    async def uploads_left(self) -> list[FileVersion]:
        """Return versions that are past uploading (verified, ended, quarantined) and still name an upload."""
        return await self._ask(queries.uploads_left)

    async def record_linked(self, linked: Sequence[Change], mark: LinksMark) -> list[FileVersion]:
        """Apply the changes of versions whose links were made, and record the mark of ``links.jsonl``, in one commit.

        Where a file stays as it is, its change also finishes it.
        """
        return await self._do_all(changes.record_linked, linked, mark)

    # --- start, end, upkeep -------------------------------------------------------------------------

    async def release(self, *, unclean: bool) -> list[FileVersion]:
        """Put uploading versions back in the queue (start, drain).

        After an unclean exit, uploading versions are suspects (``suspects``). The exit counts against one that was
        alone; at ``states.UNCLEAN_LIMIT`` of these it is quarantined with ``internal_error`` and returned. A suspect is
        cleared when it is verified, when a part of it is recorded, and by ``requeue``.
        """
        return await self._do(changes.release, unclean=unclean)

    async def begin_run(self) -> bool:
        """Record that a run begins, unclean until its clean ``close``; return whether the last one ended cleanly."""
        clean = await self._do(changes.begin_run)
        self._running = True
        return clean

    async def in_state(self, state: State) -> list[FileVersion]:
        """Return every version in ``state``, oldest first."""
        return await self._ask(queries.in_state, state)

    async def unannounced(self) -> list[FileVersion]:
        """Return ended versions whose ``file.done`` was not recorded as logged."""
        return await self._ask(queries.unannounced)

    async def record_announced(self, file_ids: Sequence[str]) -> None:
        """Record that ``file.done`` was logged for these."""
        await self._do_all(changes.record_announced, file_ids)

    async def links_mark(self) -> LinksMark | None:
        """Return how much of ``links.jsonl`` is recorded, None where nothing is."""
        return await self._ask(queries.links_mark)

    async def prune(self, before: datetime) -> int:
        """Delete the rows of versions whose content left its path before ``before``; return how many.

        Kept are those whose ``file.done`` is still to be logged, and receipts by which a waiting newer version
        recognizes the object it replaces.
        """
        total = 0
        while forgotten := await self._do(changes.prune, before):
            total += forgotten
        await self.arrivals.forget(before)
        return total

    # --- for commands and pages ----------------------------------------------------------------------------------

    async def summary(self, states: Collection[State] = tuple(State)) -> list[WatchSummary]:
        """Return the numbers of each watch, also of one without versions; only versions in ``states`` are counted."""
        return await self._ask(queries.summary, states)

    async def quarantined(self) -> list[FileVersion]:
        """Return every quarantined version, newest first."""
        return await self._ask(queries.quarantined)

    async def by_key(self, key: str, bucket: str | None = None) -> FileVersion | None:
        """Return the newest verified version stored under ``key``, in any bucket if None is given."""
        return await self._ask(queries.by_key, key, bucket)

    async def by_path(self, watch: str, path: bytes) -> FileVersion | None:
        """Return the current version at a path."""
        return await self._ask(queries.by_path, watch, path)

    async def current(self, watch: str, after: bytes, before: bytes, limit: int) -> list[FileVersion]:
        """Return up to ``limit`` current versions of ``watch`` between two paths, in byte order of their paths.

        Neither path is included; ``b""`` for both means all. Fewer than ``limit`` means the end.
        """
        return await self._ask(queries.current, watch, after, before, limit)

    async def current_count(self, watch: str, after: bytes, before: bytes) -> int:
        """Return how many versions ``current`` returns for these in all."""
        return await self._ask(queries.current_count, watch, after, before)

    async def by_id(self, file_id: str) -> FileVersion | None:
        """Return the version with this ``file_id``."""
        return await self._ask(queries.by_id, file_id)

    async def requeue(self, selection: Selection, now: datetime) -> list[FileVersion]:
        """Take quarantined versions back (``states.retry_event``), with faults and unclean counts at zero.

        A version that goes to the queue counts as queued ``now``; its ``key`` is None where it was ``key_taken``.
        """
        return await self._do(changes.requeue, selection, now)

    async def wait_until_dead(self) -> None:
        """Wait until the writer thread has died, and raise the cause (``LedgerLost``, or a bug)."""
        await self._database.wait_until_dead()

    async def close(self, *, clean: bool) -> None:
        """Write what is pending and close; ``clean`` is remembered for the next start."""
        try:
            # A command that only read must not hide how the last run ended.
            if clean and self._running:
                await self._do(changes.set_meta, clean=1)
        finally:
            await self._database.close()

    def outbox(self) -> LedgerOutbox:
        """Return the outbox of messages for webhooks."""
        return LedgerOutbox(self._database)
