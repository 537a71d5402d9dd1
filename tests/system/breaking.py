"""A proxy that breaks off the first download in its middle. It passes bytes on as they come: they may be gigabytes."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from tests.brokers import Document
from tests.stable import sharing
from tests.stores import Store
from tests.system.proxy import Client, Fault, Proxy, Request, closing, field

BLOCK = 1 << 18

How = Literal["close", "reset"]
"""The connection is closed too early, as by a server that is restarted, or is reset, as a network that breaks."""

_RANGE = re.compile(r"(?i)\r\nrange: *bytes=(\d+)-")


class Breaking(Proxy):
    """Breaks off the first GET of ``/…/{key}``. ``resumed`` has where the later ones began (0: at the start)."""

    def __init__(self, upstream: str, key: str, how: How) -> None:
        super().__init__(upstream)
        self._key, self._how = key, how
        self.is_broken = False
        self.resumed: list[int] = []

    async def _exchange(self, request: Request, fault: Fault, client: Client) -> None:  # noqa: ARG002 - the base's
        is_download = request.method == "GET" and request.target.partition("?")[0].endswith(f"/{self._key}")
        breaks = is_download and not self.is_broken
        if is_download and self.is_broken:
            begins = _RANGE.search(request.head.decode("latin-1"))
            self.resumed.append(int(begins[1]) if begins else 0)
        self.is_broken |= breaks
        reader, writer = await asyncio.open_connection(*self._upstream)
        try:
            writer.write(closing(request.head) + request.body)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(field(head, b"content-length") or 0)
            await client.send(head)
            await _passed_on(reader, client, length // 2 if breaks else length)
        finally:
            writer.close()
        if breaks and self._how == "reset":
            client.reset()


async def _passed_on(reader: asyncio.StreamReader, client: Client, size: int) -> None:
    """Pass on ``size`` bytes, or what there is of them: the answer to a HEAD has none."""
    while size and (data := await reader.read(min(size, BLOCK))):
        await client.send(data)
        size -= len(data)


@contextmanager
def broken_off(store: Store, bucket: str, key: str, folder: Path, how: How) -> Iterator[tuple[Document, Breaking]]:
    """Share an object by a stable link, through a proxy that breaks off its first download."""
    with (
        Breaking(store.endpoint, key, how) as proxy,
        sharing(folder / "broker", store, bucket, endpoint=proxy.endpoint) as broker,
    ):
        yield broker.link(key), proxy
