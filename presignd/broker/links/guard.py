"""Protect links from guessing: limits for each client, and passes for clients that opened one. Pure."""

from __future__ import annotations

import hmac
import ipaddress
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256

PIN_TRIES = 10
PIN_WINDOW = timedelta(hours=1)
"""Most tries of a link's PIN in this time, and most tries of any PIN by one client."""

MISSES = 60
MISS_WINDOW = timedelta(minutes=1)
"""Most requests of one client for unknown links in this time."""

MOST_CLIENTS = 10_000
"""Most clients remembered; beyond that, the one whose last request is oldest is forgotten."""

_IPV6_NETWORK = 64


@dataclass(slots=True)
class _Count:
    since: datetime
    number: int


class ClientLimit:
    """At most ``most`` in ``window`` for each client. An IPv6 network (/64) is one client."""

    def __init__(self, most: int, window: timedelta, clients: int = MOST_CLIENTS) -> None:
        self._most, self._window, self._clients = most, window, clients
        self._counts: OrderedDict[str, _Count] = OrderedDict()

    def wait(self, client: str, now: datetime) -> int:
        """Return 0 if the client has a try left, else the seconds until it has."""
        count = self._counts.get(network_of(client))
        if count is None or count.number < self._most or count.since + self._window <= now:
            return 0
        return max(1, int((count.since + self._window - now).total_seconds()))

    def take(self, client: str, now: datetime) -> None:
        """Count one."""
        name = network_of(client)
        count = self._counts.setdefault(name, _Count(now, 0))
        if count.since + self._window <= now:
            count.since, count.number = now, 0
        count.number += 1
        self._counts.move_to_end(name)
        if len(self._counts) > self._clients:
            self._counts.popitem(last=False)

    def forgive(self, client: str) -> None:
        """Give a client all its tries back."""
        self._counts.pop(network_of(client), None)


def network_of(client: str) -> str:
    """Return what counts as one client: an address, or an IPv6 network, as one host may have all its addresses."""
    try:
        address = ipaddress.ip_address(client)
    except ValueError:
        return client
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is None:
        return str(ipaddress.ip_network((address, _IPV6_NETWORK), strict=False))
    return str(address)


# --- passes -----------------------------------------------------------------------------------------
def new_pass(secret: bytes, digest: bytes, ends: datetime) -> str:
    """Return a cookie that opens the link with this digest until ``ends`` without being counted."""
    stamp = str(int(ends.timestamp()))
    return f"{stamp}.{_signature(secret, digest, stamp)}"


def is_pass(given: str, secret: bytes, digest: bytes, now: datetime) -> bool:
    """Return whether a cookie opens this link now."""
    stamp, _, signature = given.partition(".")
    if not hmac.compare_digest(signature.encode("utf-8", "replace"), _signature(secret, digest, stamp).encode()):
        return False
    return now.timestamp() < int(stamp)


def _signature(secret: bytes, digest: bytes, stamp: str) -> str:
    return hmac.new(secret, b"presignd link " + digest + stamp.encode("utf-8", "replace"), sha256).hexdigest()
