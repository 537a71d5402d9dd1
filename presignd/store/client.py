"""The store's HTTP client: sends granted requests, and raises a ``Fault`` for every failure.

No aiohttp client error leaves this module, because their ``str`` and ``repr`` hold the URL. Secrets of the request that
a store repeats are removed from its response first.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Collection
from datetime import datetime

import aiohttp
from aiohttp import payload
from aiohttp.connector import AddrInfoType

import presignd
from presignd.config import PresignConfig, UploadConfig
from presignd.connection import connection_fault, proxy_for, read_at_most, tls_context
from presignd.presign import Grant
from presignd.redaction.echoes import Secrets
from presignd.s3.responses import Response, fault_of
from presignd.store.body import CHUNK, PIECE, FileBody, MemoryBody, Slice, hold_little
from presignd.store.lean import LeanSession
from presignd.store.progress import Deadlines, Progress
from presignd.store.rate import RateLimit
from presignd.system.clock import utcnow

KEPT_BODY = 64 << 10
"""Most bytes of a response's body that are read: a store may send an error of 100 MB."""

UNREAD = frozenset(
    {
        *("accept-ranges", "connection", "server", "vary", "x-amz-id-2", "x-amz-request-id"),
        *("content-security-policy", "strict-transport-security", "x-content-type-options", "x-xss-protection"),
    }
)
"""Headers of nearly every response that nothing here reads. They are dropped, so they need no search for secrets."""


class StoreClient:
    """The HTTP client for one store: TLS, proxy, timeouts and connections.

    ``clock_offset`` is the store's clock minus ours in seconds, by the Date of the last response (whole seconds).
    """

    def __init__(
        self,
        presign: PresignConfig,
        upload: UploadConfig,
        *,
        clock: Callable[[], datetime] = utcnow,
        rate: RateLimit | None = None,
    ) -> None:
        self._timeout = upload.timeout
        # Streamed bodies share upload.memory: each has one chunk that is read and one that is sent.
        self._rate = rate or RateLimit(upload.max_rate)
        self._chunk = self._rate.chunk(max(64 << 10, min(CHUNK, upload.memory // (2 * upload.concurrency))))
        self._presign = presign
        self._clock = clock
        self._tls = tls_context(presign) if presign.endpoint.startswith("https:") or presign.public_endpoint else None
        self._session: LeanSession | None = None
        self._limit = upload.concurrency + 4
        self._secrets = Secrets()
        self._deadlines = Deadlines()
        self.clock_offset: float | None = None

    @property
    def limited(self) -> bool:
        """Whether there is a rate limit; then small files are streamed in pieces too."""
        return self._rate.limited

    async def send(
        self,
        grant: Grant,
        body: bytes | Slice | None = None,
        *,
        accept: Collection[int] = (),
        on_sent: Callable[[int], None] | None = None,
        timeout: float | None = None,
        file_of: str = "",
        into: Callable[[bytes], Awaitable[None]] | None = None,
    ) -> Response:
        """Send one granted request; raise ``Fault`` for statuses other than 2xx and ``accept``.

        ``body`` is bytes, or a slice of a file to stream; ``on_sent`` gets the number of bytes sent so far.
        ``timeout`` is in seconds without progress. Requests with the same ``file_of`` share the rate limit as one
        file. ``into`` takes the body of a 200 piece by piece; without it, up to ``KEPT_BODY`` bytes are kept.
        Redirects are not followed.
        """
        file: FileBody | None = None
        try:
            with Progress(self._deadlines, timeout or self._timeout, on_sent) as progress:
                data: bytes | payload.Payload | None
                if isinstance(body, Slice):
                    data = file = FileBody(body, rate=self._rate, on_sent=progress, chunk=self._chunk, file=file_of)
                elif body and len(body) > PIECE:
                    data = MemoryBody(body, on_sent=progress)
                else:
                    data = body
                if self._rate.limited:
                    await self._rate.take(_head_size(grant), file_of)
                response = await self._exchange(grant, data, progress, into)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as problem:
            raise (file.fault if file and file.fault else connection_fault(problem)) from None
        self._compare_clocks(response)
        if response.status // 100 == 2 or response.status in accept:  # noqa: PLR2004 - 2xx
            return response
        raise fault_of(response, expires_at=grant.expires_at, now=self._clock(), clock_offset=self.clock_offset)

    async def _exchange(
        self,
        grant: Grant,
        data: bytes | payload.Payload | None,
        progress: Progress,
        into: Callable[[bytes], Awaitable[None]] | None,
    ) -> Response:
        async with self._open_session().request(grant.method, grant.url, grant.headers, data) as response:
            progress.answered()
            if into and response.status == 200:  # noqa: PLR2004
                kept = b""
                async for piece in response.content.iter_any():
                    await into(piece)
                    progress.received(len(piece))
            else:
                kept = await read_at_most(response, KEPT_BODY, progress.answered)
            headers = {
                lower: value for name, value in response.headers.items() if (lower := name.lower()) not in UNREAD
            }
            return Response(response.status, *self._secrets.of(grant.url, grant.headers).redacted(headers, kept))

    def _open_session(self) -> LeanSession:
        if self._session is None:
            session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=self._limit, ssl=self._tls or True, keepalive_timeout=20, socket_factory=_socket
                ),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._timeout),
                headers={"User-Agent": f"presignd/{presignd.__version__}", "Accept-Encoding": "identity"},
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
            self._session = LeanSession(session, lambda origin: proxy_for(origin, self._presign.proxy))
        return self._session

    def _compare_clocks(self, response: Response) -> None:
        if (date := response.date) is not None:
            self.clock_offset = (date - self._clock()).total_seconds()

    async def close(self) -> None:
        """Close every connection."""
        self._deadlines.stop()
        if self._session is not None:
            await self._session.close()
            self._session = None


def _head_size(grant: Grant) -> int:
    """Return the approximate size of a request's head; aiohttp's own headers take some 100 bytes."""
    return len(grant.url) + sum(len(name) + len(value) + 4 for name, value in grant.headers.items()) + 100


def _socket(address: AddrInfoType) -> socket.socket:
    """Return a socket that buffers few unsent bytes."""
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    hold_little(made)
    return made
