"""Take snapshots for the fleet page: at most one a second for all clients; the links are counted less often."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import presignd
from presignd.broker.config import TokenConfig
from presignd.broker.fleet.activity import Activity, Call, Minute, Refused
from presignd.broker.state.database import StateAway
from presignd.broker.state.links import Alive
from presignd.broker.tokens import Tokens
from presignd.pages.html import shown
from presignd.pages.pace import Pace
from presignd.redaction.redact import redact
from presignd.system.clock import utcnow
from presignd.units import rfc3339

LINKS_REST = 10.0
"""Shortest pause between two counts of the links, in seconds: each reads all of them."""
LINKS_SHARE = 0.02
"""The share of the time that counting may take."""
LINKS_PATIENCE = 1.0
NONE_ALIVE = Alive(0, 0)

Counts = Mapping[str, Alive]
"""The stable links that have not ended, by token."""
CountLinks = Callable[[], Awaitable[Counts]]
"""Returns the counts; raises ``StateAway``."""


@dataclass(frozen=True, slots=True)
class TokenView:
    """One token: its configuration, and what was seen of it.

    ``links`` is the number that open, None if it is not known: without a state, or while it is away. For a token that
    has ended, it is the number of links kept beyond its end.
    """

    token: TokenConfig
    call: Call | None
    granted: int
    refused: int
    refusal: Refused | None
    links: int | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the page shows, as of ``now`` (UTC): since ``since``, at this broker.

    ``problems`` are lines about token files; ``minutes`` are the last hour of all tokens together; ``kept`` are the
    links that outlive their tokens, by the name of a token that no file has (any more).
    """

    tokens: Sequence[TokenView]
    problems: Sequence[str]
    minutes: Sequence[Minute]
    kept: Mapping[str, int]
    since: datetime
    now: datetime


def take(tokens: Tokens, activity: Activity, links: Counts | None, now: datetime) -> Snapshot:
    """Return a snapshot, with the tokens by their names."""
    views = sorted((_view(token, activity, links, now) for token, _ in tokens.all()), key=lambda view: view.token.name)
    gone = sorted(set(links or ()) - {view.token.name for view in views})
    kept = {name: links[name].kept for name in gone if links and links[name].kept}
    return Snapshot(views, tokens.unreadable(), activity.hour.minutes(now), kept, activity.since, now)


def _view(token: TokenConfig, activity: Activity, links: Counts | None, now: datetime) -> TokenView:
    seen = activity.of(token.name)
    granted, refused = seen.hour.total(now)
    ended = token.valid_until is not None and token.valid_until <= now
    alive = None if links is None else links.get(token.name, NONE_ALIVE)
    opening = None if alive is None else alive.kept if ended else alive.all
    return TokenView(token, seen.call, granted, refused, seen.refused, opening)


class LinkCounts:
    """Counts the links when the page is viewed, but seldom enough to spare the database.

    ``patience`` is how many seconds ``now`` waits for a count; then it has the one before.
    """

    def __init__(
        self,
        count: CountLinks | None,
        *,
        patience: float = LINKS_PATIENCE,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._count, self._patience, self._monotonic = count, patience, monotonic
        self._next = 0.0
        self._last: Counts | None = None
        self._counting: asyncio.Task[None] | None = None

    async def now(self) -> Counts | None:
        """Return the latest count; None where there is no state, or while it is away."""
        if self._count is None:
            return None
        if self._counting is None and self._monotonic() >= self._next:
            self._counting = asyncio.create_task(self._take(self._count), name="count links")
        if (counting := self._counting) is not None:
            await asyncio.wait({counting}, timeout=self._patience)
            if counting.done():
                self._counting = None
                counting.result()
        return self._last

    async def _take(self, count: CountLinks) -> None:
        began = self._monotonic()
        try:
            self._last = await count()
        except StateAway:
            self._last = None
        finally:
            now = self._monotonic()
            self._next = now + max(LINKS_REST, (now - began) / LINKS_SHARE)

    async def close(self) -> None:
        """Cancel a count that is under way."""
        if (counting := self._counting) is not None:
            self._counting = None
            counting.cancel()
            await asyncio.gather(counting, return_exceptions=True)


class Snapshots:
    """Takes snapshots, and keeps the last one for a second."""

    def __init__(self, tokens: Tokens, activity: Activity, links: LinkCounts, pace: Pace) -> None:
        self._tokens, self._activity, self._links, self._pace = tokens, activity, links, pace
        self._last: Snapshot | None = None
        self._next = 0.0

    async def now(self) -> Snapshot:
        """Return a current snapshot."""
        if self._last is not None and time.monotonic() < self._next:
            return self._last
        links = await self._links.now()
        began = time.monotonic()
        self._last = take(self._tokens, self._activity, links, utcnow())
        rest = (time.monotonic() - began) / self._pace.snapshot_share
        self._next = time.monotonic() + max(self._pace.snapshot, rest)
        return self._last


# --- as JSON ----------------------------------------------------------------------------------------
def to_json(snapshot: Snapshot) -> dict[str, Any]:
    """Return the document of ``/api/fleet``."""
    return {
        "now": rfc3339(snapshot.now),
        "broker": {"version": presignd.__version__, "since": rfc3339(snapshot.since)},
        "tokens": [_token(view) for view in snapshot.tokens],
        "kept_links": dict(snapshot.kept),
        "problems": [redact(problem) for problem in snapshot.problems],
    }


def _token(view: TokenView) -> dict[str, Any]:
    token, call = view.token, view.call
    return {
        "name": token.name,
        "bucket": token.bucket,
        "prefix": token.prefix,
        "valid_until": rfc3339(token.valid_until) if token.valid_until else None,
        "last_seen": _call(call) if call else None,
        "granted": view.granted,
        "refused": view.refused,
        "last_refusal": {"code": view.refusal.code, "at": rfc3339(view.refusal.at)} if view.refusal else None,
        "links_alive": view.links,
    }


def _call(call: Call) -> dict[str, Any]:
    difference = call.clock_difference
    return {
        "at": rfc3339(call.at),
        "client": shown(call.client),
        "program": shown(call.program),
        "daemon_version": call.version or None,
        "clock_difference_seconds": None if difference is None else round(difference, 1),
    }
