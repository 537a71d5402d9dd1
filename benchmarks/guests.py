"""An invitation's page in Chromium, with checksums on, to the sink: the rate, and the most memory of the browser.

    python -m benchmarks.guests [--sizes 1 4] [--folder F]

Each size in GiB is one sparse file, chosen in a browser of its own. The clock runs from the choice to the receipt. Ends
with 1 where a rate is under ``GOAL``. Compare only figures of a machine that does nothing else: the load is printed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from playwright.async_api import Browser, expect

from benchmarks.harness import BLOCK, bench_folder, print_head
from benchmarks.servers import Sink
from tests.guests import invite
from tests.stable import Sharing, sharing
from tests.system.browsing import is_live
from tests.system.scenes import chromium

GIB = 1 << 30
GOAL = 110.0
"""MiB/s: a full line of 1 Gbit/s."""
LONGEST_MS = 1_800_000


class Figures(NamedTuple):
    """One upload: its seconds, CPU seconds and peak RSS in bytes of the page's process and of all others."""

    seconds: float
    cpu: float
    page_rss: int
    other_rss: int


def peak_rss(pid: int) -> int:
    """Return the most memory that a process ever had in bytes (proc(5), VmHWM)."""
    for line in Path(f"/proc/{pid}/status").read_text("ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    return 0


async def measure(browser: Browser, broker: Sharing, path: Path) -> Figures:
    """Send one file, and tell what it took."""
    url = invite(broker, f"bench-{path.stem}", prefix="bench/")["url"]
    async with await browser.new_context(locale="en-GB") as context:
        tab = await context.new_page()
        await tab.goto(url)
        await is_live(tab)
        began = time.perf_counter()
        await tab.locator("#pick-files").set_input_files(path)
        await expect(tab.locator("#receipt")).to_be_visible(timeout=LONGEST_MS)
        seconds = time.perf_counter() - began
        system = await browser.new_browser_cdp_session()
        found: list[dict[str, Any]] = (await system.send("SystemInfo.getProcessInfo"))["processInfo"]
    pages = [each["id"] for each in found if each["type"] == "renderer"]
    others = [each["id"] for each in found if each["type"] != "renderer"]
    cpu = sum(each["cpuTime"] for each in found)
    return Figures(seconds, cpu, max(map(peak_rss, pages)), sum(map(peak_rss, others)))


def brokering(folder: Path, sink: Sink) -> AbstractContextManager[Sharing]:
    """Run a broker for the sink."""
    return sharing(folder / "broker", sink, "test-bucket")  # type: ignore[arg-type] # a broker needs no more of a store


async def main() -> int:
    """Measure each size, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sizes", type=float, nargs="+", default=[1, 4])
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    print_head("an invitation's page in Chromium to the sink, checksums on", 1)
    print("| GiB | MiB/s | browser's CPU s/GiB | page's peak MiB | others' peak MiB | load |")
    print("| --- | --- | --- | --- | --- | --- |")
    slowest = float("inf")
    with bench_folder(asked.folder) as folder, Sink(folder) as sink, brokering(folder, sink) as broker:
        for size in asked.sizes:
            path = folder / f"{size:g}.bin"
            with path.open("wb") as file:
                file.truncate(int(size * GIB))
            async with chromium() as browser:
                found = await measure(browser, broker, path)
            rate = size * 1024 / found.seconds
            slowest = min(slowest, rate)
            memory = f"{found.page_rss / BLOCK:.0f} | {found.other_rss / BLOCK:.0f}"
            print(
                f"| {size:g} | {rate:.0f} | {found.cpu / size:.1f} | {memory} | {os.getloadavg()[0]:.1f} |", flush=True
            )
    return 0 if slowest >= GOAL else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
