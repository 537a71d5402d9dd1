"""A proxy between the daemon and its store that fails by plan: one request a connection.

It waits, cuts a body or an answer, loses an answer whose request was done, flips a byte, resets, or
answers by itself. ``Proxy.plan`` decides for each request; ``calm`` lets everything pass. Nothing is
passed on for a client that is gone, so a killed daemon's requests never arrive after its successor's.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Self
from urllib.parse import urlsplit

LOOPBACK = "127.0.0.1"
LARGEST_HEAD = 64 << 10


class Kind(StrEnum):
    """How the proxy treats a request."""

    PASS = "pass"
    DELAY = "delay"
    SLOW_ANSWER = "slow_answer"
    CUT_BODY = "cut_body"
    CUT_ANSWER = "cut_answer"
    LOSE_ANSWER = "lose_answer"
    CORRUPT = "corrupt"
    RESET = "reset"
    ANSWER = "answer"


@dataclass(frozen=True, slots=True)
class Fault:
    """One decision: ``seconds`` for the delays, ``status`` for an answer of the proxy's own."""

    kind: Kind = Kind.PASS
    seconds: float = 0.0
    status: int = 503


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it came: its head as sent, and its whole body."""

    method: str
    target: str
    head: bytes
    body: bytes


Plan = Callable[[Request], Fault]


def calm(_: Request) -> Fault:
    """Let a request pass."""
    return Fault()


def stormy(rng: random.Random, rate: float) -> Plan:
    """Return a plan that lets ``rate`` of the requests (0 to 1) meet a fault: most only wait, many lose the answer."""
    kinds = [kind for kind in Kind if kind is not Kind.PASS]
    weights = [{Kind.DELAY: 10, Kind.SLOW_ANSWER: 10, Kind.LOSE_ANSWER: 3}.get(kind, 1) for kind in kinds]

    def plan(_: Request) -> Fault:
        if rng.random() >= rate:
            return Fault()
        return Fault(rng.choices(kinds, weights)[0], rng.uniform(0.02, 0.6), rng.choice((500, 503)))

    return plan


class Proxy:
    """Runs in a thread and event loop of its own; ``endpoint`` is the same as long as it lives."""

    def __init__(self, upstream: str, plan: Plan = calm) -> None:
        parts = urlsplit(upstream)
        assert parts.hostname
        self._upstream = (parts.hostname, parts.port or 80)
        self.plan = plan
        self.met: Counter[str] = Counter()
        self._loop = asyncio.new_event_loop()
        self._socket = socket.create_server((LOOPBACK, 0), backlog=1024)
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._ended = asyncio.Event()

    @property
    def endpoint(self) -> str:
        """``http://127.0.0.1:PORT``."""
        return f"http://{LOOPBACK}:{self._socket.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(10)

    def _run(self) -> None:
        with self._socket:
            self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        tasks: set[asyncio.Task[None]] = set()

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(self._connection(reader, writer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        async with await asyncio.start_server(connected, sock=self._socket, limit=LARGEST_HEAD):
            await self._ended.wait()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                request = await _read_request(reader)
                fault = self.plan(request)
                self.met[fault.kind] += 1
                await self._exchange(request, fault, Client(reader, writer))
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _exchange(self, request: Request, fault: Fault, client: Client) -> None:
        match fault.kind:
            case Kind.RESET:
                client.reset()
            case Kind.ANSWER:
                await client.send(_own_answer(fault.status))
            case Kind.CUT_BODY:
                await self._pass_on(request.head, request.body[: len(request.body) // 2], answer=False)
                client.reset()
            case _:
                await self._pass_both_ways(request, fault, client)

    async def _pass_both_ways(self, request: Request, fault: Fault, client: Client) -> None:
        await asyncio.sleep(fault.seconds if fault.kind is Kind.DELAY else 0)
        if client.is_gone:
            return
        answer = await self._pass_on(
            request.head, _flipped(request.body) if fault.kind is Kind.CORRUPT else request.body
        )
        await asyncio.sleep(fault.seconds if fault.kind is Kind.SLOW_ANSWER else 0)
        if fault.kind is not Kind.LOSE_ANSWER:
            await client.send(answer[: len(answer) // 2] if fault.kind is Kind.CUT_ANSWER else answer)
        if fault.kind in (Kind.LOSE_ANSWER, Kind.CUT_ANSWER):
            client.reset()

    async def _pass_on(self, head: bytes, body: bytes, *, answer: bool = True) -> bytes:
        """Send one request to the store and return its whole answer (b"" without ``answer``)."""
        reader, writer = await asyncio.open_connection(*self._upstream)
        try:
            writer.write(closing(head) + body)
            await writer.drain()
            return await reader.read(-1) if answer else b""
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


@dataclass(slots=True)
class Client:
    """The side that asks."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @property
    def is_gone(self) -> bool:
        """Return whether the client closed the connection: its whole request was read, so the buffer is empty."""
        return self.reader.at_eof() or self.writer.transport.is_closing()

    async def send(self, data: bytes) -> None:
        """Send bytes, as fast as they are taken."""
        self.writer.write(data)
        await self.writer.drain()

    def reset(self) -> None:
        """Break the connection off by RST, as a dying peer does."""
        raw = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


async def _read_request(reader: asyncio.StreamReader) -> Request:
    head = await reader.readuntil(b"\r\n\r\n")
    method, target, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
    body = await reader.readexactly(int(field(head, b"content-length") or 0))
    return Request(method, target, head, body)


def field(head: bytes, name: bytes) -> bytes:
    """Return a header's value; ``name`` is in lower case."""
    lines = (line.partition(b":") for line in head.split(b"\r\n")[1:])
    return next((value.strip() for field, _, value in lines if field.lower() == name), b"")


def closing(head: bytes) -> bytes:
    """Ask the store to close after its answer: then the answer ends where the connection does."""
    lines = [line for line in head[:-4].split(b"\r\n") if not line.lower().startswith(b"connection:")]
    return b"\r\n".join([*lines, b"Connection: close", b"", b""])


def _flipped(body: bytes) -> bytes:
    """Return the body with one bit of its middle byte changed."""
    middle = len(body) // 2
    return body[:middle] + bytes(byte ^ 1 for byte in body[middle : middle + 1]) + body[middle + 1 :]


def _own_answer(status: int) -> bytes:
    code = {503: "SlowDown", 500: "InternalError"}[status]
    body = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code></Error>'.encode()
    return b"HTTP/1.1 %d %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (
        status,
        code.encode(),
        len(body),
        body,
    )
