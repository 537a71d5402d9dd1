"""An HTTP session that sends small requests on aiohttp's connections, without aiohttp's session layer.

Pool, DNS, TLS and parser are aiohttp's. Without the session layer, a PUT of 4 KiB takes a third less CPU time in
``StoreClient.send`` (0.09 instead of 0.13 ms). What aiohttp's documentation leaves out is used in this module only:
``Connection.protocol`` and its ``set_response_params`` and ``read``, and ``ClientRequest`` as what ``connect`` takes.
``tests/contract/test_lean.py`` compares the module with aiohttp's session.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from functools import lru_cache
from typing import NamedTuple, Self, TypeAlias

import aiohttp
from aiohttp import hdrs, payload
from aiohttp.connector import Connection
from aiohttp.http import HttpProcessingError
from yarl import URL

from presignd.connection import HttpResponse

_ORIGIN = re.compile(r"https?://[^\s/?#@]+(?=/)")
"""The origin of a URL that has a path and no user name. Other URLs are left to aiohttp's session."""

_CONTROL = bytes({*range(32), 127} - {ord("\t")})
"""Characters that no header may have: they could end it and begin another."""

_IDEMPOTENT = frozenset({"GET", "HEAD", "PUT", "DELETE"})
_WITHOUT_BODY = frozenset({"GET", "HEAD"})


_Headers: TypeAlias = tuple[tuple[str, str], ...]


class _Origin(NamedTuple):
    """What all requests to one origin share; the connector takes host, port and TLS from ``request``."""

    proxy: str | None
    request: aiohttp.ClientRequest
    headers: _Headers


class _Form(NamedTuple):
    """The header lines of requests with the same names, to be filled with the values of their own.

    ``line_ends`` are the characters CR and LF in such a head, ``length`` is the name of its Content-Length, or "".
    """

    lines: str
    line_ends: int
    length: str


class LeanSession:
    """aiohttp's session, which sends requests through a proxy and streamed bodies; others are sent without it.

    ``proxy_for`` returns the proxy for an origin. Redirects are not followed.
    """

    def __init__(self, session: aiohttp.ClientSession, proxy_for: Callable[[str], str | None]) -> None:
        assert session.connector
        self._session, self._connector = session, session.connector
        self._timeout = session.timeout
        self._proxy_for = proxy_for
        self._origins: dict[str, _Origin] = {}

    def request(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | payload.Payload | None
    ) -> AbstractAsyncContextManager[HttpResponse]:
        """Return a request that is sent when it is entered. If its response is not read to the end, it is closed.

        Raises ``ValueError`` for what can't be sent as one request.
        """
        plain = _ORIGIN.match(url)
        origin = self._origin(plain[0] if plain else str(URL(url, encoded=True).origin()))
        if plain and not origin.proxy and not isinstance(body, payload.Payload):
            body = body or b""
            head = _head(method, url[plain.end() :], origin.headers, headers, len(body))
            return _LeanRequest(self._connector, self._timeout, origin.request, method, head + body)
        return self._session.request(
            method,
            URL(url, encoded=True),
            data=body,
            headers=headers,
            skip_auto_headers=[hdrs.CONTENT_TYPE],
            allow_redirects=False,
            proxy=origin.proxy,
        )

    def _origin(self, origin: str) -> _Origin:
        """Return the shared part, made once per origin: reading the environment's proxies takes as long as signing."""
        if origin not in self._origins:
            request = aiohttp.ClientRequest(
                hdrs.METH_GET, URL(origin, encoded=True), headers=self._session.headers, loop=asyncio.get_running_loop()
            )
            self._origins[origin] = _Origin(self._proxy_for(origin), request, tuple(request.headers.items()))
        return self._origins[origin]

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()


def _head(method: str, target: str, shared: _Headers, headers: Mapping[str, str], size: int) -> bytes:
    """Return the head of a request with a body of ``size`` bytes; ``shared`` are headers of all requests.

    Raises ``ValueError`` if the store could read other requests or headers in it.
    """
    form = _form(shared, tuple(headers))
    lines = form.lines % tuple(headers.values())
    line_ends = form.line_ends
    if size or method not in _WITHOUT_BODY:
        if not form.length:
            lines, line_ends = f"Content-Length: {size}\r\n{lines}", line_ends + 2
        elif headers[form.length] != str(size):
            raise ValueError("Content-Length is not the body's length")
    head = f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode()
    if " " in target or "#" in target or len(head.translate(None, _CONTROL)) != len(head) - line_ends:
        raise ValueError("a character that can't be in a request's target or in a header")
    return head


@lru_cache(maxsize=64)
def _form(shared: _Headers, names: tuple[str, ...]) -> _Form:
    own = {name.lower(): name for name in names}
    if len(own) != len(names):
        raise ValueError("a header is given twice")
    lines = [f"{name}: {value}" for name, value in shared if name.lower() not in own]
    fixed = "".join(f"{line}\r\n" for line in lines).replace("%", "%%")
    return _Form(
        fixed + "".join(f"{name.replace('%', '%%')}: %s\r\n" for name in names),
        2 * (len(lines) + len(names) + 2),
        own.get("content-length", ""),
    )


class _LeanRequest:
    """One request and its response, in an ``async with``.

    If the connection ends before the response begins, an idempotent request is sent once more, as aiohttp's session
    does: a store may close a pooled connection at the moment it is used.
    """

    def __init__(
        self,
        connector: aiohttp.BaseConnector,
        timeout: aiohttp.ClientTimeout,
        request: aiohttp.ClientRequest,
        method: str,
        whole: bytes,
    ) -> None:
        self._connector, self._timeout, self._request = connector, timeout, request
        self._method, self._whole = method, whole
        self._connection: Connection
        self.status: int
        self.headers: Mapping[str, str]
        self.content: aiohttp.StreamReader

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    async def __aenter__(self) -> Self:
        connection = await self._connector.connect(self._request, [], self._timeout)
        try:
            await self._exchange(connection)
        except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError):
            if self._method not in _IDEMPOTENT:
                raise
            await self._exchange(await self._connector.connect(self._request, [], self._timeout))
        return self

    async def __aexit__(self, *_: object) -> None:
        transport = self._connection.transport
        if transport and transport.get_write_buffer_size():
            self._connection.close()  # the response came before the request's end; the store may not read the rest
        self._connection.release()  # this closes it if the response was not read to its end

    async def _exchange(self, connection: Connection) -> None:
        """Write the request soon, and read the head of the final response."""
        self._connection = connection
        protocol = connection.protocol
        if protocol is None or protocol.transport is None or protocol.transport.is_closing():
            connection.close()
            raise aiohttp.ServerDisconnectedError
        try:
            protocol.set_response_params(
                skip_payload=self._method == hdrs.METH_HEAD, read_until_eof=True, auto_decompress=False
            )
            # All requests of one turn of the loop are written after it. A small PUT took 102 to 113 us when each was
            # written at once, and 87 to 88 then (least of several rounds, on a busy machine).
            self._request.loop.call_soon(_write, protocol.transport, self._whole)
            message, self.content = await protocol.read()
            while message.code // 100 == 1 and message.code != 101:  # noqa: PLR2004 - 1xx come before the final response
                message, self.content = await protocol.read()
            self.status, self.headers = message.code, message.headers
        except BaseException as problem:
            connection.close()
            if isinstance(problem, HttpProcessingError):
                raise aiohttp.ClientResponseError(self._request.request_info, (), status=problem.code) from None
            raise


def _write(transport: asyncio.Transport, request: bytes) -> None:
    """Write a request, unless it was cancelled before."""
    if not transport.is_closing():
        transport.write(request)
