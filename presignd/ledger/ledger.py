"""The ledger on SQLite: changes go through one writer thread, questions through a reader of their own.

A question sees every change whose call has returned: it starts after that commit.
"""

# ruff: noqa: D102 - the port, presignd.ledger.Ledger, holds the contract of each method

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from presignd.errors import Fault, Unavailable
from presignd.ledger import NOTHING, Enqueued, Ledger, Selection, WatchSummary, bulk, changes, multipart
from presignd.ledger import queries as questions
from presignd.ledger.database import closed_on_error, connect, explain, open_database
from presignd.ledger.folder import prepare
from presignd.ledger.patience import Patience
from presignd.ledger.replaced import presence
from presignd.ledger.schema import APPLICATION_ID, MIGRATIONS
from presignd.ledger.writer import Many, Operation, Reader, Writer
from presignd.model import FileVersion, Fingerprint, LinksMark, Listed, NewVersion, Part, Sent, State
from presignd.states import Event
from presignd.system.filesystem import sync_folder
from presignd.system.threads import opened

T = TypeVar("T")
FILE = "ledger.sqlite3"

FIRSTS = 1000
"""Claimed versions remembered as the first under their key; of one that is forgotten, the tables are asked."""


async def open_ledger(folder: Path, patience: Patience | None = None) -> SqliteLedger:
    """Open the ledger in ``folder`` (made 0700 where missing; the file is 0600).

    With ``patience`` calls wait where they would fail for a full disk or another program's lock.

    The caller holds ``lock.DaemonLock`` on that folder. Raises ``UsageError`` for a folder or file that
    is none for a ledger (network filesystem, newer version, another program's, damaged), ``Unavailable``
    while another program holds it, the fault ``disk_full``.
    """
    writing, reading = await opened(partial(_open, folder), _close)
    return SqliteLedger(folder / FILE, writing, reading, patience)


def _open(folder: Path) -> tuple[sqlite3.Connection, sqlite3.Connection]:
    prepare(folder)
    writing = open_database(folder / FILE, APPLICATION_ID, MIGRATIONS)
    with closed_on_error(writing):
        sync_folder(folder)
        reading = connect(folder / FILE)
        with closed_on_error(reading):
            reading.execute("PRAGMA query_only = ON")
    return writing, reading


def _close(connections: Sequence[sqlite3.Connection]) -> None:
    for connection in connections:
        connection.close()


