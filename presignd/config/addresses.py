"""Addresses in a configuration: endpoints, proxies, and where a server listens. Pure.

A refusal never repeats the text, which may hold credentials.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from pathlib import Path
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

_HOST = re.compile(r"(?=.{1,253}\.?$)(?!-)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_DEFAULT_PORT = {"http": 80, "https": 443}
_LAST_PORT = 65535
_HOST_PORT = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%\w]+\]|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5})")


# --- endpoints and proxies --------------------------------------------------------------------------
def parse_endpoint(text: str) -> str:
    """Return ``scheme://host[:port]`` for ``http://host:9000``, ``https://host`` or ``host:9000`` (https).

    The host is written as HTTP clients write it in the Host header, which is signed: lower case, IDNA, an IPv4
    address as four numbers, no dot at its end, and no port if it is the scheme's default. A trailing "/" is dropped.
    Raises ``ValueError`` with the reason for anything but a scheme, a host and a port.
    """
    return _bare(
        text,
        address="the store's address, e.g. http://127.0.0.1:9000",
        secrets="keys go in access_key and secret_key",
        path="buckets are named in each [[watch]]",
    )


def parse_broker_url(text: str) -> str:
    """Return a broker's ``scheme://host[:port]``, as ``parse_endpoint`` does; raises ``ValueError``."""
    return _bare(
        text,
        address="the broker's address, e.g. https://broker:8420",
        secrets="the token goes in token_file",
        path="the broker is asked at /v1/grants of its host, so a proxy before it needs a name or port for it alone",
    )


def parse_site(text: str) -> str:
    """Return ``scheme://host[:port]`` of a name for browsers, as ``parse_endpoint`` does; raises ``ValueError``."""
    return _bare(
        text,
        address="the name that browsers see, e.g. https://files.example.org",
        secrets="whoever opens a link would get them",
        path="links are served at /l/ of a name of their own",
    )


def _bare(text: str, *, address: str, secrets: str, path: str) -> str:
    """Return scheme, host and port; the other arguments go into messages for the user."""
    if not text.strip():
        raise ValueError(f"is empty; give {address}")
    parts = _split(text)
    if "@" in parts.netloc:
        raise ValueError(f"holds credentials; take them out: {secrets}")
    if parts.path.strip("/"):
        raise ValueError(f"has a path; give only scheme, host and port: {path}")
    return _joined(parts)


