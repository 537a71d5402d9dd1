"""Sockets: listening so that a new certificate takes no restart and loses no connection."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

from presignd.config.listen import Listen, parse_listen
from presignd.errors import Unavailable

BACKLOG = 512
HANDSHAKE_SECONDS = 10.0
"""What a TLS handshake may take."""

_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\n"
    b"Content-Type: application/json\r\nContent-Length: 62\r\n\r\n"
    b'{"error": {"code": "busy", "message": "too many connections"}}'
)

Protocols = Callable[[], asyncio.Protocol]


class TurnedAway(asyncio.Protocol):
    """A connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say so, and end it."""
        assert isinstance(transport, asyncio.Transport)
        transport.write(_BUSY)
        transport.close()


class Listener:
    """Listens at one address, from ``open`` to ``close``; ``serve`` says by which certificate, again and again.

    The sockets stay while the servers on them change, so connections that come meanwhile just wait.
    """

    def __init__(self, text: str, option: str, protocols: Protocols) -> None:
        self._listen = parse_listen(text)
        self._option, self._text, self._protocols = option, text, protocols
        self._sockets: list[socket.socket] = []
        self._servers: list[asyncio.Server] = []

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

    async def serve(self, context: ssl.SSLContext | None) -> None:
        """Accept from now on with ``context``; connections there are go on as they are."""
        before = self._servers
        self._servers = [await self._accepting(sock.dup(), context) for sock in self._sockets]
        for server in before:
            server.close()

    async def _accepting(self, sock: socket.socket, context: ssl.SSLContext | None) -> asyncio.Server:
        loop, handshake = asyncio.get_running_loop(), HANDSHAKE_SECONDS if context else None
        if sock.family == socket.AF_UNIX:
            return await loop.create_unix_server(
                self._protocols, sock=sock, ssl=context, backlog=BACKLOG, ssl_handshake_timeout=handshake
            )
        return await loop.create_server(
            self._protocols, sock=sock, ssl=context, backlog=BACKLOG, ssl_handshake_timeout=handshake
        )

    def close(self) -> None:
        """Accept no more, and leave no socket file."""
        for server in self._servers:
            server.close()
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)  # for the copies, too: a loop may let go of its own later
            sock.close()
        if self._listen.path is not None and self._sockets:
            with contextlib.suppress(OSError):
                self._listen.path.unlink()
        self._servers, self._sockets = [], []


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
