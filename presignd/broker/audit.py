"""The audit log: who asked for what, when, and what came of it. Never a URL, never a token."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from presignd.broker import metrics
from presignd.broker.policy import Refusal
from presignd.broker.turns import in_turn
from presignd.errors import Fault
from presignd.presign import Grant, GrantRequest
from presignd.s3.limits import MAX_KEY
from presignd.telemetry.log import get_logger

EACH_SECONDS = 1.0
"""How often at most strangers' requests are told of: they must not fill the disk."""

GrantResult = Grant | Refusal | Fault

log = get_logger()


async def grants(token: str, client: str, requests: Sequence[GrantRequest], answers: Sequence[GrantResult]) -> None:
    """Tell of a batch: one event for each object and outcome; parts of one upload are one, with their ``count``."""
    outcomes = [
        (each.operation, "" if isinstance(told, Grant) else str(told.code))
        for each, told in zip(requests, answers, strict=True)
    ]
    for (operation, code), number in Counter(outcomes).items():
        metrics.GRANTS.labels(token, operation, code or "granted").inc(number)
    alike: dict[tuple[str, ...], list[int]] = {}
    for place, (request, outcome) in enumerate(zip(requests, outcomes, strict=True)):
        alike.setdefault((request.bucket, request.key, *outcome), []).append(place)
    async for places in in_turn(alike.values()):
        _tell(token, client, requests[places[-1]], answers[places[-1]], len(places))


def _tell(token: str, client: str, request: GrantRequest, answer: GrantResult, count: int) -> None:
    fields: dict[str, Any] = {
        "by": token,
        "client": client,
        "operation": str(request.operation),
        "bucket": request.bucket[:MAX_KEY],
        "key": request.key[:MAX_KEY],
    }
    if request.size is not None:
        fields["size"] = request.size
    if count > 1:
        fields["count"] = count
    if isinstance(answer, Grant):
        log.info("grant.issued", **fields, expires_at=answer.expires_at)
    else:
        log.warning("grant.refused", **fields, error_code=str(answer.code))


@dataclass(slots=True)
class Strangers:
    """Tells of requests that were refused as a whole: at most one a second, with how many there were."""

    _next: float = 0.0
    _missed: int = field(default=0)

    def refused(self, client: str, path: str, status: int, code: str, token: str = "") -> None:
        """Tell of one, or count it."""
        now = time.monotonic()
        if now < self._next:
            self._missed += 1
            return
        self._next, missed, self._missed = now + EACH_SECONDS, self._missed, 0
        known = {"by": token} if token else {}
        more = {"others": missed} if missed else {}
        log.warning("request.refused", client=client, path=path[:200], status=status, error_code=code, **known, **more)
