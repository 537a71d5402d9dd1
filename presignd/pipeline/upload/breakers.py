"""The gates of one daemon: one for the store, one for the presigner, one for each watch, and their events."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from presignd.errors import BucketFault, Fault, GrantFault, PresignerFault, StoreFault, WatchFault
from presignd.pipeline.upload.breaker import Gate
from presignd.pipeline.upload.bucket import Bucket
from presignd.presign import Presigner
from presignd.telemetry.log import get_logger

log = get_logger()

LOCAL = ("read_error", "too_many_files", "disk_full")
"""Faults of this machine: no probe of the store tells anything about them."""


class Gates:
    """Opens and shuts together with what the log says about it. ``changed`` is called after each move."""

    def __init__(self, buckets: Mapping[str, Bucket], presigner: Presigner, changed: Callable[[], None]) -> None:
        self._buckets = buckets
        self._presigner = presigner
        self._changed = changed
        self._suspect = next(iter(buckets), "")
        self._kinds = {_kind(bucket): bucket for bucket in buckets.values()}
        self._turns = itertools.cycle(self._kinds.values())
        self.store = self._gate(self._probe_store, "store.unreachable", "store.back")
        self.presigner = self._gate(self._probe_presigner, "presigner.unreachable", "presigner.back")
        self.watches = {
            name: self._gate(
                partial(self._probe_watch, name),
                "watch.blocked",
                "watch.unblocked",
                watch=name,
                bucket=bucket.watch.bucket,
            )
            for name, bucket in buckets.items()
        }

    def is_open(self, watch: str) -> bool:
        """Tell whether requests of ``watch`` may go now."""
        return not (self.store.shut or self.presigner.shut or self.watches[watch].shut)

    async def is_files_own(self, watch: str, problem: Fault, *, again: bool = False) -> bool:
        """Tell whether a fault counts against the file: only when another request to its bucket goes through now.

        What may concern all is looked at first: the presigner by a grant, the store by another bucket. The
        watch's own bucket has the last word, so one that fails or is refused as a whole blocks its watch
        alone. ``again``: the file met the same fault before.
        """
        if problem.code in LOCAL:
            return True
        if isinstance(problem, (PresignerFault, GrantFault)):
            return await self.presigner.is_files_own(problem)
        if isinstance(problem, StoreFault):
            self._suspect = watch
            if not await self.store.is_files_own(problem, again=again):
                return False
        gate = self.watches[watch]
        if isinstance(problem, WatchFault) and not isinstance(problem, BucketFault) and not gate.shut:
            # Keys that were rotated, or a bucket that moved, are found before anyone calls it blocked.
            self._presigner.look_again(self._buckets[watch].watch.bucket)
        return await gate.is_files_own(problem, again=True) and not self.store.shut

    def _gate(self, probe: Callable[[], Awaitable[Fault | None]], shut: str, back: str, **fields: Any) -> Gate:
        def on_shut(problem: Fault) -> None:
            log.error(shut, error_code=problem.code, error=problem.message, fix=problem.fix, **fields)

        def on_open(seconds: float) -> None:
            log.info(back, duration_ms=round(seconds * 1000), **fields)

        return Gate(probe, on_shut=on_shut, on_open=on_open, changed=self._changed)

    async def _probe_watch(self, watch: str) -> Fault | None:
        """Ask by the watch's own bucket. A store that went away since it was looked at is shut, and not the watch."""
        problem = await self._buckets[watch].probe()
        if not isinstance(problem, StoreFault) or self.watches[watch].shut:
            return problem
        self._suspect = watch
        return problem if await self.store.is_files_own(problem, again=True) else None

    async def _probe_store(self) -> Fault | None:
        """Return the fault of a store that serves no bucket: one that goes through is enough to call it there.

        While it is open another bucket is asked than the one that met the fault, and all where that fails too;
        while it is shut each in turn. So what shuts it is never undone by a bucket that wasn't asked.
        """
        if self.store.shut:
            return _of_store(await next(self._turns).probe())
        witness, *others = self._witnesses()
        problem = _of_store(await witness.probe())
        if problem is None:
            return None
        answers = await asyncio.gather(*(bucket.probe() for bucket in others))
        return problem if all(map(_of_store, answers)) else None

    def _witnesses(self) -> list[Bucket]:
        """Return one bucket of each kind: of another name first, then of other headers, the suspect last."""
        suspect = self._buckets[self._suspect]
        name, kind = suspect.watch.bucket, _kind(suspect)
        return sorted(self._kinds.values(), key=lambda bucket: (bucket.watch.bucket == name) + (_kind(bucket) == kind))

    async def _probe_presigner(self) -> Fault | None:
        """Ask for a grant; one that is almost dead as it comes is none. Any watch's will do."""
        return await next(iter(self._buckets.values())).probe_grant()

    async def ask_presigner(self) -> None:
        """Ask for a grant before one is needed; where none comes, the gate is shut from the start, and says so."""
        problem = await self._probe_presigner()
        if problem is not None:
            await self.presigner.is_files_own(problem)

    async def close(self) -> None:
        """Stop every probe."""
        for gate in (self.store, self.presigner, *self.watches.values()):
            await gate.close()


def _kind(bucket: Bucket) -> tuple[object, ...]:
    """Return what may make a store answer one watch in another way than the next: its bucket and its headers."""
    return bucket.watch.bucket, *sorted(bucket.watch.headers.items())


def _of_store(problem: Fault | None) -> StoreFault | None:
    """Return a probe's fault where it says that the store doesn't serve; what refuses one bucket or header serves."""
    return problem if isinstance(problem, StoreFault) else None
