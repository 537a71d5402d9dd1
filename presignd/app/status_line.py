"""Make the status line for ``systemctl status``: first what blocks the queue, then the counts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from datetime import datetime

from presignd.control.view import BlockedView, View
from presignd.ledger import WatchSummary
from presignd.model import State
from presignd.system.clock import utcnow

SHARE = 0.005
"""Share of a core that the queries may use: the longer a query takes, the later the next one starts."""

_SHOWN = (State.QUEUED, State.QUARANTINED)
"""States that are counted. Their versions are few; finished ones may be a million."""

PATIENCE = 5.0
"""Seconds without a result after which the line says that the ledger does not answer."""


class StatusLine:
    """Makes the line. The result of the last query is used until the next query is due."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._summaries: Sequence[WatchSummary] = ()
        self._ask_at = 0.0
        self._slow = False

    async def __call__(self) -> str:
        """Return the line as of now."""
        if time.monotonic() >= self._ask_at:
            await self._ask()
        view = self._view
        lost = [folder.watch for folder in view.folders() if folder.lost]
        return line(
            self._summaries,
            uploading=len(view.in_flight()),
            settling=len(view.settling()),
            troubles=troubles(view.blocked(), lost, ledger_slow=self._slow),
            now=utcnow(),
        )

    async def _ask(self) -> None:
        began = time.monotonic()
        try:
            async with asyncio.timeout(PATIENCE):
                self._summaries = await self._view.ledger.summary(_SHOWN)
                self._slow = False
        except TimeoutError:
            self._slow = True
        now = time.monotonic()
        self._ask_at = now + (now - began) / SHARE


def line(
    summaries: Sequence[WatchSummary], *, uploading: int, settling: int, troubles: Sequence[str], now: datetime
) -> str:
    """Return the troubles, then what is uploading, queued (and since when), settling and quarantined."""
    queued = sum(summary.counts.get(State.QUEUED, 0) for summary in summaries)
    quarantined = sum(summary.counts.get(State.QUARANTINED, 0) for summary in summaries)
    oldest = min((s.oldest_queued_at for s in summaries if s.oldest_queued_at), default=None)
    age = f" (oldest {(now - oldest).total_seconds():.0f} s)" if queued and oldest else ""
    parts = [f"{uploading} uploading", f"{queued} queued{age}", f"{settling} settling"]
    if quarantined:
        parts.append(f"{quarantined} quarantined")
    return "; ".join([*troubles, ", ".join(parts)])


def troubles(blocked: Sequence[BlockedView], lost: Sequence[str], *, ledger_slow: bool) -> list[str]:
    """Return what blocks uploads, in presignd's words and codes only: no text of a store, no file name."""
    return [
        *(["the ledger does not answer"] if ledger_slow else []),
        *(f"waiting for {found.what} ({found.code})" for found in blocked),
        *(f"the folder of watch {watch} is away" for watch in lost),
    ]
