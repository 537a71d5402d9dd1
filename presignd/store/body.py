"""A file's bytes from the page cache to a connection by sendfile(2): no program reads them a second time.

The connection stays the event loop's, which goes on reading from it, so an answer that comes before the body's
end is met as ever. Only the writing goes by descriptors of its own, in a thread, a turn at a time.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import socket
import sys
import time
from concurrent.futures import Future
from contextlib import suppress
from types import TracebackType
from typing import Self

from aiohttp.abc import AbstractStreamWriter

from presignd.system.filesystem import close_quietly
from presignd.system.threads import SENDING

LEAST = 512 << 10
"""Bytes of a body from which the thread's turns and descriptors are worth it."""

MOST = 4 << 20
"""Bytes a turn sends at most."""

TURN = 0.2
"""Seconds a turn lasts at most, whatever went: so progress is told, and a line that stands is seen."""

SLOW, QUICK = 128 << 10, 4 << 20
"""Bytes that may wait unsent in the kernel: on any line, and on one where a whole turn's bytes went in time.

It wakes the thread when half of that is gone: with the first, or a megabyte, a GiB took 0.1 to 0.2 s more of CPU on
loopback than without a bound. A line that falls from 10 MB/s to the 70 kB/s at which 4 MiB take a minute has one
timeout by it.
"""

UNSUPPORTED = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM})
"""sendfile(2): what a file system that can't, or a filter of system calls, answers."""


class Unsupported(Exception):
    """This file or this system has no sendfile."""


class Straight:
    """The way from a file to a connection, for the time of a ``with``. Safe to leave at any moment.

    Both descriptors are duplicates: a close of the originals under way can't have other bytes sent, or
    these to anybody else. Raises ``OSError`` when there are none left.
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
        """Send of ``size`` bytes from ``offset`` what the other side takes in one turn; return how many went.

        Raises ``EOFError`` where the file ends, ``Unsupported``, and ``OSError`` for file and connection alike.
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
                break  # what went counts; the next turn meets the same
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
        # Cancelled under way: the connection is of no more use, and its end wakes the thread, which closes both.
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._turn.add_done_callback(lambda _: self._close())

    def _close(self) -> None:
        self._connection.close()
        close_quietly(self._file)


def hold_little(connection: socket.socket, most: int = SLOW) -> None:
    """Have the kernel take ``most`` bytes more than it has sent: what it took is what counts as progress."""
    with suppress(OSError, AttributeError):  # a kernel or a Python that has no such option goes without
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, most)


async def straight(writer: AbstractStreamWriter, file: int) -> Straight | None:
    """Return the way from ``file`` to ``writer``'s connection, once its head is sent; None where there is none.

    TLS has none, for its bytes are made in this process; nor has anything but Linux.
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
        return Straight(connection.fileno(), file)
    except OSError:
        return None
