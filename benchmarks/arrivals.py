"""From the choice of a file in an invitation's page to that file in the folder of an inbox, on loopback.

    python -m benchmarks.arrivals [--rounds 20] [--size 1048576] [--folder F]

Chromium, a broker, SeaweedFS and a daemon with an inbox, all as they ship; one file at a time. Ends with 1 where the
worst is over ``GOAL``. Compare only figures of a machine that does nothing else: the load is printed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import time
from pathlib import Path

from benchmarks.harness import bench_folder, print_head
from presignd.demo.seaweedfs import Child
from tests.inboxes import Site, site_of
from tests.stores import SeaweedFS
from tests.system.guest_tabs import GuestPage, tab_of
from tests.system.harness import COMMAND

GOAL = 1.0
"""Seconds for 1 MiB."""


async def arrive(site: Site, folder: Path, rounds: int, size: int) -> list[float]:
    """Send one file after another, and return the seconds that each took."""
    took = []
    async with tab_of("chromium") as tab:
        page = GuestPage(tab, site.guest.url)
        await page.open()
        for number in range(rounds + 1):
            path = folder / f"{number}.bin"
            path.write_bytes(os.urandom(size))
            began = time.perf_counter()
            await tab.choose(path)
            while not (site.inbox / path.name).exists():  # noqa: ASYNC110 - the folder tells nobody
                await asyncio.sleep(0.002)
            took.append(time.perf_counter() - began)
    return took[1:]  # the first one warms everything up


async def main() -> int:
    """Measure, and print the spread."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--size", type=int, default=1 << 20)
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    print_head(f"from a browser to an inbox's folder, {asked.size} bytes", asked.rounds)
    with bench_folder(asked.folder) as folder:
        store = SeaweedFS(folder / "weed")
        store.start()
        try:
            with site_of(folder, store) as site:
                config = folder / "config.toml"
                config.write_text(site.toml(), "utf-8")
                config.chmod(0o600)
                daemon = Child(
                    [str(COMMAND), "run", "-c", str(config)],
                    env=dict(os.environ),
                    cwd=folder,
                    log=folder / "daemon.log",
                )
                try:
                    took = await arrive(site, folder, asked.rounds, asked.size)
                finally:
                    daemon.stop()
        finally:
            store.kill()
    spread = f"{min(took):.2f} / {statistics.median(took):.2f} / {max(took):.2f}"
    print(f"seconds, min / median / max: {spread}; load {os.getloadavg()[0]:.1f}")
    return 0 if max(took) <= GOAL else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
