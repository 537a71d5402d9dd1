"""The HTTP server of the status page and of the broker, on aiohttp: connections, time and memory are limited.

aiohttp's own sites (``TCPSite``, ``UnixSite``, ``SockSite``) hand the socket to asyncio, which accepts without limit
and hides connections that are still in their TLS handshake. So this module accepts connections itself: to count those,
to close an idle connection for a new one, and to use another certificate without a restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import ssl
from collections.abc import Callable

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from presignd.config.addresses import Listen, parse_listen
from presignd.errors import Unavailable
from presignd.runtime.clients import Connections
from presignd.runtime.unix_socket import BACKLOG, listening

HANDSHAKE_SECONDS = 10.0
"""How long a TLS handshake may take."""
ACCEPT_PAUSE = 0.1
"""Seconds until the next try after a connection could not be accepted."""
LINGER_SECONDS = 1.0
"""How long the rest of a refused body is read, so that the client gets its answer."""

_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\n"
    b"Content-Type: application/json\r\nContent-Length: 62\r\n\r\n"
    b'{"error": {"code": "busy", "message": "too many connections"}}'
)

# A stranger's malformed request is not worth an event, and its text could be anything.
_silent = logging.getLogger("presignd.http")
_silent.disabled = True


class HttpServer:
    """Serves ``app`` at ``address``, which the configuration calls ``option``: ``open``, ``serve``, ``close``.

    ``most`` returns how many connections there may be, those in their handshake included: otherwise a stranger could
    take every descriptor without any HTTP. One more connection closes the one that ``connections`` names.
    ``idle_seconds`` is how long a connection may be idle, and a request's head may take; ``cut_seconds`` how long
    ``close`` waits for answers.
    """

    def __init__(
        self,
        app: web.Application,
        address: str,
        option: str,
        *,
        connections: Connections,
        most: Callable[[], int],
        idle_seconds: float,
        cut_seconds: float,
    ) -> None:
        self._address, self._option = address, option
        self._listen = parse_listen(address)
        self._connections, self._most = connections, most
        self._runner = web.AppRunner(
            app,
            handler_cancellation=True,
            access_log=None,
            logger=_silent,
            keepalive_timeout=idle_seconds,
            lingering_time=LINGER_SECONDS,
            auto_decompress=False,  # no client sends such a body, and a small one could become a large one
            shutdown_timeout=cut_seconds,
        )
        self._open = contextlib.ExitStack()
        self._sockets: list[socket.socket] = []
        self.place = ""
        """The address at which it listens, once open: for port 0, with the port that was free."""
        self._context: ssl.SSLContext | None = None
        self._accepting: list[asyncio.Task[None]] = []
        self._coming: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Bind the address.

        Raises ``Unavailable`` where another process has it or there is no such address, and ``UsageError`` where a
        Unix socket can't be made there.
        """
        await self._runner.setup()
        try:
            if self._listen.path is not None:
                self._sockets = [self._open.enter_context(listening(self._listen.path, self._option))]
                self.place = f"unix:{self._listen.path}"
                return
            self._sockets = await _bound(self._listen, self._open)
        except OSError as error:
            # A bind's own text repeats the address; a resolver's error numbers are negative.
            number = error.errno or 0
            why = os.strerror(number) if number > 0 else error.strerror
            fix = f"end what listens there, or give {self._option} another address"
            raise Unavailable(f"{self._address}: {why}", fix=fix) from None
        host = f"[{self._listen.host}]" if ":" in self._listen.host else self._listen.host
        self.place = f"{host}:{self._sockets[0].getsockname()[1]}"

    @property
    def connection_count(self) -> int:
        """How many clients are connected."""
        return len(self._server.connections)

    @property
    def _server(self) -> web.Server:
        assert self._runner.server is not None, "there is none before open()"
        return self._runner.server

    def serve(self, context: ssl.SSLContext | None = None) -> None:
        """Accept connections, with TLS if there is a ``context``; call this again to use a new one from then on."""
        self._context = context
        if not self._accepting:
            self._accepting = [asyncio.create_task(self._accept(sock), name="accept") for sock in self._sockets]

    async def stop_listening(self) -> None:
        """Accept no more, and remove the socket file; open connections stay."""
        tasks = [*self._accepting, *self._coming]
        self._accepting, self._sockets = [], []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._open.close()  # not before the event loop has let go of the sockets

    async def close(self) -> None:
        """Accept no more, and end every connection."""
        await self.stop_listening()
        await self._runner.cleanup()

    async def _accept(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, _ = await loop.sock_accept(sock)
            except OSError:  # the client is gone, or this process has no descriptor left
                await asyncio.sleep(ACCEPT_PAUSE)
                continue
            if not self._make_room():
                _turn_away(accepted, tls=self._context is not None)
                continue
            coming = asyncio.create_task(self._connect(accepted, self._context), name="connection")
            self._coming.add(coming)
            self._connections.used(coming)
            coming.add_done_callback(self._coming.discard)

    def _make_room(self) -> bool:
        """Close a connection for a new one if there are too many; return False if none may be closed."""
        present: list[RequestHandler | asyncio.Task[None]] = [one for one in self._server.connections if _is_open(one)]
        present += [coming for coming in self._coming if not coming.cancelling()]
        if len(present) < self._most():
            return True
        match self._connections.to_close(present):
            case asyncio.Task() as coming:
                coming.cancel()  # asyncio closes its socket
            case RequestHandler() as connection if connection.transport:  # uvloop's are no asyncio.Transport
                connection.transport.abort()
            case _:
                return False
        return True

    async def _connect(self, accepted: socket.socket, context: ssl.SSLContext | None) -> None:
        """Serve a connection once its TLS handshake is done; a handshake that fails is not logged."""
        loop, seconds = asyncio.get_running_loop(), HANDSHAKE_SECONDS if context else None
        try:
            await loop.connect_accepted_socket(self._protocol, accepted, ssl=context, ssl_handshake_timeout=seconds)
        except OSError:  # also TLS's errors and timeouts
            accepted.close()

    def _protocol(self) -> RequestHandler:
        protocol = self._server()
        self._connections.used(protocol)
        return protocol


def _is_open(connection: RequestHandler) -> bool:
    return connection.transport is not None and not connection.transport.is_closing()


def _turn_away(accepted: socket.socket, *, tls: bool) -> None:
    """Refuse a surplus connection with a 503, or without an answer if that would need TLS."""
    with accepted, contextlib.suppress(OSError):
        if not tls:
            accepted.send(_BUSY)
            accepted.shutdown(socket.SHUT_WR)


async def _bound(listen: Listen, stack: contextlib.ExitStack) -> list[socket.socket]:
    """Listen at every address of a host, until ``stack`` closes; for port 0, at the first one alone."""
    found = await asyncio.get_running_loop().getaddrinfo(
        listen.host, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    with contextlib.ExitStack() as opened:
        sockets, lacking = [], OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
        for family, kind, _, _, address in dict.fromkeys(found):
            try:
                sock = opened.enter_context(socket.socket(family, kind))
            except OSError as error:  # many hosts files name ::1 for localhost, even where the kernel has no IPv6
                lacking = error
                continue
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(address)
            sock.listen(BACKLOG)
            sock.setblocking(False)
            sockets.append(sock)
            if not listen.port:
                break
        if not sockets:
            raise lacking
        stack.push(opened.pop_all())
    return sockets
