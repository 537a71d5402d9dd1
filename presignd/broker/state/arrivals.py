"""Files that came in by an invitation, in the state: received tickets that are not yet acknowledged.

Each has a number, which grows in the order in which files are received (``Tickets.receive``). So a query for those
after a number misses none.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import NamedTuple

from presignd.broker.state.database import Database, Row
from presignd.broker.state.invitations import Invitation
from presignd.broker.state.links import named_by, ref_of
from presignd.system.clock import from_micros, to_micros

_COLUMNS = "id, arrival, path, bucket, key, size, content_type, part_size, checksum, etag, done_at"
_WAITING = "arrival IS NOT NULL AND acked_at IS NULL"
"""As in the index ``tickets_inbox``."""
_AFTER = (
    f"SELECT {_COLUMNS} FROM tickets WHERE invitation = ?1 AND arrival > ?2 AND {_WAITING} ORDER BY arrival LIMIT ?3"  # noqa: S608
)
_ACK = (
    f"UPDATE tickets SET acked_at = ?4 WHERE id >= ?2 AND id <= ?3 AND invitation = ?1 AND {_WAITING} "  # noqa: S608
    f"RETURNING {_COLUMNS}"
)


class Arrival(NamedTuple):
    """A received file: ``path`` as its guest gave it; its object's size in bytes, checksum ("" if unknown) and ETag.

    ``part_size`` is that of its upload in parts, 0 for one PUT. ``ref`` names it, and opens nothing.
    """

    ref: str
    number: int
    path: str
    bucket: str
    key: str
    size: int
    content_type: str
    part_size: int
    checksum: str
    etag: str
    received_at: datetime


class Arrivals:
    """The arrivals in ``database``. Every call may raise ``StateAway``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def after(self, invitation: Invitation, number: int, limit: int) -> list[Arrival]:
        """Return the files of an invitation after ``number`` that are not acknowledged, in order."""
        return [_arrival(row) for row in await self._database.fetch(_AFTER, invitation.number, number, limit)]

    async def ack(self, invitation: Invitation, refs: Collection[str], now: datetime) -> list[Arrival]:
        """Acknowledge arrivals; return those that were not acknowledged before. Invalid refs are ignored."""
        at = to_micros(now)
        # Sorted: two brokers that take the same ones in different orders would wait for each other.
        named = sorted({found for ref in refs if (found := named_by(ref)) is not None})
        rows = [(invitation.number, *span, at) for span in named]
        if not rows:
            return []
        return [_arrival(row) for found in await self._database.fetch_each(_ACK, rows) for row in found]


def _arrival(row: Row) -> Arrival:
    digest, *columns, done_at = row
    return Arrival._make((ref_of(bytes(digest)), *columns, from_micros(done_at)))
