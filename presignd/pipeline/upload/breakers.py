"""Circuit breakers: pause uploads while the store, the presigner or a watch's bucket fails for every file.

A worker that meets such a fault calls its breaker, which probes the fixed check key. Workers that call it during the
probe share its result. If the probe succeeds, the fault is the file's own. If it fails, the breaker trips, logs that
once, and probes with backoff until a probe succeeds. Then it resets and logs that once.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterable, Mapping
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
"""Full-jitter backoff between probes, in seconds: short, so that a store that is back is noticed soon."""

STEADY = timedelta(seconds=60)
"""A breaker that trips again within this time after its reset continues its backoff; later, it starts a new one."""

LOCAL = ("read_error", "too_many_files", "disk_full")
"""Faults of this machine: a probe of the store can't show whether they persist."""


@dataclass(frozen=True, slots=True)
class Trip:
    """Why a breaker has tripped, and when (UTC)."""

    fault: Fault
    since: datetime


class Breaker:
    """One circuit breaker. ``probe`` returns None if requests succeed, else the fault.

    ``on_trip`` is called with the fault and ``on_reset`` with the seconds it was tripped; ``changed`` is called
    after either. ``trip`` is None while requests may be sent.
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

    async def blames_file(self, problem: Fault, *, again: bool = False) -> bool:
        """Probe, and return True if the fault is the file's own; trip the breaker otherwise.

        If the breaker has tripped already, return False without a probe. ``again``: the file met this fault before.
        Then the probe is sent even before Retry-After has passed, so one bad key can't block all files.
        """
        if self.trip:
            return False
        if self._deciding is None or self._deciding.done():
            self._deciding = asyncio.create_task(self._decide(problem, again=again), name="breaker decides")
        with resting():  # each request of the probe has a deadline of its own
            return await asyncio.shield(self._deciding)

    async def _decide(self, met: Fault, *, again: bool) -> bool:
        flaps = self._now() - self._reset_at < STEADY
        # Respect Retry-After, unless the breaker was reset a short time ago: then it may be about one key only.
        problem = met if met.retry_after and not (again or flaps) else await self._ask()
        if problem is None:
            return True
        self._failures = self._failures if flaps else 0
        self.trip = Trip(problem, self._now())
        self._waiting = asyncio.create_task(self._until_reset(self.trip.since), name="breaker waits")
        self._on_trip(problem)
        self._changed()
        return False

    async def _until_reset(self, since: datetime) -> None:
        while self.trip:
            problem = self.trip.fault
            self._failures += 1
            await self._sleep(problem.retry_after or self._backoff(self._failures, base=PROBE_BASE, cap=PROBE_CAP))
            found = await self._ask()
            self.trip = Trip(found, since) if found else None
        self._reset_at = self._now()
        self._on_reset((self._reset_at - since).total_seconds())
        self._changed()

    async def _ask(self) -> Fault | None:
        """Probe. Log an unexpected exception and return it as a fault: else the breaker would never reset."""
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

    ``changed`` is called after each trip and reset, ``on_event`` with each event that is logged and its fields.
    """

    def __init__(
        self,
        buckets: Mapping[str, Bucket],
        presigner: Presigner,
        changed: Callable[[], None],
        backoff: Callable[..., float] = backoff,
        on_event: Callable[[str, Mapping[str, Any]], None] = lambda *_: None,
    ) -> None:
        self._buckets = buckets
        self._presigner = presigner
        self._changed, self._backoff, self._on_event = changed, backoff, on_event
        self._faulty_watch = next(iter(buckets), "")
        self._distinct = {_bucket_and_headers(bucket): bucket for bucket in buckets.values()}
        self._next_buckets = itertools.cycle(self._distinct.values())
        self.store = self._breaker(self._probe_store, "store.unreachable", "store.back", buckets=buckets.values())
        self.presigner = self._breaker(
            self._probe_presigner, "presigner.unreachable", "presigner.back", buckets=buckets.values()
        )
        self.watches = {
            name: self._breaker(
                partial(self._probe_watch, name),
                "watch.blocked",
                "watch.unblocked",
                buckets=[bucket],
                watch=name,
                bucket=bucket.watch.bucket,
            )
            for name, bucket in buckets.items()
        }

    def may_send(self, watch: str) -> bool:
        """Return whether requests of ``watch`` may be sent now."""
        return not (self.store.trip or self.presigner.trip or self.watches[watch].trip)

    async def blames_file(self, watch: str, problem: Fault, *, again: bool = False) -> bool:
        """Probe, and return True if the fault is the file's own; trip a breaker otherwise.

        The presigner is probed by a grant. For a fault of the store, another bucket is probed first, then the
        watch's own; so a bucket that fails or refuses every request blocks only its watch. ``again``: the file met
        the same fault before.
        """
        if problem.code in LOCAL:
            return True
        if isinstance(problem, (PresignerFault, GrantFault)):
            return await self.presigner.blames_file(problem)
        if isinstance(problem, StoreFault):
            self._faulty_watch = watch
            if not await self.store.blames_file(problem, again=again):
                return False
        breaker = self.watches[watch]
        if isinstance(problem, WatchFault) and not isinstance(problem, BucketFault) and not breaker.trip:
            # Rotated keys and a bucket's new region are looked up again before the watch counts as blocked.
            self._presigner.look_again(self._buckets[watch].watch.bucket)
        return await breaker.blames_file(problem, again=True) and not self.store.trip

    def _breaker(
        self,
        probe: Callable[[], Awaitable[Fault | None]],
        trip: str,
        reset: str,
        *,
        buckets: Iterable[Bucket],
        **fields: Any,
    ) -> Breaker:
        """Make a breaker. At its reset ``buckets`` are probed anew: there may be another store at this address now."""

        def on_trip(problem: Fault) -> None:
            event = {"error_code": problem.code, "error": problem.message, "fix": problem.fix, **fields}
            log.error(trip, **event)
            self._on_event(trip, event)

        def on_reset(seconds: float) -> None:
            event = {"duration_ms": round(seconds * 1000), **fields}
            log.info(reset, **event)
            self._on_event(reset, event)
            for bucket in buckets:
                bucket.forget_support()

        return Breaker(probe, on_trip=on_trip, on_reset=on_reset, changed=self._changed, backoff=self._backoff)

    async def _probe_watch(self, watch: str) -> Fault | None:
        """Probe the watch's own bucket. If the whole store fails, trip the store's breaker, not the watch's."""
        problem = await self._buckets[watch].probe()
        if not isinstance(problem, StoreFault) or self.watches[watch].trip:
            return problem
        self._faulty_watch = watch
        return problem if await self.store.blames_file(problem, again=True) else None

    async def _probe_store(self) -> Fault | None:
        """Return the store's fault if no bucket can be used; if any bucket can be, the store works.

        Before the breaker trips, a bucket other than the faulty one is probed, and if that fails, all of them. While it
        is tripped, each is probed in turn. Only buckets that were probed when it tripped can reset it.
        """
        if self.store.trip:
            return _of_store(await next(self._next_buckets).probe())
        first, *others = self._buckets_to_probe()
        problem = _of_store(await first.probe())
        if problem is None:
            return None
        results = await asyncio.gather(*(bucket.probe() for bucket in others))
        return problem if all(map(_of_store, results)) else None

    def _buckets_to_probe(self) -> list[Bucket]:
        """Return one ``Bucket`` for each name and headers: other names first, then other headers, the faulty last."""
        faulty = self._buckets[self._faulty_watch]
        name, same = faulty.watch.bucket, _bucket_and_headers(faulty)
        return sorted(
            self._distinct.values(), key=lambda each: (each.watch.bucket == name) + (_bucket_and_headers(each) == same)
        )

    async def _probe_presigner(self) -> Fault | None:
        """Request a grant for any watch; one that has almost expired when it arrives is a fault."""
        return await next(iter(self._buckets.values())).probe_grant()

    async def ask_presigner(self) -> None:
        """Request a grant at the start, if there is any watch; if that fails, trip the breaker."""
        if self._buckets and (problem := await self._probe_presigner()):
            await self.presigner.blames_file(problem)

    async def close(self) -> None:
        """Stop every probe."""
        for breaker in (self.store, self.presigner, *self.watches.values()):
            await breaker.close()


def _bucket_and_headers(bucket: Bucket) -> tuple[object, ...]:
    """Return the bucket's name and headers: a store may answer watches differently if these differ."""
    return bucket.watch.bucket, *sorted(bucket.watch.headers.items())


def _of_store(problem: Fault | None) -> StoreFault | None:
    """Return a probe's fault if the whole store fails, None for a refusal of one bucket or header."""
    return problem if isinstance(problem, StoreFault) else None
