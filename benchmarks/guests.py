"""An invitation's page in a browser, with checksums on, to the sink: the rate, and the most memory of the browser.

    python -m benchmarks.guests [--browsers chromium firefox] [--sizes 1 4] [--folder F]

Each size in GiB is one sparse file, chosen in a browser of its own. The clock runs from the choice to the receipt. Ends
with 1 where Chromium's rate is under ``GOAL``. Compare only figures of a machine that does nothing else: the load is
printed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import NamedTuple

from benchmarks.harness import BLOCK, bench_folder, print_head
from benchmarks.servers import Sink
from tests.guests import invite
from tests.stable import Sharing, sharing
from tests.system.guest_tabs import GuestPage, tab_of
from tests.system.processes import tree

GIB = 1 << 30
GOAL = 110.0
"""MiB/s: a full line of 1 Gbit/s."""
LONGEST = 3600.0
PAGES = {"chromium": b"--type=renderer", "firefox": b"-isForBrowser"}
"""What the command line of a process has that holds a page."""
TICK = os.sysconf("SC_CLK_TCK")


class Process(NamedTuple):
    """A process of a browser: whether it holds a page, its CPU seconds, its peak RSS in bytes (proc(5), VmHWM)."""

    is_page: bool
    cpu: float
    peak_rss: int


class Figures(NamedTuple):
    """One upload: its seconds, CPU seconds and peak RSS in bytes of the page's process and of all others."""

    seconds: float
    cpu: float
    page_rss: int
    other_rss: int


def processes(browser: str) -> Iterator[Process]:
    """Yield the processes of the browser that this one started."""
    for pid in tree(os.getpid()):
        folder = Path(f"/proc/{pid}")
        with suppress(OSError):
            command = (folder / "cmdline").read_bytes()
            if browser.encode() not in command.partition(b"\0")[0]:
                continue
            spent = (folder / "stat").read_text("ascii").rpartition(")")[2].split()[11:13]
            peak = (folder / "status").read_text("ascii").partition("VmHWM:")[2].split()[0]
            yield Process(PAGES[browser] in command, sum(map(int, spent)) / TICK, int(peak) << 10)


async def measure(browser: str, broker: Sharing, path: Path) -> Figures:
    """Send one file, and tell what it took."""
    url = invite(broker, f"{browser}-{path.stem}", prefix="bench/")["url"]
    async with tab_of(browser, listens=False) as tab:
        page = GuestPage(tab, url)
        page.patience = LONGEST
        await page.open()
        before = sum(each.cpu for each in processes(browser))
        began = time.perf_counter()
        await tab.choose(path)
        await page.all_received()
        seconds = time.perf_counter() - began
        found = list(processes(browser))
    cpu = sum(each.cpu for each in found) - before
    pages = [each.peak_rss for each in found if each.is_page]
    return Figures(seconds, cpu, max(pages), sum(each.peak_rss for each in found) - max(pages))


def brokering(folder: Path, sink: Sink) -> AbstractContextManager[Sharing]:
    """Run a broker for the sink."""
    return sharing(folder / "broker", sink, "test-bucket")  # type: ignore[arg-type] # a broker needs no more of a store


async def main() -> int:
    """Measure each size, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--browsers", nargs="+", choices=list(PAGES), default=["chromium"])
    parser.add_argument("--sizes", type=float, nargs="+", default=[1, 4])
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    print_head("an invitation's page to the sink, checksums on", 1)
    print("| browser | GiB | MiB/s | browser's CPU s/GiB | page's peak MiB | others' peak MiB | load |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    slowest = float("inf")
    with bench_folder(asked.folder) as folder, Sink(folder) as sink, brokering(folder, sink) as broker:
        for browser in asked.browsers:
            for size in asked.sizes:
                path = folder / f"{size:g}.bin"
                with path.open("wb") as file:
                    file.truncate(int(size * GIB))
                found = await measure(browser, broker, path)
                rate = size * 1024 / found.seconds
                slowest = min(slowest, rate) if browser == "chromium" else slowest
                memory = f"{found.page_rss / BLOCK:.0f} | {found.other_rss / BLOCK:.0f}"
                row = f"| {browser} | {size:g} | {rate:.0f} | {found.cpu / size:.1f} | {memory}"
                print(f"{row} | {os.getloadavg()[0]:.1f} |", flush=True)
    return 0 if slowest >= GOAL else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
