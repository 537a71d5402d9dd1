"""The audit log: who requested which grants, and the results. It holds no URL and no token."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from presignd.broker import metrics
from presignd.broker.limits import yielding
from presignd.broker.policy import Refusal
from presignd.broker.state.links import Link
from presignd.errors import Fault
from presignd.presign import Grant, GrantRequest
from presignd.s3.limits import MAX_KEY
from presignd.telemetry.log import get_logger

EACH_SECONDS = 1.0
"""Shortest time between two events for rejected calls: strangers must not fill the disk."""

LONGEST_AGENT = 200

GrantResult = Grant | Refusal | Fault

log = get_logger()


async def record(token: str, client: str, requests: Sequence[GrantRequest], results: Sequence[GrantResult]) -> None:
    """Log a batch: one event for each object and result. The parts of one upload share an event, with a ``count``."""
    outcomes = [
        (each.operation, "" if isinstance(result, Grant) else str(result.code))
        for each, result in zip(requests, results, strict=True)
    ]
    for (operation, code), number in Counter(outcomes).items():
        metrics.GRANTS.labels(token, operation, code or "granted").inc(number)
    alike: dict[tuple[str, ...], list[int]] = {}
    for place, (request, outcome) in enumerate(zip(requests, outcomes, strict=True)):
        alike.setdefault((request.bucket, request.key, *outcome), []).append(place)
    async for places in yielding(alike.values()):
        _log(token, client, requests[places[-1]], results[places[-1]], len(places))


def _log(token: str, client: str, request: GrantRequest, result: GrantResult, count: int) -> None:
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
    if isinstance(result, Grant):
        log.info("grant.issued", **fields, expires_at=result.expires_at)
    else:
        log.warning("grant.refused", **fields, error_code=str(result.code))


# --- stable links ----------------------------------------------------------------------------------
def link_created(token: str, client: str, link: Link) -> None:
    """Log a new link by its ``ref``: nothing in the log opens it."""
    ends = {} if link.new.ends_at is None else {"expires_at": link.new.ends_at}
    log.info("link.created", by=token, client=client, **_named(link), **ends)


def link_revoked(token: str, client: str, link: Link) -> None:
    """Log a revoked link."""
    log.info("link.revoked", by=token, client=client, **_named(link), opened=link.opened)


def link_not_made(token: str, client: str, bucket: str, key: str, code: str) -> None:
    """Log a link that was requested with a token and refused."""
    more = {"bucket": bucket[:MAX_KEY], "key": key[:MAX_KEY], "error_code": str(code)}
    log.warning("link.refused", by=token, client=client, **more)


def _named(link: Link) -> dict[str, Any]:
    return {"ref": link.ref, "bucket": link.new.bucket, "key": link.new.key}


def link_opened(client: str, agent: str, link: Link) -> None:
    """Log that a link was opened, and by whom if that is known."""
    log.info("link.opened", client=client, agent=agent[:LONGEST_AGENT], **_named(link), opened=link.opened)


def link_refused(client: str, code: str, link: Link | None) -> None:
    """Log a link that did not open, or count it for the next event."""
    _refused_links.log(client=client, error_code=code, **(_named(link) if link else {}))


@dataclass(slots=True)
class ThrottledEvent:
    """Logs an event that strangers cause: at most once a second, with the number of those left out."""

    event: str
    _next: float = 0.0
    _missed: int = field(default=0)

    def log(self, **fields: object) -> None:
        """Log the event, or count it for the next one."""
        now = time.monotonic()
        if now < self._next:
            self._missed += 1
            return
        self._next, missed, self._missed = now + EACH_SECONDS, self._missed, 0
        log.warning(self.event, **fields, **({"others": missed} if missed else {}))


_refused_links = ThrottledEvent("link.refused")


class RejectedCalls(ThrottledEvent):
    """Logs rejected calls."""

    def __init__(self) -> None:
        super().__init__("request.refused")

    def record(self, client: str, path: str, status: int, code: str, token: str = "") -> None:
        """Log a rejected call, or count it for the next event."""
        known = {"by": token} if token else {}
        self.log(client=client, path=path[:200], status=status, error_code=code, **known)
