"""Every metric, declared once. Counters are incremented when things happen; gauges are set when metrics are read.

No label holds a path, a key or a URL: labels are names of watches, or fixed words.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Iterable
from functools import lru_cache
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import choose_encoder

import presignd

disable_created_metrics()  # type: ignore[no-untyped-call]  # prometheus-client leaves it unannotated

REGISTRY = CollectorRegistry()
"""A registry of our own: only metrics declared here are exported."""

STATUSES = ("linked", "adopted", "vanished", "superseded", "quarantined")
"""How a version ends (``file.done``) or stops (``file.quarantined``)."""

_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14400.0)


Metric = TypeVar("Metric", Counter, Gauge, Histogram)


@lru_cache(maxsize=1024)
def labelled(metric: Metric, *labels: str) -> Metric:
    """Return a metric with these labels, cached: five lookups a file took as long as its two signatures."""
    return metric.labels(*labels)


def _counter(name: str, words: str, *labels: str) -> Counter:
    return Counter(name, words, labels, registry=REGISTRY)


def _gauge(name: str, words: str, *labels: str) -> Gauge:
    return Gauge(name, words, labels, registry=REGISTRY)


# --- incremented when things happen -----------------------------------------------------------------
UPLOADS = _counter("presignd_uploads_total", "Versions that ended, or were quarantined.", "watch", "status")
UPLOAD_BYTES = _counter("presignd_upload_bytes_total", "Bytes of versions that ended as linked.", "watch")
UPLOAD_DURATION = Histogram(
    "presignd_upload_duration_seconds",
    "From queued to done, of versions that ended as linked: duration_ms of file.done.",
    ("watch",),
    buckets=_SECONDS,
    registry=REGISTRY,
)
LAST_UPLOAD = _gauge("presignd_last_upload_timestamp_seconds", "When a version last ended as linked.", "watch")
PRESIGN_REQUESTS = _counter("presignd_presign_requests_total", "Grants asked for.", "operation", "result")
WATCH_OVERFLOWS = _counter("presignd_watch_overflows_total", "Times that events may have been lost.", "watch")
RESCAN_FOUND = _counter("presignd_rescan_found_total", "Files that only a scan on the timer found.", "watch")
INBOX_RECEIVED = _counter("presignd_inbox_received_total", "Files that came in by an invitation.", "inbox")
INBOX_BYTES = _counter("presignd_inbox_received_bytes_total", "Their bytes.", "inbox")
CREDENTIAL_EXPIRY = _gauge(
    "presignd_credential_expiry_timestamp_seconds", "When the signing credential expires; +Inf if it does not."
)

WEBHOOK_TRIES = _counter("presignd_webhook_tries_total", "Messages sent to webhooks, each try.", "webhook", "result")
WEBHOOK_GIVEN_UP = _counter("presignd_webhook_given_up_total", "Messages that no try delivered.", "webhook")

# --- set when metrics are read ------------------------------------------------------------------
PENDING = _gauge("presignd_pending_files", "Versions queued or under way to their link.", "watch")
OLDEST_PENDING = _gauge("presignd_oldest_pending_seconds", "Age of the oldest queued version; 0 without any.", "watch")
QUARANTINED = _gauge("presignd_quarantined_files", "Versions that wait for a person.", "watch")
SETTLING = _gauge("presignd_settling_files", "Paths that are not complete yet.", "watch")
OLDEST_SETTLING = _gauge("presignd_oldest_settling_seconds", "Age of the oldest of them; 0 without any.", "watch")
INBOX_WAITING = _gauge("presignd_inbox_waiting_files", "Files that came in and are not in the folder yet.", "inbox")
INBOX_STOPPED = _gauge("presignd_inbox_stopped_files", "Of these, files that can't be brought in.", "inbox")
INBOX_LAST = _gauge("presignd_inbox_last_timestamp_seconds", "When a file last came in; 0 for none.", "inbox")
INFLIGHT = _gauge("presignd_inflight_uploads", "Uploads under way.")
WEBHOOK_WAITING = _gauge("presignd_webhook_waiting", "Messages that wait to be delivered.", "webhook")
WEBHOOK_OFF = _gauge("presignd_webhook_off", "1 while a webhook is off, as its receiver answered 410.", "webhook")
STORE_UP = _gauge("presignd_store_up", "1 while the store answers, 0 while presignd waits for it.")

BUILD = _gauge("presignd_build_info", "Always 1; what runs stands in the labels.", "version", "python")

BUILD.labels(presignd.__version__, platform.python_version()).set(1)
CREDENTIAL_EXPIRY.set(math.inf)
STORE_UP.set(1)


def export_watch(watch: str) -> None:
    """Export a watch's counters from zero: a rate over a series that appears later misses its first step."""
    for status in STATUSES:
        UPLOADS.labels(watch, status)
    for metric in (UPLOAD_BYTES, UPLOAD_DURATION, WATCH_OVERFLOWS, RESCAN_FOUND):
        metric.labels(watch)


def show_webhooks(webhooks: Iterable[tuple[str, int, bool]]) -> None:
    """Set the gauges of all webhooks: each one's name, how many messages wait, and whether it is off."""
    for gauge in (WEBHOOK_WAITING, WEBHOOK_OFF):
        gauge.clear()
    for name, waiting, off in webhooks:
        export_webhook(name)
        WEBHOOK_WAITING.labels(name).set(waiting)
        WEBHOOK_OFF.labels(name).set(off)


def export_webhook(webhook: str) -> None:
    """Export a webhook's counters from zero, as a watch's."""
    for result in ("delivered", "failed"):
        WEBHOOK_TRIES.labels(webhook, result)
    WEBHOOK_GIVEN_UP.labels(webhook)


def rendered(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """Return all metrics and their content type: OpenMetrics where ``Accept`` names it, else Prometheus' own format.

    Nothing else of the header is passed on: the library fails on a version that is not a number, and repeats it.
    """
    encode, content_type = choose_encoder(_OPENMETRICS if _OPENMETRICS in accept else "")
    return encode(registry), content_type


_OPENMETRICS = "application/openmetrics-text"
