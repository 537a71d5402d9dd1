"""The broker's metrics, in their own registry. Labels are fixed words and the names of tokens."""

from __future__ import annotations

import math
import platform
from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

import presignd

REGISTRY = CollectorRegistry()

REQUESTS = Counter("presignd_broker_requests_total", "Requests answered.", ("path", "status"), registry=REGISTRY)
GRANTS = Counter(
    "presignd_broker_grants_total",
    'Grants answered; result is "granted" or the code of the refusal.',
    ("token", "operation", "result"),
    registry=REGISTRY,
)
SECONDS = Histogram(
    "presignd_broker_request_duration_seconds",
    "From the head of a request for grants to its answer.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0),
    registry=REGISTRY,
)
IN_FLIGHT = Gauge("presignd_broker_requests_in_flight", "Requests for grants being answered.", registry=REGISTRY)
TOKENS = Gauge("presignd_broker_tokens", "Tokens known.", registry=REGISTRY)
BROKEN_FILES = Gauge(
    "presignd_broker_token_files_refused", "Token files that grant nothing until they are fixed.", registry=REGISTRY
)
UNLISTED = Gauge(
    "presignd_broker_token_folders_unreadable",
    "Patterns of token_files whose folder can't be opened: new tokens in it wait.",
    registry=REGISTRY,
)
TOKEN_ENDS = Gauge(
    "presignd_broker_token_expiry_timestamp_seconds",
    "When a token ends; none for one that does not.",
    ("token",),
    registry=REGISTRY,
)
CREDENTIAL_ENDS = Gauge(
    "presignd_broker_credential_expiry_timestamp_seconds",
    "When the signing credential ends; +Inf when it does not.",
    registry=REGISTRY,
)
CERTIFICATE_ENDS = Gauge(
    "presignd_broker_certificate_expiry_timestamp_seconds",
    "When the broker's own certificate ends; +Inf where it has none.",
    registry=REGISTRY,
)
BUILD = Gauge(
    "presignd_broker_build_info",
    "Always 1; the labels name the version that runs.",
    ("version", "python"),
    registry=REGISTRY,
)


def show_end(gauge: Gauge, ends: datetime | None) -> None:
    """Set ``gauge`` to a time (UTC); None means never."""
    gauge.set(ends.timestamp() if ends else math.inf)


BUILD.labels(presignd.__version__, platform.python_version()).set(1)
for _gauge in (CREDENTIAL_ENDS, CERTIFICATE_ENDS):
    show_end(_gauge, None)
