"""Frames over a socket: every byte, and an end that is told from a writer that is gone."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import Iterator

import pytest

from presignd.runtime.frames import CHUNK, CutOff, Frames, send

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


async def read_all(frames: Frames, room: int = 1000) -> bytes:
    """Read to the mark, through a buffer of ``room`` bytes."""
    buffer, data = bytearray(room), b""
    while size := await frames.read_into(memoryview(buffer)):
        data += buffer[:size]
    return data


def send_bytes(data: bytes, connection: socket.socket) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb"), os.fdopen(writing, "wb") as source:
        source.write(data)
        source.close()
        send(reading, connection)


@pytest.mark.parametrize("data", [b"", b"x", random.Random(1).randbytes(60_000)], ids=["empty", "one", "many"])
async def test_what_is_sent_is_read_and_ends(pair: Pair, data: bytes) -> None:
    ours, theirs = pair
    await asyncio.to_thread(send_bytes, data, ours)
    frames = Frames(theirs)
    assert await read_all(frames) == data
    assert await frames.read_into(memoryview(bytearray(1))) == 0, "it stays at its end"


async def test_a_writer_waits_for_its_reader(pair: Pair) -> None:
    ours, theirs = pair
    data = random.Random(2).randbytes(3 * CHUNK)
    ours.setblocking(False)
    frames = Frames(theirs)
    framed = len(data).to_bytes(4, "big") + data + bytes(4)
    _, got = await asyncio.gather(asyncio.get_running_loop().sock_sendall(ours, framed), read_all(frames, CHUNK))
    assert got == data


@pytest.mark.parametrize("sent", [b"", b"\0\0", b"\0\0\0\5", b"\0\0\0\5abc", b"\0\0\0\1a"])
async def test_a_writer_that_is_gone_is_no_end(pair: Pair, sent: bytes) -> None:
    ours, theirs = pair
    ours.sendall(sent)
    ours.close()
    with pytest.raises(CutOff):
        await read_all(Frames(theirs))


async def test_a_writer_that_broke_the_connection_is_no_end_either(pair: Pair) -> None:
    ours, theirs = pair
    theirs.sendall(b"unread")
    ours.close()  # with bytes unread: the other end gets ECONNRESET
    with pytest.raises(CutOff):
        await read_all(Frames(theirs))
