"""The HTTP server of page and broker: where it listens, and which connection it closes for a new one."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from typing import TYPE_CHECKING, Any

import pytest
import uvloop
from aiohttp import web

from presignd.errors import Unavailable
from presignd.runtime.clients import Connections
from presignd.runtime.http_server import HttpServer

if TYPE_CHECKING:
    from collections.abc import Callable

IPV6 = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0, 0, 0))
IPV4 = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))


class WithoutIPv6(socket.socket):
    """A socket on a kernel that was started with ipv6.disable=1."""

    def __init__(self, family: int = -1, *args: Any, **more: Any) -> None:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        super().__init__(family, *args, **more)


def server(address: str) -> HttpServer:
    return HttpServer(
        web.Application(),
        address,
        "web.listen",
        connections=Connections(),
        most=lambda: 1,
        idle_seconds=60,
        cut_seconds=1,
    )


@pytest.mark.parametrize("found", [[IPV6, IPV4], [IPV4, IPV6]])
async def test_an_address_of_a_family_that_the_kernel_lacks_is_left_out(
    monkeypatch: pytest.MonkeyPatch, found: list[Any]
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    monkeypatch.setattr(socket, "socket", WithoutIPv6)
    it = server("localhost:0")
    await it.open()
    assert it.place.startswith("localhost:")
    await it.close()


async def test_where_the_kernel_lacks_every_family_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [IPV6])
    monkeypatch.setattr(socket, "socket", WithoutIPv6)
    it = server("localhost:0")
    with pytest.raises(Unavailable, match="Address family not supported"):
        await it.open()
    await it.close()


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_connection_too_many_closes_the_longest_quiet_one_on_every_event_loop(
    loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """The daemon and the broker run on uvloop, whose transports are none of asyncio's classes."""

    async def answered(host: str, port: str) -> tuple[bytes, asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        told = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(len(b"404: Not Found"))
        return told.partition(b"\r\n")[0], reader, writer

    async def both() -> None:
        it = server("127.0.0.1:0")
        await it.open()
        it.serve()
        address = it.place.split(":")
        try:
            async with asyncio.timeout(30):
                opened = [await answered(*address) for _ in range(2)]
                assert [told for told, _, _ in opened] == [b"HTTP/1.1 404 Not Found"] * 2
                assert await opened[0][1].read() == b""
                for _, _, writer in opened:
                    writer.close()
                    await writer.wait_closed()
        finally:
            await it.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(both())
