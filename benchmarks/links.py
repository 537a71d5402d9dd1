"""How fast a broker opens stable links, what making them costs, and how large their file is.

    python -m benchmarks.links [--state sqlite|postgres] [--links 100000] [--seconds 10] [--target 3000]

A real ``presignd broker run`` on loopback, with its counts, its audit log (to a file) and real signatures; no store is
asked. The broker is one process: what it answers for each second of its CPU time (all its threads) is what a core
gives, whatever else the machine does; PostgreSQL's own CPU time is not in it. Ends with 1 where the target is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import secrets
import sys
import tempfile
import time
import urllib.request
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.broker import NoStore, cpu_seconds
from presignd.broker.config import StatePlace
from presignd.broker.state.links import Links, NewLink, hash_of
from presignd.broker.state.place import database_at
from presignd.demo.seaweedfs import LOOPBACK
from tests.postgres import Postgres
from tests.stable import Sharing

CONNECTIONS = 32
BATCH = 256
"""Links made in one call, as the daemon asks for a burst."""
FILL = 2000
MADE = 20_000
WARM_SECONDS = 1.0
P99_SECONDS = 0.020


def id_of(number: int) -> str:
    """Return the id of a link of the benchmark."""
    return urlsafe_b64encode(number.to_bytes(16)).decode().rstrip("=")


def link_of(number: int) -> NewLink:
    """Return a link as a daemon makes it."""
    name = f"scan-{number:08}.pdf"
    return NewLink(
        id=hash_of(id_of(number)),
        token="one",
        bucket="test-bucket",
        key=f"one/2026/11/29/{name}",
        version_id="",
        size=1_234_567,
        content_type="application/pdf",
        filename=name,
        disposition="attachment",
        note="",
        pin="",
        made_at=datetime.now(UTC),
        ends_at=None,
        max_downloads=None,
    )


async def fill(place: StatePlace, count: int) -> None:
    """Record links directly in the state."""
    database = database_at(place)
    try:
        links = Links(database)
        for start in range(0, count, FILL):
            await links.put([link_of(number) for number in range(start, min(count, start + FILL))])
    finally:
        await database.close()


class Opener:
    """Opens links at random, over connections that stay open; a light client, as it shares the machine."""

    def __init__(self, port: int, count: int) -> None:
        self._port, self._count = port, count
        self._random = random.Random(1)
        self.opened = 0

    async def open(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Open one link, and check that it redirects."""
        link_id = id_of(self._random.randrange(self._count))
        writer.write(f"GET /l/{link_id}/scan.pdf HTTP/1.1\r\nHost: localhost:{self._port}\r\n\r\n".encode())
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 302 "), answer
        self.opened += 1

    async def flat_out(self, seconds: float) -> None:
        """Open links without pauses."""
        ends = time.monotonic() + seconds

        async def one() -> None:
            reader, writer = await asyncio.open_connection(LOOPBACK, self._port)
            while time.monotonic() < ends:
                await self.open(reader, writer)
            writer.close()

        await asyncio.gather(*(one() for _ in range(CONNECTIONS)))

    async def at(self, rate: float, seconds: float) -> list[float]:
        """Open links at a fixed rate a second; return how long each took from when it was due, in seconds."""
        took: list[float] = []
        began, count = time.monotonic() + 0.1, int(rate * seconds)

        async def one(first: int) -> None:
            reader, writer = await asyncio.open_connection(LOOPBACK, self._port)
            for number in range(first, count, CONNECTIONS):
                due = began + number / rate
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                await self.open(reader, writer)
                took.append(time.monotonic() - due)
            writer.close()

        await asyncio.gather(*(one(first) for first in range(CONNECTIONS)))
        return sorted(took)


async def measure_opening(broker: Sharing, count: int, seconds: float, target: float) -> bool:
    """Print how many a second, and how long at half the target; return whether they meet the goals."""
    assert broker.process is not None
    opener = Opener(broker.port, count)
    await opener.flat_out(WARM_SECONDS)
    opener.opened, cpu, began = 0, cpu_seconds(broker.process.pid), time.monotonic()
    await opener.flat_out(seconds)
    wall, cpu = time.monotonic() - began, cpu_seconds(broker.process.pid) - cpu
    per_core = opener.opened / cpu
    print(f"flat out: {opener.opened / wall:,.0f} redirects/s here, {per_core:,.0f} a core-second")
    took = await opener.at(target / 2, seconds)
    p50, p99 = took[len(took) // 2], took[int(len(took) * 0.99)]
    print(f"at {target / 2:,.0f}/s: p50 {p50 * 1000:.1f} ms, p99 {p99 * 1000:.1f} ms, most {took[-1] * 1000:.1f} ms")
    return per_core >= target and p99 <= P99_SECONDS


def measure_making(broker: Sharing) -> None:
    """Print what the broker's making of a link costs, in calls of ``BATCH``."""
    assert broker.process is not None
    cpu, began = cpu_seconds(broker.process.pid), time.monotonic()
    headers = {"Authorization": f"Bearer {broker.secret}", "Content-Type": "application/json"}
    for start in range(0, MADE, BATCH):
        links = [
            {"id": secrets.token_urlsafe(16), "bucket": "test-bucket", "key": f"one/{number}.pdf", "size": 5}
            for number in range(start, start + BATCH)
        ]
        body = json.dumps({"links": links}).encode()
        with urllib.request.urlopen(urllib.request.Request(f"{broker.url}/v1/links", body, headers)) as answer:
            assert b'"error"' not in answer.read()
    wall, cpu = time.monotonic() - began, cpu_seconds(broker.process.pid) - cpu
    print(f"made in calls of {BATCH}: {MADE / wall:,.0f} links/s, {cpu / MADE * 1e6:,.0f} us of the broker's CPU each")


@contextmanager
def placed(state: str, folder: Path) -> Iterator[tuple[StatePlace, str]]:
    """Yield where the state is, and its line of [state]."""
    if state == "sqlite":
        yield StatePlace(folder / "state.db"), 'path = "state.db"'
        return
    with tempfile.TemporaryDirectory(prefix="presignd-postgres-") as place:
        server = Postgres(Path(place))
        try:
            url = server.new_database()
            yield StatePlace(url=url), f'url = "{url}"'
        finally:
            server.kill()


def main() -> int:
    """Fill a state, run a broker on it, measure it, end it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--state", choices=["sqlite", "postgres"], default="sqlite")
    parser.add_argument("--links", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--target", type=float, default=3000.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, placed(given.state, Path(name)) as (place, line):
        folder = Path(name)
        began = time.monotonic()
        asyncio.run(fill(place, given.links))
        print(f"{given.links:,} links recorded in {time.monotonic() - began:.0f} s", end="")
        print(f", {place.path.stat().st_size / 1e6:,.0f} MB" if place.path else "")
        broker = Sharing(folder, NoStore(), "test-bucket", state=line)  # type: ignore[arg-type] # all that is used of it
        text = broker.file.read_text().replace("[store]", '[store]\nregion = "us-east-1"').replace("debug", "info")
        broker.configure(text)
        try:
            broker.start()
            good = asyncio.run(measure_opening(broker, given.links, given.seconds, given.target))
            measure_making(broker)
        finally:
            broker.end()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
