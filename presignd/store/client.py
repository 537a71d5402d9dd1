"""The store's HTTP client: sends granted requests, and raises a ``Fault`` for every failure."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from datetime import datetime
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

from presignd.config import PresignConfig, UploadConfig
from presignd.connection import tls_context
from presignd.presign import Grant
from presignd.s3.responses import Response, fault_of
from presignd.store.rate import RateLimit
from presignd.system.clock import utcnow

if TYPE_CHECKING:
    from presignd.store.exchange import Exchange

KEPT_BODY = 64 << 10
"""Most bytes of a response's body that are read: a store may send an error of 100 MB."""


class Slice(NamedTuple):
    """``size`` bytes of a descriptor from ``offset``, to be sent; ``whole`` if the file ends there."""

    fd: int
    offset: int
    size: int
    whole: bool


class StoreClient:
    """The HTTP client for one store: TLS, proxy, timeouts and connections.

    ``clock_offset`` is the store's clock minus ours in seconds, by the Date (whole seconds) of the last response that
    was a refusal, or had another Date than the one before. Raises ``UsageError`` for unusable TLS files.
    """

    def __init__(
        self,
        presign: PresignConfig,
        upload: UploadConfig,
        *,
        clock: Callable[[], datetime] = utcnow,
        rate: RateLimit | None = None,
    ) -> None:
        self._rate = rate or RateLimit(upload.max_rate)
        self._presign, self._upload = presign, upload
        self._clock = clock
        self._tls = tls_context(presign) if presign.endpoint.startswith("https:") or presign.public_endpoint else None
        self._opened: Exchange | None = None
        self._date = ""
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
        file. ``into`` takes the body of a 200 or 206 piece by piece; without it, up to ``KEPT_BODY`` bytes are kept.
        Redirects are not followed.
        """
        exchange = self._opened or self._open()
        response = await exchange.send(grant, body, on_sent=on_sent, timeout=timeout, file_of=file_of, into=into)
        done = response.status // 100 == 2 or response.status in accept  # noqa: PLR2004 - 2xx
        said = response.headers.get("date", "")
        # All responses of a second have the same Date. But a refusal may be due to our clock, which was set just now.
        if (said != self._date or not done) and (date := response.date) is not None:
            self._date, self.clock_offset = said, (date - self._clock()).total_seconds()
        if done:
            return response
        raise fault_of(response, expires_at=grant.expires_at, now=self._clock(), clock_offset=self.clock_offset)

    def load(self) -> None:
        """Import what the first request needs, before it: that takes some 0.1 s. Safe in any thread."""
        import_module("presignd.store.exchange")  # not at the top: a start sends nothing where all is uploaded

    def _open(self) -> Exchange:
        from presignd.store.exchange import Exchange  # noqa: PLC0415 - as above

        self._opened = Exchange(self._presign, self._upload, tls=self._tls, rate=self._rate)
        return self._opened

    async def close(self) -> None:
        """Close every connection."""
        if self._opened is not None:
            await self._opened.close()
            self._opened = None
