"""What ``/readyz`` and ``/metrics`` tell, from the status document."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import TYPE_CHECKING, Any

from presignd.telemetry import metrics

if TYPE_CHECKING:
    from collections.abc import Iterable

    Document = dict[str, Any]


def unready(status: Document, phase: str) -> list[str]:
    """Name what keeps files from getting their links now: lost folders, and what is waited for."""
    if phase != "ready":
        return [phase]
    lost = [f"watch {watch['name']}: its folder is away" for watch in status["watches"] if watch["lost"]]
    return lost + [f"{found['what']}: {found['code']}: {found['cause']}" for found in status["blocked"]]


def show_gauges(status: Document, now: datetime) -> None:
    """Set the metrics that are looked up, from the status document; of watches that are gone nothing is left."""
    watched = (
        metrics.PENDING,
        metrics.OLDEST_PENDING,
        metrics.QUARANTINED,
        metrics.SETTLING,
        metrics.OLDEST_SETTLING,
    )
    for gauge in watched:
        gauge.clear()
    settling = Counter(found["watch"] for found in status["settling"])
    for watch in status["watches"]:
        name, counts = watch["name"], watch["counts"]
        metrics.export_watch(name)
        metrics.PENDING.labels(name).set(sum(counts[s] for s in ("queued", "uploading", "verified", "linked")))
        metrics.OLDEST_PENDING.labels(name).set(_age([watch["oldest_queued_at"]], now))
        metrics.QUARANTINED.labels(name).set(counts["quarantined"])
        metrics.SETTLING.labels(name).set(settling[name])
        since = (found["since"] for found in status["settling"] if found["watch"] == name)
        metrics.OLDEST_SETTLING.labels(name).set(_age(since, now))
    metrics.INFLIGHT.set(len(status["in_flight"]))
    metrics.STORE_UP.set(not any(found["part"] == "store" for found in status["blocked"]))


def _age(times: Iterable[str | None], now: datetime) -> float:
    ages = [(now - datetime.fromisoformat(time)).total_seconds() for time in times if time]
    return max([0.0, *ages])
