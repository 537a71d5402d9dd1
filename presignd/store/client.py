"""The HTTP seam: sends granted requests to the store, and turns whatever goes wrong into a ``Fault``.

Nothing outside this module sees an aiohttp client error: those carry the URL in ``str`` and ``repr``.
What a store says again of its request's own secrets is taken out before anything sees it.
"""

from __future__ import annotations

import asyncio
import math
import os
import socket
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

import aiohttp
from aiohttp import hdrs, payload
from aiohttp.abc import AbstractStreamWriter
from aiohttp.connector import AddrInfoType
from yarl import URL

import presignd
from presignd.config import PresignConfig, UploadConfig
from presignd.connection import connection_fault, proxy_for, read_at_most, tls_context
from presignd.errors import Fault, fault
from presignd.presign import Grant
from presignd.redaction.echoes import Secrets
from presignd.runtime.heartbeat import beat
from presignd.s3.responses import Response, fault_of
from presignd.store.body import LEAST, MOST, Unsupported, hold_little, straight
from presignd.store.rate import RateLimit
from presignd.system.clock import utcnow

__all__ = ["FileBody", "Response", "Slice", "StoreClient"]

KEPT_BODY = 64 << 10
"""Bytes of an answer's body that are read; an error body of 100 MB is cut here."""

CHUNK = 256 << 10
"""Bytes a read of a streamed body: the page cache holds what the hash pass has just read."""

PIECE = 64 << 10
"""Bytes that count as progress: sixteen uploads on a line of 1 Mbit/s take eight seconds for one each."""

LAST_WORDS = 1.0
"""Seconds for the loop to read what was said on a connection that takes no more."""

LARGEST_PIECE, QUICK = 4 * PIECE, 0.05
"""What a piece grows to while each goes in so many seconds."""

LONGEST_ANSWER = 5
"""How many times ``upload.timeout`` an answer may take from its first byte: one that drips holds a slot no longer."""

UNREAD = frozenset(
    {
        *("accept-ranges", "connection", "server", "vary", "x-amz-id-2", "x-amz-request-id"),
        *("content-security-policy", "strict-transport-security", "x-content-type-options", "x-xss-protection"),
    }
)
"""Headers of nearly every answer that nothing here reads: they are let go, so no secret has to be looked for there."""


class Slice(NamedTuple):
    """``size`` bytes of a descriptor from ``offset``; ``whole`` when the file ends there."""

    fd: int
    offset: int
    size: int
    whole: bool


