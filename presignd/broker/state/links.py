"""Stable links in the state: made once for the id that the caller chose, counted, revoked, listed.

A limit holds even if many open a link at once, because the statement that counts an opening also compares the count.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any, NamedTuple

from presignd.broker.state.database import Database, Row
from presignd.broker.state.outbox import Changed, StateOutbox, new_mark
from presignd.broker.state.pin_tries import pin_try
from presignd.system.clock import from_micros, to_micros

REF_BYTES = 12
"""Bytes of an id's SHA-256 in a link's ``ref``: enough to name one link, and useless to open it."""

_NEW = (
    "id, token, bucket, key, version_id, size, content_type, filename, disposition, note, pin, made_at, ends_at, "
    "max_downloads, unit"
)
_ALL = f"{_NEW}, opened, opened_at, revoked_at, kept"
_ALIVE = "revoked_at IS NULL AND (ends_at IS NULL OR ends_at > ?2)"
_LEFT = "(max_downloads IS NULL OR opened < max_downloads)"
_COUNT = "UPDATE links SET opened = opened + 1, opened_before = opened_at, opened_at = ?2"

_PUT = f"INSERT INTO links ({_NEW}) VALUES ({', '.join(f'?{n}' for n in range(1, 16))}) ON CONFLICT (id) DO NOTHING"  # noqa: S608
_FIND = f"SELECT {_ALL} FROM links WHERE id = ?1"  # noqa: S608
_OPEN = f"{_COUNT} WHERE id = ?1 AND max_downloads IS NULL AND pin = '' AND unit = 0 AND {_ALIVE} RETURNING {_ALL}"
_TAKE_BACK = (
    "UPDATE links SET opened = opened - 1, "
    "opened_at = CASE WHEN opened_at = ?2 THEN opened_before ELSE opened_at END WHERE id = ?1"
)
_SPEND = f"{_COUNT}, pin_tries = 0 WHERE id = ?1 AND {_LEFT} AND {_ALIVE} RETURNING {_ALL}"
_TRY = pin_try("links")
_LIST = f"SELECT {_ALL} FROM links WHERE token = ?1 AND n > ?2 ORDER BY n LIMIT ?3"  # noqa: S608
_NAMED = f"SELECT {_ALL} FROM links WHERE token = ?1 AND id >= ?2 AND id <= ?3"  # noqa: S608
_NUMBER = "SELECT n FROM links WHERE token = ?1 AND id >= ?2 AND id <= ?3"
_REVOKE = "UPDATE links SET revoked_at = ?2 WHERE token = ?1 AND revoked_at IS NULL"
_ALIVE_OF_EACH = (
    "SELECT token, count(*), sum(kept) FROM links "  # noqa: S608 - constants
    f"WHERE revoked_at IS NULL AND (ends_at IS NULL OR ends_at > ?1) AND {_LEFT} GROUP BY token"
)


OPENED = "link.opened"


class NewLink(NamedTuple):
    """A link to record. ``id`` is the SHA-256 of its id, ``pin`` a slow hash or "", None means no limit.

    ``unit``: the object is the manifest of a folder, whose files the link opens.
    """

    id: bytes
    token: str
    bucket: str
    key: str
    version_id: str
    size: int | None
    content_type: str
    filename: str
    disposition: str
    note: str
    pin: str
    made_at: datetime
    ends_at: datetime | None
    max_downloads: int | None
    unit: bool = False


class Link(NamedTuple):
    """A recorded link. ``kept`` means that it outlives its token; ``opened_at`` is when it was opened last."""

    new: NewLink
    opened: int
    opened_at: datetime | None
    revoked_at: datetime | None
    kept: bool

    @property
    def ref(self) -> str:
        """Its public name, which does not open it."""
        return ref_of(self.new.id)


class Alive(NamedTuple):
    """How many links of a token have not ended: ``all``, and those ``kept`` that outlive it."""

    all: int
    kept: int


def hash_of(link_id: str) -> bytes:
    """Return the hash that is stored for an id."""
    return sha256(link_id.encode()).digest()


def ref_of(digest: bytes) -> str:
    """Return the ``ref`` of the link with this SHA-256."""
    return urlsafe_b64encode(digest[:REF_BYTES]).decode()


def named_by(ref: str) -> tuple[bytes, bytes] | None:
    """Return the least and the greatest SHA-256 with this ``ref``; None if it is no ref."""
    try:
        start = urlsafe_b64decode(ref)
    except ValueError:
        return None
    if len(start) != REF_BYTES:
        return None
    rest = sha256().digest_size - REF_BYTES
    return start + bytes(rest), start + b"\xff" * rest


class Links:
    """The links in ``database``. Every call may raise ``StateAway``."""

    def __init__(self, database: Database, outbox: StateOutbox | None = None) -> None:
        self._database, self._outbox = database, outbox

    async def put(self, links: Sequence[NewLink]) -> list[Link]:
        """Record the links whose id is not known yet; return what is recorded for each, in order."""
        # Sorted: two brokers that insert the same ids in different orders would wait for each other.
        await self._database.fetch_each(_PUT, [_row(link) for link in sorted(links, key=lambda link: link.id)])
        found = await self._database.fetch_each(_FIND, [(link.id,) for link in links])
        return [_link(row) for (row,) in found]

    async def find(self, digest: bytes) -> Link | None:
        """Return the link whose id has this SHA-256."""
        return _first(await self._database.fetch(_FIND, digest))

    async def open(self, digest: bytes, now: datetime) -> Link | None:
        """Count one opening of a link that is alive and has no limit, no PIN and no folder; None for any other."""
        return await self._count(_OPEN, digest, now)

    async def _count(self, sql: str, digest: bytes, now: datetime) -> Link | None:
        """Count one opening, and record the webhooks' messages about it in the same transaction."""
        if self._outbox is None or not self._outbox.wants(OPENED) or (link := await self.find(digest)) is None:
            return _first(await self._database.fetch(sql, digest, to_micros(now)))
        mark = new_mark()
        marking = sql.replace("opened_at = ?2", "opened_at = ?2, mark = ?3", 1)
        messages = self._outbox.adding(OPENED, Changed("links", digest, mark), link.ref, now, _message_of(link))
        opened, *_ = await self._database.transact([(marking, (digest, to_micros(now), mark)), *messages])
        return _first(opened)

    async def take_back(self, digest: bytes, now: datetime) -> None:
        """Uncount the opening of ``now``, which was refused, and restore ``opened_at``.

        If several refused openings overlap, it may be the time of one of these.
        """
        await self._database.fetch(_TAKE_BACK, digest, to_micros(now))
        if self._outbox is not None and self._outbox.wants(OPENED):
            await self._outbox.take_back(ref_of(digest), now)

    async def spend(self, digest: bytes, now: datetime) -> Link | None:
        """Count one opening; return None if the link is not alive or has none left."""
        return await self._count(_SPEND, digest, now)

    async def take_pin_try(self, digest: bytes, now: datetime, *, most: int, window: timedelta) -> bool:
        """Count one of ``most`` tries in ``window``; return False if none is left. ``spend`` gives all back."""
        since = to_micros(now - window)
        return bool(await self._database.fetch(_TRY, digest, since, to_micros(now), most))

    async def of_token(self, token: str, *, after: str, limit: int) -> list[Link]:
        """Return a token's links in order, those that follow the one with the ref ``after`` ("": from the first).

        Raises ``LookupError`` if none of its links has that ref. Their row numbers count the links of all tokens, so
        callers do not see them.
        """
        number = await self._number(token, after) if after else 0
        return [_link(row) for row in await self._database.fetch(_LIST, token, number, limit)]

    async def of_refs(self, token: str, refs: Iterable[str]) -> list[Link]:
        """Return those of a token's links that have one of these refs."""
        named = [(token, *each) for ref in refs if (each := named_by(ref))]
        return [_link(row) for rows in await self._database.fetch_each(_NAMED, named) for row in rows]

    async def _number(self, token: str, ref: str) -> int:
        named = named_by(ref)
        rows = await self._database.fetch(_NUMBER, token, *named) if named else []
        if not rows:
            raise LookupError(ref)
        return int(rows[0][0])

    async def revoke(self, token: str, digest: bytes, now: datetime) -> list[Link]:
        """Revoke a token's link by the SHA-256 of its id; return it if it was not revoked before."""
        return await self._revoke("AND id = ?3", token, now, digest)

    async def revoke_ref(self, token: str, ref: str, now: datetime) -> list[Link]:
        """Revoke a token's link by its ``ref``; return it if it was not revoked before."""
        named = named_by(ref)
        return await self._revoke("AND id >= ?3 AND id <= ?4", token, now, *named) if named else []

    async def revoke_object(self, token: str, bucket: str, key: str, now: datetime) -> list[Link]:
        """Revoke all of a token's links to an object; return those that were not revoked before."""
        return await self._revoke("AND key = ?3 AND bucket = ?4", token, now, key, bucket)

    async def revoke_token(self, token: str, now: datetime) -> int:
        """Revoke all of a token's links; return how many there were."""
        return len(await self._revoke("", token, now))

    async def keep(self, token: str) -> int:
        """Let a token's links outlive it; return how many there are."""
        sql = "UPDATE links SET kept = 1 WHERE token = ?1 AND revoked_at IS NULL RETURNING n"
        return len(await self._database.fetch(sql, token))

    async def alive(self, now: datetime) -> dict[str, Alive]:
        """Return how many links have not ended, by token. Whether they open also depends on the token."""
        rows = await self._database.fetch(_ALIVE_OF_EACH, to_micros(now))
        return {str(token): Alive(int(count), int(kept)) for token, count, kept in rows}

    async def _revoke(self, which: str, token: str, now: datetime, *values: object) -> list[Link]:
        sql = f"{_REVOKE} {which} RETURNING {_ALL}"
        return [_link(row) for row in await self._database.fetch(sql, token, to_micros(now), *values)]


# --- rows -------------------------------------------------------------------------------------------
def _row(link: NewLink) -> Row:
    ends = None if link.ends_at is None else to_micros(link.ends_at)
    return tuple(link._replace(made_at=to_micros(link.made_at), ends_at=ends, unit=int(link.unit)))  # type: ignore[arg-type]


def _first(rows: Sequence[Row]) -> Link | None:
    return _link(rows[0]) if rows else None


def _message_of(link: Link) -> dict[str, Any]:
    """Return a message's data about a link, without what opens it."""
    new = link.new
    return {"ref": link.ref, "token": new.token, "bucket": new.bucket, "key": new.key, "filename": new.filename}


def _link(row: Row) -> Link:
    digest, *texts, made_at, ends_at, most, unit, opened, opened_at, revoked_at, kept = row
    return Link(
        NewLink._make((bytes(digest), *texts, from_micros(made_at), from_micros(ends_at), most, bool(unit))),
        opened,
        from_micros(opened_at),
        from_micros(revoked_at),
        bool(kept),
    )
