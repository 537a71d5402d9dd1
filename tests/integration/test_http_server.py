"""The HTTP server of page and broker: where it listens."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

import pytest
from aiohttp import web

from presignd.errors import Unavailable
from presignd.runtime.clients import Connections
from presignd.runtime.http_server import HttpServer

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
        idle_seconds=1,
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
