"""The audit log: who asked for what, when, and what came of it. Never a URL, never a token."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from presignd.broker import metrics
from presignd.broker.policy import Refusal
from presignd.errors import Fault
from presignd.limits import MAX_KEY
from presignd.log import get_logger
from presignd.presign import Grant, GrantRequest

EACH_SECONDS = 1.0
"""How often at most strangers' requests are told of: they must not fill the disk."""

log = get_logger()


def grants(
    token: str, client: str, requests: Sequence[GrantRequest], answers: Sequence[Grant | Refusal | Fault]
) -> None:
    """Tell of a batch: one event for each object and outcome; parts of one upload are one, with their ``count``."""
    told: dict[tuple[str, str, str, str], tuple[int, GrantRequest, Grant | Refusal | Fault]] = {}
    for request, answer in zip(requests, answers, strict=True):
        code = "" if isinstance(answer, Grant) else str(answer.code)
        at = (request.operation, request.bucket, request.key, code)
        count = told[at][0] if at in told else 0
        told[at] = count + 1, request, answer
        metrics.GRANTS.labels(token, request.operation, code or "granted").inc()
    for count, request, answer in told.values():
        _tell(token, client, request, answer, count)


def _tell(token: str, client: str, request: GrantRequest, answer: Grant | Refusal | Fault, count: int) -> None:
    fields = {
        "by": token,
        "client": client,
        "operation": str(request.operation),
        "bucket": request.bucket[:MAX_KEY],
        "key": request.key[:MAX_KEY],
    }
    if request.size is not None:
        fields["size"] = request.size  # type: ignore[assignment] # a number among texts
    if count > 1:
        fields["count"] = count  # type: ignore[assignment] # as above
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
