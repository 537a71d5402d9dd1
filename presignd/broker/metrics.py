"""The broker's metrics, in their own registry. Labels are fixed words and the names of tokens."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping
from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

import presignd
from presignd.broker.fleet.activity import Call
from presignd.telemetry.metrics import WEBHOOK_GIVEN_UP, WEBHOOK_OFF, WEBHOOK_TRIES, WEBHOOK_WAITING

REGISTRY = CollectorRegistry()
for shared in (WEBHOOK_TRIES, WEBHOOK_GIVEN_UP, WEBHOOK_WAITING, WEBHOOK_OFF):
    REGISTRY.register(shared)

REQUESTS = Counter("presignd_broker_requests_total", "Requests answered.", ("path", "status"), registry=REGISTRY)
GRANTS = Counter(
    "presignd_broker_grants_total",
    'Grants answered; result is "granted" or the code of the refusal.',
    ("token", "operation", "result"),
    registry=REGISTRY,
)
LINKS = Counter(
    "presignd_broker_links_total",
    'Stable links asked for; result is "made", "known" for one that was recorded before, or the code of the refusal.',
    ("token", "result"),
    registry=REGISTRY,
)
OPENINGS = Counter(
    "presignd_broker_link_requests_total",
    'Requests for stable links; result is "opened", "head", "page" or why one did not open.',
    ("result",),
    registry=REGISTRY,
)
INVITED_FILES = Counter(
    "presignd_broker_invited_files_total",
    'Files by invitation; result is "reserved", "refused", "received", "fetched", "cancelled" or "expired".',
    ("result",),
    registry=REGISTRY,
)
SECONDS = Histogram(
    "presignd_broker_request_duration_seconds",
    "From the head of a request for grants to its answer.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0),
    registry=REGISTRY,
)
IN_FLIGHT = Gauge("presignd_broker_requests_in_flight", "Requests for grants being answered.", registry=REGISTRY)
INBOX_WAITING = Gauge(
    "presignd_broker_inbox_waiting", "Calls that wait for a file to come in by an invitation.", registry=REGISTRY
)
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
LAST_SEEN = Gauge(
    "presignd_broker_token_last_seen_timestamp_seconds",
    "When a token was last used at this broker; none before its first use since the start.",
    ("token",),
    registry=REGISTRY,
)
CLOCK_DIFFERENCE = Gauge(
    "presignd_broker_token_clock_difference_seconds",
    "The client's clock minus the broker's at the token's last use, by its Date; none without one.",
    ("token",),
    registry=REGISTRY,
)
CLIENTS = Gauge(
    "presignd_broker_token_client_info",
    'Always 1; the label names the version of the daemon that used the token last, "" for another program.',
    ("token", "version"),
    registry=REGISTRY,
)
LINKS_ALIVE = Gauge(
    "presignd_broker_token_links_alive",
    "Stable links that open; only at [fleet] listen, and where there is a [state].",
    ("token",),
    registry=REGISTRY,
)
OF_TOKENS = (TOKEN_ENDS, LAST_SEEN, CLOCK_DIFFERENCE, CLIENTS, LINKS_ALIVE)
"""Gauges that are computed anew each time, as a token may be gone."""
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


def show_call(token: str, call: Call) -> None:
    """Set the gauges of a token's last use."""
    LAST_SEEN.labels(token).set(call.at.timestamp())
    CLIENTS.labels(token, call.version).set(1)
    if (difference := call.clock_difference) is not None:
        CLOCK_DIFFERENCE.labels(token).set(difference)


def show_links(alive: Mapping[str, int]) -> None:
    """Set the number of links of each token."""
    for token, number in alive.items():
        LINKS_ALIVE.labels(token).set(number)


BUILD.labels(presignd.__version__, platform.python_version()).set(1)
for _gauge in (CREDENTIAL_ENDS, CERTIFICATE_ENDS):
    show_end(_gauge, None)
