"""Exchanges with the store over HTTP, on aiohttp: a granted request goes out, its response comes back.

No aiohttp client error leaves this module, because their ``str`` and ``repr`` hold the URL. Secrets of the request that
a store repeats are removed from its response first.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Awaitable, Callable

import aiohttp
from aiohttp import payload
from aiohttp.connector import AddrInfoType

import presignd
from presignd.config import PresignConfig, UploadConfig
from presignd.connection import HttpResponse, connection_fault, proxy_for, read_at_most
from presignd.presign import Grant
from presignd.redaction.echoes import Secrets
from presignd.s3.responses import Response
from presignd.store.body import CHUNK, PIECE, FileBody, MemoryBody, hold_little
from presignd.store.client import KEPT_BODY, Slice
from presignd.store.lean import LeanSession
from presignd.store.progress import Deadlines, Progress
from presignd.store.rate import RateLimit

UNREAD = frozenset(
    {
        *("accept-ranges", "connection", "server", "vary", "x-amz-id-2", "x-amz-request-id"),
        *("content-security-policy", "strict-transport-security", "x-content-type-options", "x-xss-protection"),
    }
)
"""Headers of nearly every response that nothing here reads. They are dropped, so they need no search for secrets."""


class Exchange:
    """The connections to one store, with its proxy, TLS and timeouts. Made inside a running loop."""

    def __init__(
        self, presign: PresignConfig, upload: UploadConfig, *, tls: ssl.SSLContext | None, rate: RateLimit
    ) -> None:
        self._timeout, self._rate = upload.timeout, rate
        # Streamed bodies share upload.memory: each has one chunk that is read and one that is sent.
        self._chunk = rate.chunk(max(64 << 10, min(CHUNK, upload.memory // (2 * upload.concurrency))))
        self._secrets = Secrets()
        self._deadlines = Deadlines()
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=upload.concurrency + 4, ssl=tls or True, keepalive_timeout=20, socket_factory=_socket
            ),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._timeout),
            headers={"User-Agent": f"presignd/{presignd.__version__}", "Accept-Encoding": "identity"},
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        self._session = LeanSession(session, lambda origin: proxy_for(origin, presign.proxy))

    async def send(
        self,
        grant: Grant,
        body: bytes | Slice | None,
        *,
        on_sent: Callable[[int], None] | None,
        timeout: float | None,
        file_of: str,
        into: Callable[[bytes], Awaitable[None]] | None,
    ) -> Response:
        """Send one granted request and return its response, whatever its status; raise a ``Fault`` for none."""
        file: FileBody | None = None
        data: bytes | payload.Payload | None
        echoes = self._secrets.of(grant.url, grant.headers)
        try:
            with Progress(self._deadlines, timeout or self._timeout, on_sent) as progress:
                if isinstance(body, Slice):
                    data = file = FileBody(body, rate=self._rate, on_sent=progress, chunk=self._chunk, file=file_of)
                elif body and len(body) > PIECE:
                    data = MemoryBody(body, on_sent=progress)
                else:
                    data = body
                if self._rate.limited:
                    await self._rate.take(_head_size(grant), file_of)
                async with self._session.request(grant.method, grant.url, grant.headers, data) as response:
                    kept = b"" if response.content.at_eof() else await self._body(response, progress, into)
                    headers = {
                        lower: value
                        for name, value in response.headers.items()
                        if (lower := name.lower()) not in UNREAD
                    }
                    return Response(response.status, *self._secrets.redacted(echoes, headers, kept))
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as problem:
            raise (file.fault if file and file.fault else connection_fault(problem)) from None

    async def _body(
        self, response: HttpResponse, progress: Progress, into: Callable[[bytes], Awaitable[None]] | None
    ) -> bytes:
        """Read a response's body; return the part that is kept."""
        progress.answered()
        if not into or response.status not in (200, 206):
            return await read_at_most(response, KEPT_BODY, progress.answered)
        async for piece in response.content.iter_any():
            await into(piece)
            progress.received(len(piece))
        return b""

    async def close(self) -> None:
        """Close every connection."""
        self._deadlines.stop()
        await self._session.close()


def _head_size(grant: Grant) -> int:
    """Return the approximate size of a request's head; aiohttp's own headers take some 100 bytes."""
    return len(grant.url) + sum(len(name) + len(value) + 4 for name, value in grant.headers.items()) + 100


def _socket(address: AddrInfoType) -> socket.socket:
    """Return a socket that buffers few unsent bytes."""
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    hold_little(made)
    return made
