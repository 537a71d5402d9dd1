"""Helpers of every HTTP client here: TLS, proxies, bounded responses, and faults for failures.

No aiohttp client error leaves its client: their ``str`` and ``repr`` hold the URL.
"""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import presignd
from presignd.config import PresignConfig
from presignd.errors import NO_DESCRIPTORS, Fault, UsageError, fault

if TYPE_CHECKING:
    import aiohttp

CERTIFICATE_DAYS = 14
"""A certificate with fewer days left is a warning."""


class HttpResponse(Protocol):
    """A response whose head was read, of aiohttp's session or of ``presignd.store.lean``."""

    @property
    def status(self) -> int:
        """The status."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers."""
        ...

    @property
    def content(self) -> aiohttp.StreamReader:
        """The body to read."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...


async def read_at_most(response: HttpResponse, limit: int, on_piece: Callable[[], None] = lambda: None) -> bytes:
    """Read up to ``limit`` bytes; close the connection if the body is longer."""
    kept = bytearray()
    while len(kept) < limit:
        piece = await response.content.read(limit - len(kept))
        if not piece:
            return bytes(kept)
        on_piece()
        kept += piece
    response.close()
    return bytes(kept)


def client_session(tls: ssl.SSLContext | None, *, connections: int = 100) -> aiohttp.ClientSession:
    """Return a session of up to ``connections`` connections, without cookies or timeouts of its own."""
    import aiohttp  # noqa: PLC0415 - not at the top: a start sends nothing where all is uploaded

    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=connections, ssl=tls or True, keepalive_timeout=20),
        timeout=aiohttp.ClientTimeout(total=None),
        headers={"User-Agent": f"presignd/{presignd.__version__}", "Accept-Encoding": "identity"},
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
    )


def tls_context(presign: PresignConfig) -> ssl.SSLContext:
    """Return a context that trusts the system's CAs and ``ca_file``, with the client certificate if there is one.

    Raises ``UsageError`` for a file that its option can't use.
    """
    context = ssl.create_default_context()
    try:
        if presign.ca_file:
            context.load_verify_locations(cafile=presign.ca_file)
    except OSError:  # OpenSSL's errors are OSErrors too
        raise _no_pem("ca_file", presign.ca_file, "the CA's certificate") from None
    try:
        if presign.client_cert:
            context.load_cert_chain(presign.client_cert, presign.client_key)
    except OSError:
        raise _no_pem(
            "client_cert", presign.client_cert, "a certificate and its key (or name it in client_key)"
        ) from None
    return context


def _no_pem(key: str, file: Path | None, wanted: str) -> UsageError:
    problem = f"presign.{key}: {file} can't be used; it must be a PEM file with {wanted}"
    return UsageError(problem, problems=(problem,))


def proxy_for(url: str, configured: str, environ: Mapping[str, str] | None = None) -> str | None:
    """Return the proxy for ``url``: the configured one, else HTTPS_PROXY or HTTP_PROXY, unless NO_PROXY names the host.

    ``environ`` has the form of ``urllib.request.getproxies``: by scheme, and NO_PROXY as "no".
    """
    if configured:
        return configured
    parts = urlsplit(url)
    proxies = getproxies() if environ is None else environ
    if is_exempt(url, proxies.get("no", "")) or (environ is None and proxy_bypass(parts.netloc)):
        return None
    proxy = proxies.get(parts.scheme)
    return f"http://{proxy}" if proxy and "://" not in proxy else proxy or None


def is_exempt(url: str, no_proxy: str) -> bool:
    """Return whether NO_PROXY names the host of ``url``, in any form that curl, requests or Go accept.

    An entry is ``*`` (all), a domain with its subdomains (``example.org``, ``.example.org``, ``*.example.org``), an
    address, or a network (``10.0.0.0/8``). All but networks may have a port, which then must match.
    """
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    host = (parts.hostname or "").removesuffix(".")
    return any(_names(entry.lower(), host, port) for entry in re.split(r"[,\s]+", no_proxy) if entry)


def _names(entry: str, host: str, port: int | None) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry.strip("[]"), strict=False)
    name, _, wanted = entry.rpartition(":")
    if name and wanted.isdecimal():
        return int(wanted) == port and _names(name, host, None)
    domain = entry.removeprefix("*").strip(".")
    return entry == "*" or (bool(domain) and (host == domain or host.endswith(f".{domain}")))


def connection_fault(problem: Exception) -> Fault:  # noqa: PLR0911 - one row a kind
    """Return the fault for a client's exception, without any text that may hold the URL."""
    import aiohttp  # noqa: PLC0415 - loaded by then: only a request fails, and a start may send none

    match problem:
        case aiohttp.ClientProxyConnectionError() | aiohttp.ClientHttpProxyError():
            return fault("proxy")
        case aiohttp.ClientConnectorDNSError():
            return fault("dns", str(problem.host))
        case (
            aiohttp.ClientConnectorCertificateError()
            | aiohttp.ClientSSLError()
            | aiohttp.ServerFingerprintMismatch()
            | ssl.SSLError()
        ):
            return fault("tls", _tls_reason(problem))
        case TimeoutError():
            return fault("timeout")
        case aiohttp.ClientConnectorError():
            return _connect_fault(problem)
        case aiohttp.ClientResponseError() | aiohttp.InvalidURL():
            return fault("bad_response", "not HTTP; is it a TLS port spoken to without https://?")
        case _:
            return fault("connection_reset")


def _connect_fault(problem: aiohttp.ClientConnectorError) -> Fault:
    if isinstance(problem.os_error, ConnectionRefusedError):
        return fault("connection_refused", f"{problem.host}:{problem.port}")
    if problem.os_error.errno in NO_DESCRIPTORS:
        return fault("too_many_files")
    return fault("no_route", os.strerror(problem.os_error.errno or 0))


def _tls_reason(problem: Exception) -> str:
    """Return OpenSSL's reason for a failed handshake, which holds host names at most."""
    for cause in (getattr(problem, "certificate_error", None), getattr(problem, "os_error", None), problem):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return cause.verify_message
        if isinstance(cause, ssl.SSLError):
            return (cause.reason or "handshake failed").replace("_", " ").lower()
    return ""
