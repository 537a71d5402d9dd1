"""How many grants a broker signs: a second of one core over HTTP in batches, and how long an answer takes at half that.

    python -m benchmarks.broker [--seconds 10] [--batch 100] [--target 5000]

A real ``presignd broker run`` with its policy, its audit log (to a file) and real signatures; no store is asked, as a
broker asks none. The broker is one process of one thread, so what it answers for each second of its CPU time is what
a core gives, whatever else the machine does. Ends with 1 where the target is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp

from tests.brokers import Broker

CONNECTIONS = 4
WARM_SECONDS = 1.0
P99_SECONDS = 0.020


class NoStore:
    """Keys and an address to which nothing is sent."""

    endpoint = "http://127.0.0.1:9"
    access_key = "AKIABENCHMARK"
    secret_key = "benchmark-secret-0123456789"


def body_of(number: int, batch: int) -> bytes:
    """Return a call for ``batch`` uploads, each of another object."""
    md5 = "md5:" + hashlib.md5(b"", usedforsecurity=False).hexdigest()
    asked: dict[str, Any] = {"operation": "put", "bucket": "test-bucket", "size": 0, "checksum": md5, "expires": 3600}
    more = {"content_type": "application/octet-stream", "if_none_match": True}
    keys = [f"bench/2026/01/01/file-{number:04}-{each:04}.bin" for each in range(batch)]
    return json.dumps({"grants": [{**asked, **more, "key": key} for key in keys]}).encode()


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process, all its threads together (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Load:
    """Clients of one broker."""

    def __init__(self, session: aiohttp.ClientSession, broker: Broker, secret: str, batch: int) -> None:
        self._session, self._url, self._batch = session, f"{broker.url}/v1/grants", batch
        self._headers = {"Authorization": f"Bearer {secret}", "Content-Type": "application/json"}
        self._bodies = [body_of(number, batch) for number in range(50)]
        self.granted = 0

    async def call(self, number: int) -> None:
        """Make one call, and check that it returns every grant."""
        body = self._bodies[number % len(self._bodies)]
        async with self._session.post(self._url, data=body, headers=self._headers) as answer:
            found = await answer.read()
        assert answer.ok, (answer.status, found[:200])
        assert found.count(b'"signer_date"') == self._batch
        self.granted += self._batch

    async def flat_out(self, seconds: float) -> None:
        """Make calls one after the other without pauses."""
        ends = time.monotonic() + seconds

        async def one(start: int) -> None:
            number = start
            while time.monotonic() < ends:
                await self.call(number)
                number += 1

        await asyncio.gather(*(one(start) for start in range(CONNECTIONS)))

    async def at(self, rate: float, seconds: float) -> list[float]:
        """Make calls at a fixed rate (grants per second); return how long each took, in seconds."""
        took: list[float] = []

        async def one(number: int) -> None:
            began = time.perf_counter()
            await self.call(number)
            took.append(time.perf_counter() - began)

        began, gap = time.monotonic(), self._batch / rate
        async with asyncio.TaskGroup() as calls:
            for number in range(int(seconds / gap)):
                await asyncio.sleep(max(0.0, began + number * gap - time.monotonic()))
                calls.create_task(one(number))
        return sorted(took)


async def measure(broker: Broker, secret: str, *, seconds: float, batch: int, target: float) -> bool:
    """Print the figures; return whether they meet the goals."""
    assert broker.process is not None
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=64)) as session:
        load = Load(session, broker, secret, batch)
        await load.flat_out(WARM_SECONDS)
        load.granted, cpu, began = 0, cpu_seconds(broker.process.pid), time.monotonic()
        await load.flat_out(seconds)
        wall, cpu = time.monotonic() - began, cpu_seconds(broker.process.pid) - cpu
        per_core = load.granted / cpu
        print(f"flat out, batches of {batch}: {load.granted / wall:,.0f} grants/s here, {per_core:,.0f} a core-second")
        took = await load.at(target / 2, seconds)
    p50, p99 = took[len(took) // 2], took[int(len(took) * 0.99)]
    print(
        f"at {target / 2:,.0f} grants/s: p50 {p50 * 1000:.1f} ms, p99 {p99 * 1000:.1f} ms,"
        f" most {took[-1] * 1000:.1f} ms"
    )
    return per_core >= target and p99 <= P99_SECONDS


def main() -> int:
    """Run a broker, measure it, end it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--target", type=float, default=5000.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        broker = Broker(Path(folder), NoStore())  # type: ignore[arg-type] # all that is used of a store
        broker.configure(
            broker.file.read_text().replace("[store]", '[store]\nregion = "us-east-1"').replace("debug", "info")
        )
        secret = broker.token("bench", "test-bucket")
        try:
            broker.start()
            good = asyncio.run(measure(broker, secret, seconds=given.seconds, batch=given.batch, target=given.target))
        finally:
            broker.end()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
