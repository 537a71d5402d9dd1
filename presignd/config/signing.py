"""What depends on who signs: with a broker no storage key is given, read or held; without one nothing of a broker."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from contextlib import suppress
from urllib.parse import urlsplit

from presignd.config.options import Address
from presignd.config.sources import Given, Layer
from presignd.config.templates import uses_prefix

STORAGE_KEYS = (
    "access_key",
    "access_key_id",
    "access_key_file",
    "secret_key",
    "secret_access_key",
    "secret_key_file",
    "session_token",
)
BROKER_KEY = "{prefix}{path}"


def by_broker(layer: Layer) -> bool:
    """Tell whether a broker signs."""
    kind = layer.get(_at("kind"))
    return kind is not None and kind.value == "broker"


def signing_problems(layer: Layer, watches: Sequence[str]) -> list[str]:
    """Return a line for each option that does not go with who signs; ``watches`` are those of ``layer``."""
    return list(_of_broker(layer) if by_broker(layer) else _of_local(layer, watches))


def _of_broker(layer: Layer) -> Iterator[str]:
    if _at("url") not in layer:
        yield 'presign.url: is missing; kind = "broker" needs its address, e.g. "https://broker:8420"'
    if _at("token") not in layer and _at("token_file") not in layer and _at("client_cert") not in layer:
        yield 'presign.token_file: is missing; kind = "broker" needs the token that the broker gave this daemon'
    for name in STORAGE_KEYS:
        if _at(name) in layer:
            yield f'presign.{name}: is for kind = "local"; a daemon that asks a broker holds no storage key'


def _of_local(layer: Layer, watches: Sequence[str]) -> Iterator[str]:
    if _at("url") in layer:
        yield 'presign.url: is for kind = "broker"'
    for watch in watches:
        key = layer.get(Address("watch", watch, "key"))
        with suppress(ValueError):  # refused with the rest
            if key is not None and isinstance(key.value, str) and uses_prefix(key.value):
                yield f'watch.{watch}.key: has {{prefix}}, which is only there with presign.kind = "broker"'


def with_broker_keys(layer: Layer, watches: Sequence[str]) -> Layer:
    """Return ``layer`` with the key that a broker's watches have by default."""
    if not by_broker(layer):
        return layer
    default = Given(BROKER_KEY, "default")
    return {Address("watch", watch, "key"): default for watch in watches} | dict(layer)


def signing_warnings(layer: Layer) -> list[str]:
    """Return a warning for a token that would go over the network in clear."""
    url = layer.get(_at("url"))
    if not by_broker(layer) or url is None or not _in_clear(str(url.value)):
        return []
    return ["presign.url: http:// shows the token and each grant to whoever is on the way; use https://"]


def _in_clear(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme == "http" and not ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:  # a name
        return url.startswith("http:") and urlsplit(url).hostname != "localhost"


def _at(name: str) -> Address:
    return Address("presign", "", name)
