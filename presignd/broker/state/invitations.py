"""Invitations in the state: made once, revoked, with what is reserved of their limits.

``files`` and ``bytes`` count the files that came in and those reserved for tickets (``tickets``).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from presignd.broker.state.database import Database, Row
from presignd.broker.state.links import ref_of
from presignd.broker.state.pin_tries import pin_try
from presignd.system.clock import from_micros, to_micros

_NEW = "id, name, bucket, prefix, note, pin, made_at, ends_at, max_files, max_size, total"
_ALL = f"{_NEW}, revoked_at, files, bytes, n"

_MAKE = (
    f"INSERT INTO invitations ({_NEW}) VALUES ({', '.join(f'?{n}' for n in range(1, 12))}) "  # noqa: S608
    f"ON CONFLICT (name) DO NOTHING RETURNING {_ALL}"
)
_FIND = f"SELECT {_ALL} FROM invitations WHERE id = ?1"  # noqa: S608
_NAMED = f"SELECT {_ALL} FROM invitations WHERE name = ?1"  # noqa: S608
_LIST = f"SELECT {_ALL} FROM invitations ORDER BY n"  # noqa: S608
_REVOKE = f"UPDATE invitations SET revoked_at = ?2 WHERE name = ?1 AND revoked_at IS NULL RETURNING {_ALL}"  # noqa: S608
_DUE = (
    "UPDATE tickets SET due_at = ?2 WHERE state = 'reserved' "
    "AND invitation = (SELECT n FROM invitations WHERE name = ?1 AND revoked_at IS NOT NULL)"
)
_TRY = pin_try("invitations")
_FORGIVE = "UPDATE invitations SET pin_tries = 0 WHERE id = ?1"


class NewInvitation(NamedTuple):
    """An invitation to record.

    ``id`` is the SHA-256 of its id, ``pin`` a slow hash or "". Sizes are bytes; None means no limit.
    """

    id: bytes
    name: str
    bucket: str
    prefix: str
    note: str
    pin: str
    made_at: datetime
    ends_at: datetime
    max_files: int | None
    max_size: int | None
    total: int | None


class Invitation(NamedTuple):
    """A recorded invitation; ``number`` is its row number."""

    new: NewInvitation
    revoked_at: datetime | None
    files: int
    bytes: int
    number: int

    @property
    def ref(self) -> str:
        """Its public name, which does not open it."""
        return ref_of(self.new.id)

    @property
    def files_left(self) -> int | None:
        """How many files it still takes, None for no limit."""
        return None if self.new.max_files is None else max(0, self.new.max_files - self.files)

    @property
    def bytes_left(self) -> int | None:
        """How many bytes it still takes, None for no limit."""
        return None if self.new.total is None else max(0, self.new.total - self.bytes)

    def is_open(self, now: datetime) -> bool:
        """Return whether it has neither ended nor been revoked."""
        return self.revoked_at is None and now < self.new.ends_at


class Invitations:
    """The invitations in ``database``. Every call may raise ``StateAway``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def make(self, new: NewInvitation) -> Invitation | None:
        """Record an invitation; return None if its name is taken."""
        values = new._replace(made_at=to_micros(new.made_at), ends_at=to_micros(new.ends_at))  # type: ignore[arg-type]
        return _first(await self._database.fetch(_MAKE, *values))

    async def find(self, digest: bytes) -> Invitation | None:
        """Return the invitation whose id has this SHA-256."""
        return _first(await self._database.fetch(_FIND, digest))

    async def named(self, name: str) -> Invitation | None:
        """Return the invitation with this name."""
        return _first(await self._database.fetch(_NAMED, name))

    async def all(self) -> list[Invitation]:
        """Return every invitation, in the order in which they were made."""
        return [_invitation(row) for row in await self._database.fetch(_LIST)]

    async def revoke(self, name: str, now: datetime) -> Invitation | None:
        """Revoke an invitation, and make its tickets due; return it if it was not revoked before."""
        values = (name, to_micros(now))
        # Not in one transaction: it would lock the invitation and wait for a ticket, while a release does the reverse.
        revoked = await self._database.fetch(_REVOKE, *values)
        await self._database.fetch(_DUE, *values)
        return _first(revoked)

    async def take_pin_try(self, digest: bytes, now: datetime, *, most: int, window: timedelta) -> bool:
        """Count one of ``most`` tries in ``window``; return False if none is left. ``forgive`` gives all back."""
        since = to_micros(now - window)
        return bool(await self._database.fetch(_TRY, digest, since, to_micros(now), most))

    async def forgive(self, digest: bytes) -> None:
        """Give all tries of the PIN back."""
        await self._database.fetch(_FORGIVE, digest)


def _first(rows: Sequence[Row]) -> Invitation | None:
    return _invitation(rows[0]) if rows else None


def _invitation(row: Row) -> Invitation:
    digest, name, bucket, prefix, note, pin, made_at, ends_at, *limits, revoked_at, files, size, number = row
    made, ends = from_micros(made_at), from_micros(ends_at)
    new = NewInvitation(bytes(digest), name, bucket, prefix, note, pin, made, ends, *limits)
    return Invitation(new, from_micros(revoked_at), files, size, number)
