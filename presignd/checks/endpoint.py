"""The store's endpoint: name, connection, protocol, certificate."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from presignd.checks.base import CheckResult, Context, fail, ok, warn
from presignd.config import PresignConfig
from presignd.connection import CERTIFICATE_DAYS, proxy_for, tls_context
from presignd.errors import CODES, fault

LIMIT = 5.0
"""Seconds each for resolving, connecting and one exchange. A healthy store is faster."""

TLS_FIXES = {
    9: "its validity begins in the future: look at this machine's clock",
    10: "renew the store's certificate (or look at this machine's clock)",
    62: "set presign.endpoint to a name that the certificate holds",
    64: "set presign.endpoint to a name or address that the certificate holds",
}
"""Fixes by OpenSSL's X509_V_ERR_* numbers (x509_vfy.h); all other numbers mean an unknown CA."""

UNKNOWN_CA = "set presign.ca_file to the PEM file of the CA that signed the store's certificate"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The address of the store."""

    host: str
    port: int
    tls: bool

    @classmethod
    def of(cls, presign: PresignConfig) -> Endpoint:
        """Return the address in the (normalised) option ``endpoint``."""
        parts = urlsplit(presign.endpoint)
        tls = parts.scheme == "https"
        return cls(parts.hostname or "", parts.port or (443 if tls else 80), tls)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@asynccontextmanager
async def _connected(
    address: Endpoint, context: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connect within ``LIMIT``, with TLS if a context is given, and close in any case."""
    async with asyncio.timeout(LIMIT):
        reader, writer = await asyncio.open_connection(
            address.host, address.port, ssl=context, server_hostname=address.host if context else None
        )
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(LIMIT):
                await writer.wait_closed()


def _direct(presign: PresignConfig) -> bool:
    return proxy_for(presign.endpoint, presign.proxy) is None


async def check_endpoint(context: Context) -> AsyncIterator[CheckResult]:
    """Resolve the name, connect, and find out whether the server speaks the protocol of the endpoint's scheme."""
    presign = context.config.presign
    address = Endpoint.of(presign)
    if not _direct(presign):
        yield ok("endpoint", f"{address}, through the proxy")
        return
    addresses = await _resolve(address)
    await _connect(address)
    yield await _protocol(address) or ok("endpoint", f"{presign.endpoint} ({', '.join(addresses)})")


async def _resolve(address: Endpoint) -> list[str]:
    try:
        async with asyncio.timeout(LIMIT):
            found = await asyncio.get_running_loop().getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except TimeoutError:
        raise fault("dns", f"no answer for {address.host} within {LIMIT:g} s") from None
    except (OSError, UnicodeError):
        raise fault("dns", address.host) from None
    return sorted({str(entry[4][0]) for entry in found})


async def _connect(address: Endpoint) -> None:
    try:
        async with _connected(address):
            return
    except TimeoutError:
        raise fault("no_route", f"{address} does not answer within {LIMIT:g} s") from None
    except ConnectionRefusedError:
        raise fault("connection_refused", str(address)) from None
    except OSError as problem:
        # asyncio joins the errors of several addresses into one without a number.
        raise fault("no_route", f"{address} {problem.strerror or ''}".rstrip()) from None


async def _protocol(address: Endpoint) -> CheckResult | None:
    """Return the failure if the port speaks another protocol than the endpoint's scheme, else None."""
    return await (_tls_expected(address) if address.tls else _http_expected(address))


async def _tls_expected(address: Endpoint) -> CheckResult | None:
    reason = await _tls_refused(address)
    if reason is None:
        return None
    if await _http_status(address):
        return fail(
            "endpoint",
            f"https:// is set, but {address} speaks plain HTTP",
            f'set presign.endpoint = "http://{address}", or the store\'s TLS port',
            code="tls",
        )
    return fail("endpoint", f"{CODES['tls'].cause}: {reason}", CODES["tls"].fix, code="tls")


async def _http_expected(address: Endpoint) -> CheckResult | None:
    status = await _http_status(address)
    # On a TLS port, Go's servers and nginx answer plain HTTP with 400; others hang up or send an alert.
    if status not in (None, 400):
        return None
    if await _tls_refused(address) is None:
        return fail(
            "endpoint",
            f"http:// is set, but {address} speaks TLS",
            f'set presign.endpoint = "https://{address}"',
            code="tls",
        )
    if status:
        return None
    return fail(
        "endpoint", f"the server at {address} does not speak HTTP", CODES["bad_response"].fix, code="bad_response"
    )


async def _tls_refused(address: Endpoint) -> str | None:
    """Return why a TLS handshake without verification fails; None if the port speaks TLS."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # only to see the protocol; nothing is sent
    try:
        async with _connected(address, context):
            return None
    except ssl.SSLError as problem:
        return (problem.reason or "handshake failed").replace("_", " ").lower()
    except (OSError, TimeoutError):
        return "the handshake was broken off"


async def _http_status(address: Endpoint) -> int | None:
    """Return the status of a bare HEAD /; None if the port does not speak plain HTTP."""
    try:
        async with _connected(address) as (reader, writer), asyncio.timeout(LIMIT):
            writer.write(f"HEAD / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode())
            version, status, *_ = (await reader.readline()).split()
        return int(status) if version.startswith(b"HTTP/1") else None
    except (OSError, TimeoutError, ValueError):
        return None


async def check_certificate(context: Context) -> AsyncIterator[CheckResult]:
    """Verify the store's certificate as uploads do, and count the days it has left."""
    presign = context.config.presign
    address = Endpoint.of(presign)
    if not address.tls:
        yield ok("certificate", "none: the endpoint is plain http")
    elif not _direct(presign):
        yield ok("certificate", "checked with the first request, through the proxy")
    else:
        yield await _verified(address, tls_context(presign))


async def _verified(address: Endpoint, context: ssl.SSLContext) -> CheckResult:
    try:
        async with _connected(address, context) as (_, writer):
            peer = writer.get_extra_info("peercert")
    except ssl.SSLCertVerificationError as problem:
        fix = TLS_FIXES.get(problem.verify_code, UNKNOWN_CA)
        return fail("certificate", f"not trusted: {problem.verify_message}", fix, code="tls")
    except ssl.SSLError as problem:
        return fail("certificate", f"{CODES['tls'].cause}: {problem.reason}", CODES["tls"].fix, code="tls")
    except (OSError, TimeoutError):
        return fail("certificate", CODES["connection_reset"].cause, CODES["connection_reset"].fix)
    return _days_left((ssl.cert_time_to_seconds(peer["notAfter"]) - time.time()) / 86400)


def _days_left(days: float) -> CheckResult:
    if days < CERTIFICATE_DAYS:
        return warn("certificate", f"trusted, but only {days:.0f} days left", "renew the store's certificate")
    return ok("certificate", f"trusted, {days:.0f} days left")
