"""Request bodies: a file or bytes, in pieces, with progress; a large file by sendfile(2).

With sendfile(2) a file's bytes go from the page cache to the connection, and no program reads them a second time.
The event loop keeps the connection and goes on reading, so it sees a response that comes before the body's end.
Only the writing uses descriptors of its own, in a thread, one turn at a time.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from types import TracebackType
from typing import Self

from aiohttp import payload
from aiohttp.abc import AbstractStreamWriter

from presignd.errors import Fault, fault
from presignd.store.client import Slice
from presignd.store.rate import RateLimit
from presignd.system.filesystem import close_quietly, read_cached
from presignd.system.threads import SENDING

CHUNK = 256 << 10
"""Bytes of one read of a streamed body: the page cache holds what the hash pass has just read."""

PIECE = 64 << 10
"""Bytes that count as progress. On a line of 1 Mbit/s, sixteen uploads take eight seconds for one piece each."""

LARGEST_PIECE, FAST_PIECE = 4 * PIECE, 0.05
"""Pieces grow to ``LARGEST_PIECE`` while each takes less than ``FAST_PIECE`` seconds."""

LAST_WORDS = 1.0
"""Seconds for the loop to read a response from a connection that accepts no more bytes."""

LEAST_SENDFILE = 512 << 10
"""Bytes from which a body is worth the thread's turns and descriptors."""

MOST = 4 << 20
"""Most bytes that one turn sends."""

TURN = 0.2
"""Longest turn in seconds: progress is reported after each, so a stalled line is noticed."""

SLOW, QUICK = 128 << 10, 4 << 20
"""Most unsent bytes in the kernel: on any line, and on one that took a whole turn's bytes in time.

The kernel wakes the thread when half of that is gone. With ``SLOW`` alone, or with a megabyte, a GiB took 0.1 to 0.2 s
more of CPU on loopback than without a limit. A line that falls from 10 MB/s to the 70 kB/s at which 4 MiB take a minute
costs one timeout.
"""

UNSUPPORTED = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM})
"""Errors of sendfile(2) on a file system that lacks it, or under a filter of system calls."""


class FileBody(payload.Payload):
    """A slice of a file as a request body: sent by sendfile(2) if it is large and that works, else read in chunks.

    A file that is shorter, or longer than a ``whole`` slice, sets ``fault`` to ``changed_while_uploading``: aiohttp
    would cut a longer body silently and wait for ever on a shorter one. The size is checked before the last chunk is
    sent, so the body of a changed file stays incomplete and no store keeps it.
    """

    _value: int

    def __init__(
        self, of: Slice, *, rate: RateLimit, on_sent: Callable[[int], None], chunk: int = CHUNK, file: str = ""
    ) -> None:
        super().__init__(of.fd, headers={})
        self._size = of.size
        self._offset, self._whole, self._rate = of.offset, of.whole, rate
        self._chunk, self._file = chunk, file
        self._on_sent = on_sent
        self.fault: Fault | None = None

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:  # noqa: ARG002 - aiohttp's signature
        """Raise ``TypeError``: a file body is sent, never shown."""
        raise TypeError("a file body has no text form")

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Send the whole body."""
        await self.write_with_length(writer, None)

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:  # noqa: ARG002
        """Send the whole body. Its length is fixed by the grant's signature."""
        size = self._size or 0
        # The last piece is always read, so that the end of the file is checked, and so that aiohttp sees the body's
        # end: it considers a response before that early, and closes the connection.
        sent = await self._sendfile(writer, size - PIECE) if size >= LEAST_SENDFILE else 0
        piece = PIECE
        for done in range(sent, size, self._chunk):
            want = min(self._chunk, size - done)
            data = await self._read_soon(self._offset + done, want, last=done + want == size)
            await self._rate.take(want, self._file)
            piece = await _write_in_pieces(writer, data, done, self._on_sent, piece)

    async def _sendfile(self, writer: AbstractStreamWriter, size: int) -> int:
        """Send ``size`` bytes by sendfile(2); return how many were sent: fewer if it is unsupported."""
        direct = await direct_send(writer, self._value)
        if direct is None:
            return 0
        done = paid = 0
        with direct:
            while done < size:
                if done == paid:
                    paid = min(size, done + self._rate.chunk(MOST))
                    await self._rate.take(paid - done, self._file)
                try:
                    sent = await direct.send(self._offset + done, paid - done)
                except Unsupported:
                    break
                except (EOFError, OSError):
                    await self._find_cause(done)
                    raise
                done += sent
                if sent:  # a turn on a stalled line is not progress
                    self._on_sent(done)
        return done

    async def _find_cause(self, done: int) -> None:
        """Raise the fault if the file is the cause; otherwise give the loop time to read the store's response.

        A store may respond before it hangs up. The loop then reads the response and cancels this task.
        """
        await asyncio.to_thread(self._read, self._offset + done, 1, last=False)
        await asyncio.sleep(LAST_WORDS)

    async def _read_soon(self, offset: int, want: int, *, last: bool) -> bytes | memoryview:
        """Read from the page cache, which holds what was just hashed, else in a thread.

        A thread for each chunk cost over https a third of the CPU of sending: 12,000 thread switches per GiB.
        """
        with suppress(BlockingIOError):
            data = read_cached(self._value, want, offset)
            if len(data) == want and not (self._whole and last and os.fstat(self._value).st_size > offset + want):
                await asyncio.sleep(0)  # a fast line never pauses this body, and others have their turn
                return data
        return await asyncio.to_thread(self._read, offset, want, last=last)

    def _read(self, offset: int, want: int, *, last: bool) -> bytes:
        try:
            data = os.pread(self._value, want, offset)
            grown = self._whole and last and bool(os.pread(self._value, 1, offset + want))
        except OSError as problem:
            raise self._failed("read_error", os.strerror(problem.errno or 0)) from None
        if len(data) != want or grown:
            raise self._failed("changed_while_uploading", "its size changed")
        return data

    def _failed(self, code: str, detail: str) -> Fault:
        self.fault = fault(code, detail)
        return self.fault