class SqliteLedger(Ledger):
    """Implements ``Ledger``; the methods' contracts stand there.

    Calls that can't be written raise the fault ``disk_full`` and change nothing; the next ones are tried
    again. ``UsageError`` means the file is damaged, ``Unavailable`` that it can't be reached. With
    ``patience`` they wait instead.
    """

    def __init__(
        self, path: Path, writing: sqlite3.Connection, reading: sqlite3.Connection, patience: Patience | None = None
    ) -> None:
        self._path = path
        self._patience = patience
        self._writer = Writer(writing, lambda error: explain(error, path), presence(path))
        self._reader = Reader(reading, lambda error: explain(error, path), name="ledger-questions")
        self._running = False
        self._firsts: dict[str, str] = {}

    # --- settle -------------------------------------------------------------------------------------

    async def known(self, watch: str, paths: Sequence[bytes]) -> dict[bytes, FileVersion]:
        return await self._ask(questions.known, watch, paths)

    async def differing(self, watch: str, listed: Sequence[Listed]) -> list[Listed]:
        return await self._ask(questions.differing, watch, listed)

    async def paths(self, watch: str, after: bytes, limit: int) -> list[bytes]:
        return await self._ask(questions.paths, watch, after, limit)

    async def first_start(self, watch: str, now: datetime) -> tuple[datetime, bool]:
        return await self._do(changes.first_start, watch, now)

    async def first_scan_done(self, watch: str) -> None:
        await self._do(changes.first_scan_done, watch)

    async def enqueue(self, versions: Sequence[NewVersion]) -> list[Enqueued]:
        return await self._do(changes.enqueue, versions)

    async def refingerprint(self, file_id: str, fingerprint: Fingerprint) -> None:
        await self._do(changes.refingerprint, file_id, fingerprint)

    async def gone(self, watch: str, paths: Sequence[bytes], now: datetime) -> list[FileVersion]:
        ended: list[FileVersion] = []
        more = True
        while more:
            some, more = await self._do(changes.gone, watch, paths, now)
            ended += some
        return ended

    # --- worker -------------------------------------------------------------------------------------

    async def claim(
        self,
        watch: str,
        limit: int,
        now: datetime,
        *,
        below_size: int | None = None,
        most_priority: int | None = None,
    ) -> list[FileVersion]:
        def claim(connection: sqlite3.Connection) -> tuple[list[FileVersion], dict[str, str]]:
            claimed = changes.claim(connection, watch, limit, now, below_size, most_priority=most_priority)
            return claimed, questions.firsts(connection, claimed)

        claimed, firsts = await self._write(claim, "claim")
        if len(self._firsts) > FIRSTS:
            self._firsts.clear()
        self._firsts |= firsts
        return claimed

    async def next_due(self, watches: Collection[str], after: datetime) -> datetime | None:
        return await self._ask(questions.next_due, watches, after)

    async def assign_key(
        self, version: FileVersion, base_key: str, *, fresh: bool, next_key: bool, beyond: str = ""
    ) -> FileVersion | None:
        return await self._do(changes.assign_key, version, base_key, fresh=fresh, next_key=next_key, beyond=beyond)

    async def previous_receipt(self, version: FileVersion) -> FileVersion | None:
        if version.key is not None and self._firsts.pop(version.file_id, None) == version.key:
            return None  # as its claim saw: nothing before it can be verified while it is in flight
        return await self._ask(questions.previous_receipt, version)

    async def sent(self, version: FileVersion) -> frozenset[Sent]:
        return await self._ask(questions.sent, version)

    async def apply(self, version: FileVersion, event: Event, **changed: Any) -> FileVersion:
        return await self._write(
            lambda connection: changes.apply(connection, version, event, changed),
            f"apply.{event}",
            many=bulk.apply if bulk.is_plain(version, event) else None,
            one=(version, (event,), changed),
        )

    async def update(self, version: FileVersion, **changed: Any) -> FileVersion:
        return await self._write(
            lambda connection: changes.update(connection, version, changed),
            "update",
            many=bulk.apply,
            one=(version, (), changed),
        )

    # --- multipart ----------------------------------------------------------------------------------

    async def begin_upload(self, version: FileVersion, upload_id: str, part_size: int) -> FileVersion:
        return await self._do(multipart.begin_upload, version, upload_id, part_size)

    async def part_done(self, version: FileVersion, part: Part) -> None:
        await self._do(multipart.part_done, version, part)

    async def parts(self, version: FileVersion) -> list[Part]:
        return await self._ask(multipart.parts, version)

    async def end_upload(self, version: FileVersion) -> FileVersion:
        return await self._do(multipart.end_upload, version)

    async def uploads_left(self) -> list[FileVersion]:
        return await self._ask(multipart.uploads_left)

    async def linked(
        self, versions: Sequence[FileVersion], mark: LinksMark, ended: Mapping[str, datetime] = NOTHING
    ) -> list[FileVersion]:
        return await self._do(changes.linked, versions, mark, ended)

    # --- start, end, upkeep -------------------------------------------------------------------------

    async def release(self, *, unclean: bool) -> list[FileVersion]:
        return await self._do(changes.release, unclean=unclean)

    async def was_clean(self) -> bool:
        clean = await self._do(changes.begin_run)
        self._running = True
        return clean

    async def in_state(self, state: State) -> list[FileVersion]:
        return await self._ask(questions.in_state, state)

    async def unannounced(self) -> list[FileVersion]:
        return await self._ask(questions.unannounced)

    async def announced(self, file_ids: Sequence[str]) -> None:
        await self._do(changes.announced, file_ids)

    async def links_mark(self) -> LinksMark | None:
        return await self._ask(questions.links_mark)

    async def prune(self, before: datetime) -> int:
        total = 0
        while forgotten := await self._do(changes.prune, before):
            total += forgotten
        return total

    # --- questions ----------------------------------------------------------------------------------

    async def summary(self, states: Collection[State] = tuple(State)) -> list[WatchSummary]:
        return await self._ask(questions.summary, states)

    async def quarantined(self) -> list[FileVersion]:
        return await self._ask(questions.quarantined)

    async def by_key(self, key: str, bucket: str | None = None) -> FileVersion | None:
        return await self._ask(questions.by_key, key, bucket)

    async def by_path(self, watch: str, path: bytes) -> FileVersion | None:
        return await self._ask(questions.by_path, watch, path)

    async def by_id(self, file_id: str) -> FileVersion | None:
        return await self._ask(questions.by_id, file_id)

    async def requeue(self, selection: Selection, now: datetime) -> list[FileVersion]:
        return await self._do(changes.requeue, selection, now)

    async def died(self) -> None:
        await self._writer.died()

    async def close(self, *, clean: bool) -> None:
        try:
            # A command that only looked in tells nothing about how the last run ended.
            if clean and self._running:
                await self._do(changes.set_meta, clean=1)
        finally:
            await self._reader.close()
            await self._writer.close()

    # --- the two threads ----------------------------------------------------------------------------

    async def _do(self, change: Callable[..., T], *args: Any, **more: Any) -> T:
        name = ".".join([change.__name__, *(arg for arg in args if isinstance(arg, Event))])
        return await self._write(lambda connection: change(connection, *args, **more), name)

    async def _write(self, operation: Operation[T], name: str, *, many: Many | None = None, one: Any = None) -> T:
        try:
            return await self._writer.do(operation, name, many=many, one=one)
        except (Fault, Unavailable):
            if self._patience is None:
                raise
        return await self._patience(lambda: self._writer.do(operation, name, many=many, one=one))

    async def _ask(self, question: Callable[..., T], *args: Any) -> T:
        def asked(connection: sqlite3.Connection) -> T:
            return question(connection, *args)

        self._writer.check()
        return await (self._patience(lambda: self._reader.do(asked)) if self._patience else self._reader.do(asked))
