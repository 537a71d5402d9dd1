"""A TCP forwarder in front of a server that counts the bytes from clients."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import Self
from urllib.parse import urlsplit

from benchmarks.servers import Server
from presignd.demo.seaweedfs import LOOPBACK, free_ports

READ = 256 << 10


class Counter:
    """Forwards in its own thread during a ``with``; ``sent`` is the bytes from clients so far."""

    def __init__(self, server: Server) -> None:
        there = urlsplit(server.endpoint)
        self._there = (there.hostname, there.port)
        (self._port,) = free_ports(1)
        self.name, self.endpoint = server.name, f"http://{LOOPBACK}:{self._port}"
        self.access_key, self.secret_key = server.access_key, server.secret_key
        self.ca_file = server.ca_file
        self.sent = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        starting = asyncio.start_server(self._connected, LOOPBACK, self._port, limit=READ)
        asyncio.run_coroutine_threadsafe(starting, self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _end(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            back, there = await asyncio.open_connection(*self._there, limit=READ)
            await asyncio.gather(self._forward(reader, there, count=True), self._forward(back, writer, count=False))

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, count: bool) -> None:
        with suppress(OSError):
            while data := await reader.read(READ):
                self.sent += len(data) if count else 0
                writer.write(data)
                await writer.drain()
        writer.close()