def parse_proxy(text: str) -> str:
    """Return ``http(s)://[user:password@]host[:port]``, a bare host being http; raises ``ValueError``."""
    text = text.strip() if "://" in text else f"http://{text.strip()}"
    parts = _split(text)
    if parts.path.strip("/"):
        raise ValueError("has a path; give only scheme, host and port")
    _joined(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    return text


def parse_webhook_url(text: str) -> str:
    """Return the address of a webhook's receiver, its host as clients write it; raises ``ValueError``.

    Plain HTTP is only for this machine: the messages, and the address itself, are secrets.
    """
    text = text.strip()
    scheme, separator, rest = text.partition("://")
    if not separator or scheme.lower() not in _DEFAULT_PORT:
        raise ValueError("must be an address, e.g. https://chat.example.org/hooks/…")
    if not text.isprintable() or " " in text or "\\" in text or "#" in text:
        raise ValueError("holds a space, a backslash, a fragment or a control character")
    place = re.split(r"[/?]", rest, maxsplit=1)[0]
    if "@" in place:
        raise ValueError("holds credentials; give an address that needs none: each message is signed")
    site = _joined(_split(f"{scheme}://{place}"))
    if site.startswith("http:") and not is_this_machine(urlsplit(site).hostname or ""):
        raise ValueError("must begin with https://: with http:// everyone on the way can read it")
    return site + (rest[len(place) :] or "/")


def is_this_machine(host: str) -> bool:
    """Return whether a host is localhost or a loopback address."""
    return host == "localhost" or _is_loopback(host)


def mask_path(url: str) -> str:
    """Return ``url`` with what follows its host replaced by asterisks."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}/********"


def mask_userinfo(url: str) -> str:
    """Return ``url`` with its user and password, if any, replaced by asterisks."""
    return re.sub(r"//.*@", "//********@", url, count=1)


def _split(text: str) -> SplitResult:
    text = text.strip()
    if not text.isprintable() or " " in text or "\\" in text:
        raise ValueError("holds a space, a backslash or a control character")
    if "?" in text or "#" in text:
        raise ValueError("has a query or a fragment; give only scheme, host and port")
    scheme, separator, _ = text.partition("://")
    if not separator and re.match(r"https?:(?![0-9])", text, re.IGNORECASE):
        raise ValueError('lacks the "//" after its scheme: write http://host:port')
    if scheme.lower() not in _DEFAULT_PORT if separator else re.match(r"[^:/]*:/", text):  # "htp:/host" too
        raise ValueError("has an unknown scheme; it is http or https (a bare host:port means https)")
    try:
        return urlsplit(text if separator else f"https://{text}")
    except ValueError:
        raise ValueError("has no valid host; an IPv6 address stands in brackets: http://[::1]:9000") from None


def _joined(parts: SplitResult) -> str:
    port = _port(parts)
    suffix = "" if port in (None, _DEFAULT_PORT[parts.scheme]) else f":{port}"
    return f"{parts.scheme}://{_host(parts)}{suffix}"


def _port(parts: SplitResult) -> int | None:
    tail = parts.netloc.rpartition("]")[2]
    if tail.count(":") > 1:
        raise ValueError("has more than one port; an IPv6 address stands in brackets: http://[::1]:9000")
    before, separator, digits = tail.partition(":")
    if "]" in parts.netloc and before:
        raise ValueError("has text after its IPv6 address that is no port")
    if not separator:
        return None
    if not re.fullmatch(r"[0-9]{1,5}", digits) or not 1 <= int(digits) <= _LAST_PORT:
        raise ValueError(f"has a bad port; it is a number from 1 to {_LAST_PORT}")
    return int(digits)


def _host(parts: SplitResult) -> str:
    host = parts.hostname or ""
    if parts.netloc.startswith("["):
        return f"[{_ipv6(host)}]"
    if not host:
        raise ValueError("has no host")
    name = host if _HOST.fullmatch(host) else _in_ascii(host)
    if not _HOST.fullmatch(name):
        raise ValueError("has no valid host name")
    return _as_clients_write_it(name.removesuffix("."))


def _in_ascii(host: str) -> str:
    """Return a name in IDNA's ASCII form, "" if it has none."""
    import yarl  # noqa: PLC0415 - few hosts need it, and it takes 10 ms of a start

    try:
        return yarl.URL.build(scheme="https", host=host).raw_host or ""
    except ValueError:
        return ""


def _as_clients_write_it(name: str) -> str:
    """Return an IPv4 address as four numbers: browsers and curl read any name that ends in a number as one."""
    if not _NUMBER.fullmatch(name.rpartition(".")[2]):
        return name
    try:
        return socket.inet_ntoa(socket.inet_aton(name))
    except OSError:
        raise ValueError("has no valid host name: one that ends in a number is an IPv4 address") from None


def _ipv6(host: str) -> str:
    if "%" in host:
        raise ValueError("has an IPv6 address with a zone (%), which clients don't send; give the address a host name")
    try:
        address = ipaddress.IPv6Address(host)
    except ValueError:
        raise ValueError("has no valid IPv6 address in its brackets") from None
    if address.ipv4_mapped is None:
        return str(address)
    # Python 3.13 writes the end as an IPv4 address. Browsers don't, and the host must be signed as they send it.
    high, low = divmod(int(address.ipv4_mapped), 1 << 16)
    return f"::ffff:{high:x}:{low:x}"


# --- where a server listens ---------------------------------------------------------------------
class Listen(NamedTuple):
    """An address to bind: the ``path`` of a Unix socket, or ``host`` and ``port`` (0: any free port)."""

    host: str = ""
    port: int = 0
    path: Path | None = None

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        return self.path is not None or self.host == "localhost" or _is_loopback(self.host)


def parse_listen(text: str) -> Listen:
    """Return an address to listen on; raise ``ValueError`` with what it must be.

    The host is required: an empty one would silently mean every interface.
    """
    if text.startswith("unix:"):
        path = Path(text.removeprefix("unix:"))
        if not path.is_absolute() or "\0" in text:
            raise ValueError('must name an absolute path after unix:, e.g. "unix:/run/presignd/web.sock"')
        return Listen(path=path)
    match = _HOST_PORT.fullmatch(text)
    if match is None or int(match["port"]) > _LAST_PORT:
        raise ValueError('must be host:port, e.g. "127.0.0.1:8321", or unix:/path')
    return Listen(match["host"].strip("[]").lower(), int(match["port"]))


def check_listen(text: str) -> str:
    """Return ``text`` if it is an address to listen on."""
    parse_listen(text)
    return text


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
