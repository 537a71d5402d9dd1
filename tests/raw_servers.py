"""Servers that send the bytes that a test wants, and a client's tests on both event loops."""

from __future__ import annotations

import asyncio
import inspect
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import TypeVar, cast

import pytest
import uvloop

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Test = TypeVar("Test", bound=Callable[..., Coroutine[object, object, None]])


@asynccontextmanager
async def server(talk: Talk, *, receive: int = 0, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """Serve each connection by ``talk``; yield the endpoint. ``receive`` bounds the kernel's buffer."""
    listening = socket.socket()
    if receive:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
    listening.bind(("127.0.0.1", 0))

    async def guarded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await talk(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()

    serving = await asyncio.start_server(guarded, sock=listening, ssl=tls)
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        serving.close()


async def read_request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Return the head and the body of the next request."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"\r\ncontent-length: (\d+)\r\n", head, re.IGNORECASE)
    return head, await reader.readexactly(int(length[1]) if length else 0)


def says(answer: bytes) -> Talk:
    """Return a server that reads one request, and ends the connection after this answer."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(answer)
        await writer.drain()

    return talk


def on_both_loops(test: Test) -> Test:
    """Run a test on asyncio's loop and on uvloop: transports, sockets and what a close does differ."""

    def run(new_loop: Callable[[], asyncio.AbstractEventLoop], **given: object) -> None:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(test(**given))

    takes = inspect.signature(test)
    new_loop = inspect.Parameter("new_loop", inspect.Parameter.KEYWORD_ONLY)
    run.__signature__ = takes.replace(parameters=[*takes.parameters.values(), new_loop])  # type: ignore[attr-defined] # pytest reads it
    run.__name__, run.__doc__ = test.__name__, test.__doc__
    run.pytestmark = getattr(test, "pytestmark", [])  # type: ignore[attr-defined] # where parametrize puts its rows
    loops = pytest.mark.parametrize(
        "new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
    )
    return cast("Test", loops(run))