class MemoryBody(payload.BytesPayload):
    """Bytes as a request body, with progress: on a slow line a megabyte may take minutes."""

    def __init__(self, data: bytes, *, on_sent: Callable[[int], None]) -> None:
        super().__init__(b"")  # aiohttp warns of bytes beyond a megabyte, which it would send in one write
        self._value, self._size = data, len(data)
        self._on_sent = on_sent

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:  # noqa: ARG002
        """Send the whole body."""
        await _write_in_pieces(writer, self._value, 0, self._on_sent)


async def _write_in_pieces(
    writer: AbstractStreamWriter,
    data: bytes | memoryview,
    before: int,
    on_sent: Callable[[int], None],
    size: int = PIECE,
) -> int:
    """Write ``data``, and call ``on_sent`` after each piece with the total; ``before`` bytes were sent earlier.

    ``size`` is that of the first piece; return that of the next.
    """
    view, time = memoryview(data), asyncio.get_running_loop().time
    start = 0
    while start < len(data):
        began, piece = time(), view[start : start + size]
        await writer.write(piece)
        start += len(piece)
        on_sent(before + start)
        # Each piece costs a turn of the loop, so a fast line gets larger ones.
        size = min(2 * size, LARGEST_PIECE) if time() - began < FAST_PIECE else PIECE
    return size


# --- sendfile(2) --------------------------------------------------------------------------------------


class Unsupported(Exception):
    """This file or this system does not support sendfile(2)."""


class DirectSend:
    """Sends a file to a connection by sendfile(2), inside a ``with`` that may end at any time.

    Both descriptors are duplicates: if the originals are closed meanwhile, neither other bytes nor another connection
    can take their place. Raises ``OSError`` if no descriptors are left.
    """

    def __init__(self, connection: int, file: int) -> None:
        self._connection = socket.socket(fileno=os.dup(connection))
        try:
            self._file = os.dup(file)
        except OSError:
            self._connection.close()
            raise
        self._turn: Future[int] | None = None

    async def send(self, offset: int, size: int) -> int:
        """Send up to ``size`` bytes from ``offset`` in one turn; return how many were sent.

        Raises ``EOFError`` at the file's end, ``Unsupported``, and ``OSError`` for the file and the connection alike.
        """
        self._turn = SENDING.submit(self._push, offset, size)
        return await asyncio.wrap_future(self._turn)

    def _push(self, offset: int, size: int) -> int:
        sent, end = 0, time.monotonic() + TURN
        room = select.poll()
        room.register(self._connection, select.POLLOUT)
        while sent < size and (left := end - time.monotonic()) > 0:
            if not room.poll(left * 1000):
                break
            try:
                sent += self._push_once(offset + sent, size - sent)
            except (EOFError, OSError, Unsupported):
                if not sent:
                    raise
                break  # report what was sent; the next turn meets the same error
        hold_little(self._connection, QUICK if sent == size >= MOST // 2 else SLOW)
        return sent

    def _push_once(self, offset: int, size: int) -> int:
        try:
            sent = os.sendfile(self._connection.fileno(), self._file, offset, size)
        except BlockingIOError:
            return 0
        except OSError as problem:
            if problem.errno in UNSUPPORTED:
                raise Unsupported from None
            raise
        if not sent:
            raise EOFError
        return sent

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._turn is None or self._turn.done():
            self._close()
            return
        # Cancelled during a turn: shutting down the connection, which is of no more use, wakes the thread.
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._turn.add_done_callback(lambda _: self._close())

    def _close(self) -> None:
        self._connection.close()
        close_quietly(self._file)


def hold_little(connection: socket.socket, most: int = SLOW) -> None:
    """Limit the bytes that the kernel buffers unsent to ``most``: buffered bytes count as progress."""
    with suppress(OSError, AttributeError):  # not every kernel and Python has this option
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, most)


async def direct_send(writer: AbstractStreamWriter, file: int) -> DirectSend | None:
    """Send the request's head, then return a ``DirectSend``; None with TLS, or on a system other than Linux.

    TLS bytes are made in this process.
    """
    transport: asyncio.Transport | None = getattr(writer, "transport", None)
    if sys.platform != "linux" or transport is None or transport.get_extra_info("sslcontext"):
        return None
    writer.send_headers()
    pause = 0.0
    while transport.get_write_buffer_size():
        await asyncio.sleep(pause)
        pause = 0.01
    connection = transport.get_extra_info("socket")
    if transport.is_closing() or connection is None:
        return None
    try:
        return DirectSend(connection.fileno(), file)
    except OSError:
        return None
