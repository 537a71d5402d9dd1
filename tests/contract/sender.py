"""Sends grants unchanged, as any holder could."""

from __future__ import annotations

import io
from dataclasses import dataclass

import aiohttp
from yarl import URL

from presignd.presign import Grant


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes


class Sender:
    """Sends a grant unchanged, with an HTTP client that adds nothing."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def __call__(self, grant: Grant | Exception, body: bytes | None = None, **changed: str | None) -> Reply:
        """Send ``grant``; ``changed`` (``_`` for ``-``) replaces or, with None, leaves out bound headers."""
        assert isinstance(grant, Grant)
        headers = {name.lower(): value for name, value in grant.headers.items()}
        for name, value in changed.items():
            headers.pop(name.replace("_", "-"), None)
            if value is not None:
                headers[name.replace("_", "-")] = value
        url = URL(grant.url, encoded=True)
        skip = ["Content-Type", "User-Agent", "Accept", "Accept-Encoding"]
        async with self._session.request(
            grant.method,
            url,
            data=None if body is None else io.BytesIO(body),
            headers=headers,
            skip_auto_headers=skip,
            allow_redirects=False,
        ) as reply:
            found = {name.lower(): value for name, value in reply.headers.items()}
            return Reply(reply.status, found, await reply.read())
