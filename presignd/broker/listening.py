"""Sockets: listening so that a new certificate takes no restart and loses no connection."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from presignd.config.listen import Listen, parse_listen
from presignd.errors import Unavailable
from presignd.runtime.crowd import Crowd

BACKLOG = 512
HANDSHAKE_SECONDS = 10.0
"""What a TLS handshake may take."""
PAUSE = 0.1
"""Seconds until the next try where a connection could not be accepted."""

_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\n"
    b"Content-Type: application/json\r\nContent-Length: 62\r\n\r\n"
    b'{"error": {"code": "busy", "message": "too many connections"}}'
)


class Listener:
    """Listens at one address, from ``open`` to ``close``; ``serve`` says by which certificate, again and again.

    ``most`` tells how many connections there may be; one in its handshake counts, or a stranger could take every
    descriptor without a word of HTTP. For one more the one that ``crowd`` names leaves.
    """

    def __init__(self, text: str, option: str, server: web.Server, *, crowd: Crowd, most: Callable[[], int]) -> None:
        self._listen = parse_listen(text)
        self._option, self._text, self._server = option, text, server
        self._crowd, self._most = crowd, most
        self._context: ssl.SSLContext | None = None
        self._sockets: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []
        self._coming: set[asyncio.Task[None]] = set()

    def open(self) -> None:
        """Take the address; raise ``Unavailable`` where another has it, ``UsageError`` where there is none."""
        try:
            self._sockets = _bound(self._listen)
        except OSError as error:
            told = f"broker.{self._option}: can't listen at {self._text}: {error.strerror}"
            raise Unavailable(told, fix="end what listens there, or give another address") from None

    @property
    def place(self) -> str:
        """Where it really listens: with the port that was free, for port 0."""
        if self._listen.path is not None:
            return f"unix:{self._listen.path}"
        host, port = self._sockets[0].getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def serve(self, context: ssl.SSLContext | None) -> None:
        """Accept from now on with ``context``; connections there are go on as they are."""
        self._context = context
        if not self._accepting:
            self._accepting = [self._begin(sock) for sock in self._sockets]

    def _begin(self, sock: socket.socket) -> asyncio.Task[None]:
        accepting = asyncio.create_task(self._accept(sock), name="accept")
        accepting.add_done_callback(lambda _: sock.close())  # not before the loop has let go of it
        return accepting

    async def _accept(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(sock)
            except OSError:  # it broke off, or there is no descriptor for it
                await asyncio.sleep(PAUSE)
                continue
            if not self._has_room():
                _turn_away(connection, tls=self._context is not None)
                continue
            coming = asyncio.create_task(self._take(connection, self._context), name="connection")
            self._coming.add(coming)
            self._crowd.came(coming)
            coming.add_done_callback(self._coming.discard)

    def _has_room(self) -> bool:
        """Make room for one more where there is none; False where all that are there stay."""
        there: list[RequestHandler | asyncio.Task[None]] = [each for each in self._server.connections if _is_open(each)]
        there += self._coming
        if len(there) < self._most():
            return True
        match self._crowd.to_leave(there):
            case asyncio.Task() as coming:
                coming.cancel()  # asyncio closes its socket
            case RequestHandler(transport=asyncio.Transport() as transport):
                transport.abort()
            case _:
                return False
        return True

    async def _take(self, connection: socket.socket, context: ssl.SSLContext | None) -> None:
        """Have a connection served, once TLS stands; one that comes to nothing is no event."""
        loop, seconds = asyncio.get_running_loop(), HANDSHAKE_SECONDS if context else None
        try:
            await loop.connect_accepted_socket(self._made, connection, ssl=context, ssl_handshake_timeout=seconds)
        except OSError:  # TLS's errors and timeouts are such, too
            connection.close()

    def _made(self) -> RequestHandler:
        made = self._server()
        self._crowd.came(made)
        return made

    def close(self) -> None:
        """Accept no more, and leave no socket file."""
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            if not self._accepting:
                sock.close()
        for task in (*self._accepting, *self._coming):
            task.cancel()
        if self._listen.path is not None and self._sockets:
            with contextlib.suppress(OSError):
                self._listen.path.unlink()
        self._accepting, self._sockets = [], []


def _is_open(connection: RequestHandler) -> bool:
    return connection.transport is not None and not connection.transport.is_closing()


def _turn_away(connection: socket.socket, *, tls: bool) -> None:
    """End a connection too many: told so, but where TLS would have to stand first."""
    with connection, contextlib.suppress(OSError):
        if not tls:
            connection.send(_BUSY)
            connection.shutdown(socket.SHUT_WR)


def _bound(listen: Listen) -> list[socket.socket]:
    if listen.path is not None:
        return [_unix(listen.path)]
    sockets: list[socket.socket] = []
    found = socket.getaddrinfo(listen.host, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    try:
        for family, kind, _, _, address in dict.fromkeys(found):
            sock = socket.socket(family, kind)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(address)
            sock.listen(BACKLOG)
            sock.setblocking(False)
            if not listen.port:
                break  # any free port: another address would get another
    except OSError:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except TimeoutError:
            return True  # a full backlog: alive, only busy
        except OSError:
            return False
    return True


def _unix(path: Path) -> socket.socket:
    """Listen at a path; a socket that a broker left behind is replaced, one that answers is not."""
    if _answers(path):
        raise OSError(errno.EADDRINUSE, "another process listens there")
    if path.is_socket():
        path.unlink()
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.bind(str(path))
        path.chmod(0o660)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock
