"""Doors that shut while a store or a watch is refused as a whole, behind one probe each.

A worker that meets such a fault asks the gate to look. One probe of the fixed check key answers for all
that ask meanwhile: when it goes through, the fault is the file's own; when it fails, the gate shuts, says
so once, and probes on with backoff until it goes through, and says that once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from presignd.errors import Fault, fault
from presignd.runtime.heartbeat import resting
from presignd.states import backoff
from presignd.system.clock import utcnow
from presignd.telemetry.log import get_logger

log = get_logger()

PROBE_BASE = 0.5
PROBE_CAP = 15.0
"""Seconds: full-jitter backoff between probes, so that a store that is back is noticed soon."""

STEADY = timedelta(seconds=60)
"""How long a gate must have been open to count as well: one that shuts again sooner goes on with its backoff."""


@dataclass(frozen=True, slots=True)
class Shut:
    """Why a gate is shut, and since when (UTC)."""

    fault: Fault
    since: datetime


class Gate:
    """One door. ``probe`` returns None when requests go through, else the fault.

    ``on_shut`` hears the fault and ``on_open`` how many seconds it was shut; ``changed`` is called after
    either, so that whoever waits looks again.
    """

    def __init__(
        self,
        probe: Callable[[], Awaitable[Fault | None]],
        *,
        on_shut: Callable[[Fault], None],
        on_open: Callable[[float], None],
        changed: Callable[[], None],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        now: Callable[[], datetime] = utcnow,
    ) -> None:
        self._probe = probe
        self._on_shut, self._on_open, self._changed = on_shut, on_open, changed
        self._sleep, self._now = sleep, now
        self._looking: asyncio.Task[bool] | None = None
        self._waiting: asyncio.Task[None] | None = None
        self._opened = datetime.min.replace(tzinfo=UTC)
        self._failures = 0
        self.shut: Shut | None = None

    async def is_files_own(self, problem: Fault, *, again: bool = False) -> bool:
        """Decide about ``problem``: True when the store serves others meanwhile, so that it is the file's own.

        False when the gate is shut, or was shut by this look: nobody's attempt counts. ``again``: the file
        met the same before; then the probe is asked also where the store said when to come back, or one
        key that always answers so would hold up all others again and again.
        """
        if self.shut:
            return False
        if self._looking is None:
            self._looking = asyncio.create_task(self._look(problem, again=again), name="gate look")
            self._looking.add_done_callback(self._looked)
        with resting():  # a look is requests, each with a deadline, and may be another worker's
            return await asyncio.shield(self._looking)

    def _looked(self, _: asyncio.Task[bool]) -> None:
        self._looking = None

    async def _look(self, met: Fault, *, again: bool) -> bool:
        flaps = self._now() - self._opened < STEADY
        # A store that says when to come back is not probed before: but if it was back just now, that may be one key's.
        problem = met if met.retry_after and not (again or flaps) else await self._ask()
        if problem is None:
            return True
        self._failures = self._failures if flaps else 0
        self.shut = Shut(problem, self._now())
        self._waiting = asyncio.create_task(self._until_open(problem), name="gate wait")
        self._on_shut(problem)
        self._changed()
        return False

    async def _until_open(self, problem: Fault | None) -> None:
        while problem is not None:
            self._failures += 1
            await self._sleep(problem.retry_after or backoff(self._failures, base=PROBE_BASE, cap=PROBE_CAP))
            problem = await self._ask()
            if problem is not None and self.shut is not None:
                self.shut = Shut(problem, self.shut.since)
        since = self.shut.since if self.shut else self._now()
        self.shut, self._opened = None, self._now()
        self._on_open((self._now() - since).total_seconds())
        self._changed()

    async def _ask(self) -> Fault | None:
        """Probe. A bug there is told and waited out: one that ended the probing would leave the gate shut for ever."""
        try:
            return await self._probe()
        except Exception as bug:
            log.exception("unexpected_error")
            return fault("internal_error", type(bug).__name__)

    async def close(self) -> None:
        """Stop probing."""
        tasks = [task for task in (self._looking, self._waiting) if task and not task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
