"""Whether a store honours conditional writes, found out once for each invitation's prefix."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable

from presignd.broker.invitations.desk import Honoured
from presignd.errors import Fault
from presignd.s3.limits import CHECK_NAME
from presignd.store.probe import Handling, Probe
from presignd.store.signed import SignedStore
from presignd.telemetry.log import get_logger

AGAIN_SECONDS = 60.0
"""After a probe that failed, writes go without conditions for so long: keys are unique without them."""

log = get_logger()


class ConditionalWrites:
    """Asks the store, by requests on a check object below the prefix, and remembers the answer."""

    def __init__(self, store: Callable[[], SignedStore]) -> None:
        self._store = store
        self._asked: SignedStore | None = None
        self._known: dict[tuple[str, str], tuple[Honoured, float]] = {}
        self._asking: defaultdict[tuple[str, str], asyncio.Lock] = defaultdict(asyncio.Lock)

    async def of(self, bucket: str, prefix: str) -> Honoured:
        """Return what the store honours below ``prefix``; nothing while that can't be found out."""
        if self._asked is not self._store():  # a reload may have named another store
            self._asked = self._store()
            self._known.clear()
        place = bucket, prefix
        async with self._asking[place]:
            found, until = self._known.get(place, (None, 0.0))
            if found is None or time.monotonic() >= until:
                found, until = await self._ask(bucket, prefix)
                self._known[place] = found, until
            return found

    async def _ask(self, bucket: str, prefix: str) -> tuple[Honoured, float]:
        probe = Probe(self._store(), bucket, f"{prefix}{CHECK_NAME}", {})
        try:
            put, complete = await probe.put_conditions(), await probe.complete_conditions()
            await probe.remove()
        except Fault as fault:
            log.warning("invitation.not_probed", bucket=bucket, prefix=prefix, error_code=fault.code)
            return Honoured(put=False, complete=False), time.monotonic() + AGAIN_SECONDS
        honoured = Handling.HONOURED
        return Honoured(put.if_none_match is honoured, complete.if_none_match is honoured), float("inf")
