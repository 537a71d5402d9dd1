"""The gates of one daemon: one for the store, one for the presigner, one for each watch, and their events."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from presignd.errors import Fault, PresignerFault, StoreFault
from presignd.log import get_logger
from presignd.pipeline.bucket import SHORT, Bucket
from presignd.pipeline.gate import Gate
from presignd.pipeline.keys import check_key
from presignd.presign import GrantRequest, Operation, Presigner

log = get_logger()


class Gates:
    """Opens and shuts together with what the log says about it. ``changed`` is called after each move."""

    def __init__(self, buckets: Mapping[str, Bucket], presigner: Presigner, changed: Callable[[], None]) -> None:
        self._buckets = buckets
        self._presigner = presigner
        self._changed = changed
        self.store = self._gate(self._probe_store, "store.unreachable", "store.back")
        self.presigner = self._gate(self._probe_presigner, "presigner.unreachable", "presigner.back")
        self.watches = {
            name: self._gate(bucket.probe, "watch.blocked", "watch.unblocked", watch=name, bucket=bucket.watch.bucket)
            for name, bucket in buckets.items()
        }

    def is_open(self, watch: str) -> bool:
        """Tell whether requests of ``watch`` may go now."""
        return not (self.store.shut or self.presigner.shut or self.watches[watch].shut)

    def _gate(self, probe: Callable[[], Awaitable[Fault | None]], shut: str, back: str, **fields: Any) -> Gate:
        def on_shut(problem: Fault) -> None:
            log.error(shut, error_code=problem.code, error=problem.message, fix=problem.fix, **fields)

        def on_open(seconds: float) -> None:
            log.info(back, duration_ms=round(seconds * 1000), **fields)

        return Gate(probe, on_shut=on_shut, on_open=on_open, changed=self._changed)

    async def _probe_store(self) -> Fault | None:
        """Ask by a watch that is not refused itself; only an absent store is the store's fault."""
        names = [name for name, gate in self.watches.items() if not gate.shut] or list(self.watches)
        problem = await self._buckets[names[0]].probe()
        return problem if isinstance(problem, StoreFault) else None

    async def _probe_presigner(self) -> Fault | None:
        bucket = next(iter(self._buckets.values()))
        request = GrantRequest(Operation.HEAD, bucket.watch.bucket, check_key(bucket.watch), SHORT)
        try:
            await self._presigner.grant([request])
        except PresignerFault as problem:
            return problem
        return None

    async def close(self) -> None:
        """Stop every probe."""
        for gate in (self.store, self.presigner, *self.watches.values()):
            await gate.close()
