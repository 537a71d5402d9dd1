"""What a store supports for guests, probed once for each invitation's prefix."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

from presignd.broker.invitations.desk import Honoured
from presignd.errors import Fault
from presignd.presign import GrantRequest, Operation
from presignd.s3.checksums import HEADERS
from presignd.s3.limits import CHECK_NAME
from presignd.store.preflight import preflight
from presignd.store.probe import AUTO, Probe
from presignd.store.signed import SignedStore
from presignd.store.support import Handling
from presignd.telemetry.log import get_logger

AGAIN_SECONDS = 60.0
"""How long writes have no conditions after a failed probe: keys are unique without them."""

EXPIRES = 300
PREFLIGHT_TIMEOUT = 5.0
MD5 = "md5"
OF_PAGES = ("Content-Type", "If-None-Match", HEADERS[AUTO], "x-amz-checksum-algorithm", "x-amz-checksum-type")
"""Headers that a page sends with CRC64NVME: with a file or a part, and when an upload in parts is created."""

log = get_logger()


class Checksums(NamedTuple):
    """The checksum algorithm that a store verifies: for a file as one PUT, and for each part."""

    put: str = MD5
    parts: str = MD5


class Facts(NamedTuple):
    """What one bucket supports below one prefix."""

    honoured: Honoured
    checksums: Checksums


UNKNOWN = Facts(Honoured(put=False, complete=False), Checksums())


class StoreFacts:
    """Probes the store by requests on a check object below the prefix, and remembers the result.

    ``origin`` is the page's; the page may send only the headers that the store's CORS allows.
    """

    def __init__(self, store: Callable[[], SignedStore], origin: str) -> None:
        self._store, self._origin = store, origin
        self._asked: SignedStore | None = None
        self._known: dict[tuple[str, str], tuple[Facts, float]] = {}
        self._asking: defaultdict[tuple[str, str], asyncio.Lock] = defaultdict(asyncio.Lock)

    async def honoured(self, bucket: str, prefix: str) -> Honoured:
        """Return which conditions the store honours below ``prefix``."""
        return (await self.of(bucket, prefix)).honoured

    async def of(self, bucket: str, prefix: str) -> Facts:
        """Return the facts for ``prefix``; ``UNKNOWN`` while they can't be found out."""
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

    async def _ask(self, bucket: str, prefix: str) -> tuple[Facts, float]:
        key = f"{prefix}{CHECK_NAME}"
        probe = Probe(self._store(), bucket, key, {})
        try:
            put, complete = await probe.put_conditions(), await probe.complete_conditions()
            allowed = await self._lets_pages_send(GrantRequest(Operation.PUT, bucket, key, EXPIRES, public=True))
            checksums = await _proven(probe) if allowed else Checksums()
            await probe.remove()
        except Fault as fault:
            log.warning("invitation.not_probed", bucket=bucket, prefix=prefix, error_code=fault.code)
            return UNKNOWN, time.monotonic() + AGAIN_SECONDS
        done = Handling.HONOURED
        return Facts(Honoured(put.if_none_match is done, complete.if_none_match is done), checksums), float("inf")

    async def _lets_pages_send(self, request: GrantRequest) -> bool:
        """Return whether the store allows the headers of CRC64NVME; False if this host can't reach its public name."""
        store = self._store()
        try:
            for method in ("PUT", "POST"):
                grant = await store.grant(request)
                if await preflight(store, grant, method, self._origin, OF_PAGES, timeout=PREFLIGHT_TIMEOUT):
                    return False
        except Fault:
            return False
        return True


async def _proven(probe: Probe) -> Checksums:
    """Return CRC64NVME if the store refuses a wrong one and returns a right one, else MD5."""
    whole, part = [await probe.choose(AUTO, in_parts=in_parts) for in_parts in (False, True)]
    return Checksums(*(algorithm if proven else MD5 for algorithm, proven in (whole, part)))