class FileBody(payload.Payload):
    """A slice of a file as a request body: a large one by sendfile(2) where that can be, else read in chunks.

    A file shorter than that, or for a ``whole`` one longer, is a ``changed_while_uploading`` kept in
    ``fault``: aiohttp cuts a longer body silently and waits for ever on a shorter one. The look for more
    comes before the last chunk is sent, so a body of a changed file stays incomplete and no store keeps it.
    """

    _value: int

    def __init__(
        self, of: Slice, *, rate: RateLimit, on_sent: Callable[[int], None], chunk: int = CHUNK, file: str = ""
    ) -> None:
        super().__init__(of.fd, headers={})
        self._size = of.size
        self._offset, self._whole, self._rate = of.offset, of.whole, rate
        self._chunk, self._file = chunk, file
        self._on_sent = on_sent
        self.fault: Fault | None = None

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:  # noqa: ARG002 - aiohttp's signature
        """Refuse: a file is sent, never shown."""
        raise TypeError("a file body has no text form")

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Send the whole body."""
        await self.write_with_length(writer, None)

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:  # noqa: ARG002
        """Send the whole body (always its own length: the grant's signature binds it)."""
        size = self._size or 0
        # The last piece is read: its end is looked at, and aiohttp, which takes an answer that comes before it
        # knows of the body's end for an early one and hangs up, has that end in hand.
        sent = await self._send_straight(writer, size - PIECE) if size >= LEAST else 0
        for done in range(sent, size, self._chunk):
            want = min(self._chunk, size - done)
            data = await asyncio.to_thread(self._read, self._offset + done, want, last=done + want == size)
            await self._rate.take(want, self._file)
            await _write_in_pieces(writer, data, done, self._on_sent)

    async def _send_straight(self, writer: AbstractStreamWriter, size: int) -> int:
        """Send ``size`` bytes by sendfile(2); return how many went: fewer where there is no such way."""
        way = await straight(writer, self._value)
        if way is None:
            return 0
        done = paid = 0
        with way:
            while done < size:
                if done == paid:
                    paid = min(size, done + self._rate.chunk(MOST))
                    await self._rate.take(paid - done, self._file)
                try:
                    went = await way.send(self._offset + done, paid - done)
                except Unsupported:
                    break
                except (EOFError, OSError):
                    await self._blame(done)
                    raise
                done += went
                if went:  # a line that stands is no progress
                    self._on_sent(done)
        return done

    async def _blame(self, done: int) -> None:
        """Raise the fault if it is the file's that a byte can't be sent; else leave the loop time to see why.

        What the store said before it hung up is still to be read: the loop does so, and cancels this.
        """
        await asyncio.to_thread(self._read, self._offset + done, 1, last=False)
        await asyncio.sleep(LAST_WORDS)

    def _read(self, offset: int, want: int, *, last: bool) -> bytes:
        try:
            data = os.pread(self._value, want, offset)
            grown = self._whole and last and bool(os.pread(self._value, 1, offset + want))
        except OSError as problem:
            raise self._failed("read_error", os.strerror(problem.errno or 0)) from None
        if len(data) != want or grown:
            raise self._failed("changed_while_uploading", "its size changed")
        return data

    def _failed(self, code: str, detail: str) -> Fault:
        self.fault = fault(code, detail)
        return self.fault


class MemoryBody(payload.BytesPayload):
    """Bytes as a request body, told of piece by piece: on a slow line a megabyte may take minutes."""

    def __init__(self, data: bytes, *, on_sent: Callable[[int], None]) -> None:
        super().__init__(b"")  # of more than a megabyte aiohttp warns, which would send it in one go
        self._value, self._size = data, len(data)
        self._on_sent = on_sent

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:  # noqa: ARG002
        """Send all of it."""
        await _write_in_pieces(writer, self._value, 0, self._on_sent)


async def _write_in_pieces(
    writer: AbstractStreamWriter, data: bytes, before: int, on_sent: Callable[[int], None]
) -> None:
    """Write ``data``, and tell after each piece how far it is, with ``before`` bytes sent earlier."""
    view, time = memoryview(data), asyncio.get_running_loop().time
    start, size = 0, PIECE
    while start < len(data):
        began, piece = time(), view[start : start + size]
        await writer.write(piece)
        start += len(piece)
        on_sent(before + start)
        # Each piece costs a turn of the loop: on a fast line fewer of them do.
        size = min(2 * size, LARGEST_PIECE) if time() - began < QUICK else PIECE


@dataclass(slots=True)
class _Progress:
    """Moves a request's deadline on whenever bytes moved."""

    deadline: asyncio.Timeout
    timeout: float
    sent: Callable[[int], None] | None
    waits_until: float = 0.0
    unread: int = 0

    def __call__(self, sent: int) -> None:
        self._move_on(math.inf)
        if self.sent:
            self.sent(sent)

    def answered(self) -> None:
        """Hear of bytes of a small answer: some stores send a space now and then while they complete an upload."""
        now = asyncio.get_running_loop().time()
        self.waits_until = self.waits_until or now + LONGEST_ANSWER * self.timeout
        self._move_on(self.waits_until)

    def received(self, size: int) -> None:
        """Hear of bytes of an object that is read back: a piece is progress, a byte now and then isn't."""
        self.unread += size
        if self.unread >= PIECE:
            self.unread = 0
            self._move_on(math.inf)

    def _move_on(self, most: float) -> None:
        beat(within=self.timeout)
        self.deadline.reschedule(min(most, asyncio.get_running_loop().time() + self.timeout))


class StoreClient:
    """One HTTP client for the store: its TLS, proxy, timeouts and connections.

    ``clock_offset`` is the store's clock less ours in seconds, by the last answer's Date (whole seconds).
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
        # Streamed bodies together stay within upload.memory: one chunk each is being read, one being sent.
        self._rate = rate or RateLimit(upload.max_rate)
        self._chunk = self._rate.chunk(max(64 << 10, min(CHUNK, upload.memory // (2 * upload.concurrency))))
        self._presign = presign
        self._clock = clock
        self._tls = tls_context(presign) if presign.endpoint.startswith("https:") or presign.public_endpoint else None
        self._session: aiohttp.ClientSession | None = None
        self._limit = upload.concurrency + 4
        self._proxies: dict[str, str | None] = {}
        self._secrets = Secrets()
        self.clock_offset: float | None = None

    @property
    def limited(self) -> bool:
        """Whether there is a rate limit: then even small files are streamed, a piece at a time."""
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
        """Send one granted request; 2xx and statuses in ``accept`` are answers, all else raises ``Fault``.

        ``body`` is bytes, or a slice of a file to be streamed; ``on_sent`` hears of the bytes sent so
        far. ``timeout`` is in seconds without progress. ``file_of`` is what shares in the rate limit as
        one: all requests under a key. ``into`` takes the body of a 200, whatever its size, as it comes; without
        it, up to ``KEPT_BODY`` bytes are kept. Redirects are not followed.
        """
        seconds = timeout or self._timeout
        file: FileBody | None = None
        beat(within=seconds)
        try:
            async with asyncio.timeout(seconds) as deadline:
                progress = _Progress(deadline, seconds, on_sent)
                data: bytes | payload.Payload | None
                if isinstance(body, Slice):
                    data = file = FileBody(body, rate=self._rate, on_sent=progress, chunk=self._chunk, file=file_of)
                elif body and len(body) > PIECE:
                    data = MemoryBody(body, on_sent=progress)
                else:
                    data = body
                if self._rate.limited:
                    await self._rate.take(_head_size(grant), file_of)
                answer = await self._exchange(grant, data, progress, into)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as problem:
            raise (file.fault if file and file.fault else connection_fault(problem)) from None
        finally:
            beat()
        self._compare_clocks(answer)
        if answer.status // 100 == 2 or answer.status in accept:  # noqa: PLR2004 - 2xx
            return answer
        raise fault_of(answer, expires_at=grant.expires_at, now=self._clock(), clock_offset=self.clock_offset)

    async def _exchange(
        self,
        grant: Grant,
        data: bytes | payload.Payload | None,
        progress: _Progress,
        into: Callable[[bytes], Awaitable[None]] | None,
    ) -> Response:
        url = URL(grant.url, encoded=True)
        async with self._open_session().request(
            grant.method,
            url,
            data=data,
            headers=dict(grant.headers),
            skip_auto_headers=[hdrs.CONTENT_TYPE],
            allow_redirects=False,
            proxy=self._proxy(url),
        ) as response:
            progress.answered()
            if into and response.status == 200:  # noqa: PLR2004
                kept = b""
                async for piece in response.content.iter_any():
                    await into(piece)
                    progress.received(len(piece))
            else:
                kept = await read_at_most(response, KEPT_BODY, progress.answered)
            told = ((name.lower(), value) for name, value in response.headers.items())
            headers = {name: value for name, value in told if name not in UNREAD}
            return Response(response.status, *self._secrets.of(grant.url, grant.headers).redacted(headers, kept))

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=self._limit, ssl=self._tls or True, keepalive_timeout=20, socket_factory=_socket
                ),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._timeout),
                headers={"User-Agent": f"presignd/{presignd.__version__}", "Accept-Encoding": "identity"},
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session

    def _proxy(self, url: URL) -> str | None:
        """Look once an origin: the environment doesn't change, and reading all of it took as long as signing."""
        origin = f"{url.scheme}://{url.raw_authority}"
        if origin not in self._proxies:
            self._proxies[origin] = proxy_for(origin, self._presign.proxy)
        return self._proxies[origin]

    def _compare_clocks(self, answer: Response) -> None:
        date = answer.date
        if date is not None:
            self.clock_offset = (date - self._clock()).total_seconds()

    async def close(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()
            self._session = None


def _head_size(grant: Grant) -> int:
    """Return about how many bytes a request's head has; some 100 of them are aiohttp's and our name."""
    return len(grant.url) + sum(len(name) + len(value) + 4 for name, value in grant.headers.items()) + 100


def _socket(address: AddrInfoType) -> socket.socket:
    """Make a socket that takes little more than it has sent."""
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    hold_little(made)
    return made
