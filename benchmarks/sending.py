"""The cost of sending alone, over http and https: bodies of 16 MiB from the page cache, eight at a time, no checksum.

``python -m benchmarks.sending [--server NAME] [--rounds N] [--files BODIES] [--size BYTES]``
Each way of sending takes its turn in each round. ``sendfile`` is only for http; over https presignd always reads.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import uvloop

from benchmarks.harness import SERVERS as STORES
from benchmarks.harness import Rounds, Usage, make_files, measure, print_usages, warm
from benchmarks.options import each_server, options
from benchmarks.peers import curl
from benchmarks.servers import BUCKET, ROOT, Server
from presignd.config import PresignConfig, UploadConfig
from presignd.presign import Grant
from presignd.store import body
from presignd.store.client import Slice, StoreClient

AT_ONCE = 8
HOUR = timedelta(hours=1)


def main() -> None:
    """Measure, and print the tables; with ``--send`` as the first word, send."""
    if sys.argv[1:2] == ["--send"]:
        _send_as_told(sys.argv[2:])
        return
    asked = options(__doc__, files=128, size=16 << 20, rounds=5)
    for server, folder in each_server(asked, f"Sending alone, {asked.files} x {asked.size >> 20} MiB"):
        (file,) = make_files(folder / "data", 1, asked.size)
        warm([file])
        ways = ("read",) if server.endswith("https") else ("sendfile", "read")
        found: Rounds = {way: [] for way in (*ways, "curl -T")}
        for _ in range(asked.rounds):
            for way, usages in found.items():
                with STORES[server](folder) as fresh:
                    usages.append(_measure(way, fresh, file, asked.files))
        _print(found, asked.files * asked.size / (1 << 30))


def _print(found: Rounds, gib: float) -> None:
    print_usages(found, {"wall s/GiB": lambda u: u.wall / gib, "CPU s/GiB": lambda u: u.cpu / gib})


def _measure(way: str, server: Server, file: Path, bodies: int) -> Usage:
    """Send with a process of its own; its start does not count, but curl's do."""
    if way == "curl -T":
        links = [file.parent / f"{number}.bin" for number in range(bodies)]
        for link in links:
            link.hardlink_to(file)
        try:
            return curl(server, links, AT_ONCE)
        finally:
            for link in links:
                link.unlink()
    report = file.with_name("report")
    argv: list[str | Path] = [sys.executable, "-m", "benchmarks.sending", "--send", way, server.endpoint]
    argv += [str(server.ca_file or ""), file, str(bodies), report]
    rss = measure(argv, {**os.environ, "PYTHONPATH": str(ROOT)}).rss
    wall, cpu = map(float, report.read_text(encoding="ascii").split())
    return Usage(wall, cpu, rss)


def _send_as_told(words: list[str]) -> None:
    way, endpoint, ca_file, file, count, report = words
    if way == "read":
        body.direct_send = _never  # type: ignore[assignment] # there is no sendfile(2)
    with Path(file).open("rb") as opened:
        wall, cpu = uvloop.run(_send(endpoint, ca_file, opened.fileno(), int(count)))
    Path(report).write_text(f"{wall} {cpu}", encoding="ascii")


async def _send(endpoint: str, ca_file: str, file: int, count: int) -> tuple[float, float]:
    """Send ``count`` bodies; return seconds of wall time and of CPU, after the first few opened the connections."""
    presign = PresignConfig(endpoint=endpoint, ca_file=Path(ca_file) if ca_file else None, region="us-east-1")
    client, slots = StoreClient(presign, UploadConfig()), asyncio.Semaphore(AT_ONCE)
    size = os.fstat(file).st_size

    async def send(number: int) -> None:
        now = datetime.now(UTC)
        url = f"{endpoint}/{BUCKET}/{number}?X-Amz-Date={now:%Y%m%dT%H%M%SZ}&X-Amz-Signature=0"
        grant = Grant("PUT", url, {"Content-Length": str(size)}, now + HOUR, now)
        async with slots:
            await client.send(grant, Slice(file, 0, size, whole=True))

    await asyncio.gather(*map(send, range(AT_ONCE)))
    wall, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*map(send, range(count)))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    await client.close()
    return wall, cpu


async def _never(*_: object) -> None:
    """Stand in for ``direct_send``: there is no sendfile(2)."""


if __name__ == "__main__":
    main()
