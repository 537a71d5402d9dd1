"""Bytes of unknown length over a socket, with a mark at their end.

A socket that is closed has no such mark, so a writer that was killed is not mistaken for one that has finished. Each
frame is its length (4 bytes, big-endian) and as many bytes; an empty frame is the mark.
"""

from __future__ import annotations

import asyncio
import os
import socket

LENGTH = 4
CHUNK = 256 << 10
"""Most bytes of one read, and so of a frame."""


class CutOff(Exception):
    """The writer is gone without having sent the end mark."""


def send(source: int, connection: socket.socket) -> None:
    """Send all that the descriptor ``source`` reads, and the mark. Blocking; raises ``OSError`` of either end."""
    while data := os.read(source, CHUNK):
        connection.sendall(len(data).to_bytes(LENGTH, "big") + data)
    connection.sendall(bytes(LENGTH))


class Frames:
    """The reading end, on the event loop. The caller closes the socket."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._left = 0
        self._ended = False

    async def read_into(self, room: memoryview) -> int:
        """Read up to ``len(room)`` bytes into it; return how many, 0 after the mark. Raises ``CutOff``."""
        if not self._left and not self._ended:
            self._left = int.from_bytes(await self._exactly(LENGTH), "big")
            self._ended = not self._left
        if self._ended:
            return 0
        size = await self._receive(room[: self._left])
        self._left -= size
        return size

    async def _exactly(self, size: int) -> bytes:
        data = bytearray(size)
        at = 0
        while at < size:
            at += await self._receive(memoryview(data)[at:])
        return bytes(data)

    async def _receive(self, room: memoryview) -> int:
        try:
            size = await asyncio.get_running_loop().sock_recv_into(self._connection, room)
        except OSError:
            size = 0
        if not size:
            raise CutOff
        return size
