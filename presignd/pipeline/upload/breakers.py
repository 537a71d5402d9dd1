"""Circuit breakers: pause uploads while a store, a presigner or a watch's bucket is refused as a whole.

A worker that meets such a fault asks its breaker, and one probe of the fixed check key answers for all that ask
meanwhile. If the probe goes through, the fault is the file's own. If it fails, the breaker trips, logs that once,
and probes with backoff until one goes through; then it resets, and logs that once.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from presignd.errors import BucketFault, Fault, GrantFault, PresignerFault, StoreFault, WatchFault, fault
from presignd.pipeline.upload.bucket import Bucket
from presignd.presign import Presigner
from presignd.runtime.heartbeat import resting
from presignd.states import backoff
from presignd.system.clock import utcnow
from presignd.telemetry.log import get_logger

log = get_logger()

PROBE_BASE = 0.5
PROBE_CAP = 15.0
"""Seconds: full-jitter backoff between probes, so that a store that is back is noticed soon."""

STEADY = timedelta(seconds=60)
"""How long a breaker must have been reset for its backoff to begin anew: one that trips sooner goes on with it."""

LOCAL = ("read_error", "too_many_files", "disk_full")
"""Faults of this machine: no probe of the store says anything about them."""


@dataclass(frozen=True, slots=True)
class Trip:
    """Why a breaker has tripped, and since when (UTC)."""

    fault: Fault
    since: datetime


class Breaker:
    """One circuit breaker. ``probe`` returns None when requests go through, else the fault.

    ``on_trip`` is called with the fault and ``on_reset`` with the seconds it was tripped; ``changed`` is called
    after either. ``trip`` is None while requests may go.
    """

    def __init__(
        self,
        probe: Callable[[], Awaitable[Fault | None]],
        *,
        on_trip: Callable[[Fault], None],
        on_reset: Callable[[float], None],
        changed: Callable[[], None],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        now: Callable[[], datetime] = utcnow,
        backoff: Callable[..., float] = backoff,
    ) -> None:
        self._probe = probe
        self._on_trip, self._on_reset, self._changed = on_trip, on_reset, changed
        self._sleep, self._now, self._backoff = sleep, now, backoff
        self._deciding: asyncio.Task[bool] | None = None
        self._waiting: asyncio.Task[None] | None = None
        self._reset_at = datetime.min.replace(tzinfo=UTC)
        self._failures = 0
        self.trip: Trip | None = None

    async def is_files_own(self, problem: Fault, *, again: bool = False) -> bool:
        """Return True when the store serves others meanwhile, so that ``problem`` is the file's own.

        False when the breaker has tripped, now or before: no file's attempt counts. ``again``: the file
        met the same before; then the probe is asked also where the store said when to come back, or one
        key that always answers so would hold up all others again and again.
        """
        if self.trip:
            return False
        if self._deciding is None:
            self._deciding = asyncio.create_task(self._decide(problem, again=again), name="breaker decides")
            self._deciding.add_done_callback(self._decided)
        with resting():  # a probe is requests, each with a deadline, and may be another worker's
            return await asyncio.shield(self._deciding)

    def _decided(self, _: asyncio.Task[bool]) -> None:
        self._deciding = None

    async def _decide(self, met: Fault, *, again: bool) -> bool:
        flaps = self._now() - self._reset_at < STEADY
        # A store that says when to come back is not probed before: but if it was back just now, that may be one key's.
        problem = met if met.retry_after and not (again or flaps) else await self._ask()
        if problem is None:
            return True
        self._failures = self._failures if flaps else 0
        self.trip = Trip(problem, self._now())
        self._waiting = asyncio.create_task(self._until_reset(problem, self.trip.since), name="breaker waits")
        self._on_trip(problem)
        self._changed()
        return False

    async def _until_reset(self, problem: Fault | None, since: datetime) -> None:
        while problem is not None:
            self._failures += 1
            await self._sleep(problem.retry_after or self._backoff(self._failures, base=PROBE_BASE, cap=PROBE_CAP))
            problem = await self._ask()
            if problem is not None:
                self.trip = Trip(problem, since)
        self.trip, self._reset_at = None, self._now()
        self._on_reset((self._now() - since).total_seconds())
        self._changed()

    async def _ask(self) -> Fault | None:
        """Probe. A bug there is logged and waited out: if it ended the probing, the breaker would never reset."""
        try:
            return await self._probe()
        except Exception as bug:
            log.exception("unexpected_error")
            return fault("internal_error", type(bug).__name__)

    async def close(self) -> None:
        """Stop probing."""
        tasks = [task for task in (self._deciding, self._waiting) if task and not task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Breakers:
    """One breaker for the store, one for the presigner, one for each watch's bucket, and their log events.

    ``changed`` is called after each trip and reset.
    """

    def __init__(
        self,
        buckets: Mapping[str, Bucket],
        presigner: Presigner,
        changed: Callable[[], None],
        backoff: Callable[..., float] = backoff,
    ) -> None:
        self._buckets = buckets
        self._presigner = presigner
        self._changed, self._backoff = changed, backoff
        self._faulty_watch = next(iter(buckets), "")
        self._distinct = {_bucket_and_headers(bucket): bucket for bucket in buckets.values()}
        self._next_buckets = itertools.cycle(self._distinct.values())
        self.store = self._breaker(self._probe_store, "store.unreachable", "store.back")
        self.presigner = self._breaker(self._probe_presigner, "presigner.unreachable", "presigner.back")
        self.watches = {
            name: self._breaker(
                partial(self._probe_watch, name),
                "watch.blocked",
                "watch.unblocked",
                watch=name,
                bucket=bucket.watch.bucket,
            )
            for name, bucket in buckets.items()
        }

    def may_send(self, watch: str) -> bool:
        """Return whether requests of ``watch`` may go now."""
        return not (self.store.trip or self.presigner.trip or self.watches[watch].trip)

    async def is_files_own(self, watch: str, problem: Fault, *, again: bool = False) -> bool:
        """Return whether a fault counts against the file: only if another request to its bucket goes through now.

        What may concern all is asked first: the presigner by a grant, the store by another bucket. The
        watch's own bucket has the last word, so one that fails or is refused as a whole blocks its watch
        alone. ``again``: the file met the same fault before.
        """
        if problem.code in LOCAL:
            return True
        if isinstance(problem, (PresignerFault, GrantFault)):
            return await self.presigner.is_files_own(problem)
        if isinstance(problem, StoreFault):
            self._faulty_watch = watch
            if not await self.store.is_files_own(problem, again=again):
                return False
        breaker = self.watches[watch]
        if isinstance(problem, WatchFault) and not isinstance(problem, BucketFault) and not breaker.trip:
            # Keys that were rotated, or a bucket that moved, are found before anyone calls it blocked.
            self._presigner.look_again(self._buckets[watch].watch.bucket)
        return await breaker.is_files_own(problem, again=True) and not self.store.trip

    def _breaker(self, probe: Callable[[], Awaitable[Fault | None]], trip: str, reset: str, **fields: Any) -> Breaker:
        def on_trip(problem: Fault) -> None:
            log.error(trip, error_code=problem.code, error=problem.message, fix=problem.fix, **fields)

        def on_reset(seconds: float) -> None:
            log.info(reset, duration_ms=round(seconds * 1000), **fields)

        return Breaker(probe, on_trip=on_trip, on_reset=on_reset, changed=self._changed, backoff=self._backoff)

    async def _probe_watch(self, watch: str) -> Fault | None:
        """Probe the watch's own bucket. If the store turns out to be away, its breaker trips, not the watch's."""
        problem = await self._buckets[watch].probe()
        if not isinstance(problem, StoreFault) or self.watches[watch].trip:
            return problem
        self._faulty_watch = watch
        return problem if await self.store.is_files_own(problem, again=True) else None

    async def _probe_store(self) -> Fault | None:
        """Return the fault of a store that serves no bucket; one bucket that goes through means it is there.

        Before it trips, another bucket is probed than the one that met the fault, and all where that fails too;
        then each in turn. So no bucket resets it that was not probed as it tripped.
        """
        if self.store.trip:
            return _of_store(await next(self._next_buckets).probe())
        witness, *others = self._buckets_to_probe()
        problem = _of_store(await witness.probe())
        if problem is None:
            return None
        answers = await asyncio.gather(*(bucket.probe() for bucket in others))
        return problem if all(map(_of_store, answers)) else None

    def _buckets_to_probe(self) -> list[Bucket]:
        """Return one bucket for each bucket and headers: other buckets first, then other headers, the faulty last."""
        faulty = self._buckets[self._faulty_watch]
        name, same = faulty.watch.bucket, _bucket_and_headers(faulty)
        return sorted(
            self._distinct.values(), key=lambda each: (each.watch.bucket == name) + (_bucket_and_headers(each) == same)
        )

    async def _probe_presigner(self) -> Fault | None:
        """Ask for a grant, of any watch; one that has almost expired as it comes is a fault."""
        return await next(iter(self._buckets.values())).probe_grant()

    async def ask_presigner(self) -> None:
        """Ask for a grant before one is needed: where none comes, the breaker trips from the start and logs it."""
        problem = await self._probe_presigner()
        if problem is not None:
            await self.presigner.is_files_own(problem)

    async def close(self) -> None:
        """Stop every probe."""
        for breaker in (self.store, self.presigner, *self.watches.values()):
            await breaker.close()


def _bucket_and_headers(bucket: Bucket) -> tuple[object, ...]:
    """Return what may make a store answer one watch differently from the next: its bucket and its headers."""
    return bucket.watch.bucket, *sorted(bucket.watch.headers.items())


def _of_store(problem: Fault | None) -> StoreFault | None:
    """Return a probe's fault if it means that the store doesn't serve; a refusal of one bucket or header doesn't."""
    return problem if isinstance(problem, StoreFault) else None
