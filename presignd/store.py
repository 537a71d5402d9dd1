"""The HTTP seam: sends granted requests to the store, and turns whatever goes wrong into a ``Fault``.

Nothing outside this module sees an aiohttp client error: those carry the URL in ``str`` and ``repr``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass

from presignd.config import PresignConfig, UploadConfig
from presignd.presign import Grant


@dataclass(frozen=True, slots=True)
class Answer:
    """The store's answer: status, headers (lower-case names), and up to 64 KiB of the body."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""


class StoreClient:
    """One HTTP client for the store: its TLS, proxy, timeouts and connections."""

    def __init__(self, presign: PresignConfig, upload: UploadConfig) -> None:
        raise NotImplementedError

    async def send(
        self,
        grant: Grant,
        body: bytes | AsyncIterator[bytes] | None = None,
        *,
        accept: Collection[int] = (),
    ) -> Answer:
        """Send one granted request; 2xx and statuses in ``accept`` are answers, all else raises ``Fault``.

        Redirects are not followed.
        """
        raise NotImplementedError

    async def close(self) -> None:
        """Close every connection."""
