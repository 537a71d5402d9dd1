"""The status page in the states that its pictures and its browser tests show."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

from playwright.async_api import Browser, async_playwright

from presignd.control.view import BlockedView, InFlightView
from presignd.pages.pace import PACE, Pace
from presignd.pipeline.settle.lane import SettlingPath
from presignd.states import Event
from presignd.system.clock import utcnow
from tests.needs import CHROMIUM
from tests.pages import Page, page_of
from tests.served import configuration

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
GB = 1_000_000_000


@contextlib.asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """Start Debian's Chromium, headless."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        try:
            yield browser
        finally:
            await browser.close()


@contextlib.asynccontextmanager
async def stage(folder: Path, pace: Pace = PACE) -> AsyncIterator[Page]:
    """Serve an empty page for one watch."""
    async with page_of(configuration(folder), pace=pace) as page:
        page.view._phase.started_at = utcnow() - timedelta(days=3)
        (watch,) = page.view.config.watches
        shown = watch.model_copy(update={"path": Path("/srv/drop"), "bucket": "test-bucket"})
        page.view._in_effect.config = page.view.config.model_copy(update={"watches": (shown,)})
        yield page


async def busy(page: Page) -> None:
    """Set uploads in progress, a queue, links, an hour of work."""
    moving = [
        ("holiday/film.mkv", 4.3 * GB, 0.62, 48e6),
        ("scan-0231.pdf", 81e6, 0.31, 22e6),
        ("backup.tar", 2e9, 0, 0),
    ]
    versions = [await page.recorded(name, Event.CLAIM, size=int(size)) for name, size, _, _ in moving]
    page.view.uploads = [
        InFlightView(version, int(size * share), rate)
        for version, (_, size, share, rate) in zip(versions, moving, strict=True)
    ]
    for number in range(24):
        await page.recorded(f"camera/IMG_{number:04}.jpg", size=5_000_000, age=24 - number)
    ago = utcnow() - timedelta(seconds=75)
    page.view.unsettled = [SettlingPath("drop", b"export.csv", ago, "open for writing")]
    _hour(page)
    for minutes, name in ((9, "minutes-2026-01-02.docx"), (6, "photo \N{GRINNING FACE}.jpg"), (3, "report.pdf")):
        page.add_link(name, size=1_234_567, age=minutes * 60, lives=900 - minutes * 60)


async def errors(page: Page) -> None:
    """Set an unreachable store, quarantined files, an expired link."""
    since = utcnow() - timedelta(minutes=4)
    page.view.held_up = [
        BlockedView("store", "", "connection_refused", "nothing listens at the endpoint: 10.0.0.5:9000", since)
    ]
    await page.quarantined("vm-image.qcow2", "too_large", "the file is larger than what can be stored: 6.1 TB")
    await page.quarantined("a\\b.txt", "key_refused", "the file's name can't be made into a storable key: a backslash")
    await page.quarantined("payroll.xlsx", "unreadable", "the file can't be read: Permission denied")
    for number in range(7):
        await page.recorded(f"waiting-{number}.bin", size=1_000_000, age=240 - number)
    page.add_link("report.pdf", size=1_234_567, age=1200, lives=-300)
    page.add_link("letter.odt", size=45_678, age=400, lives=500)


def _hour(page: Page) -> None:
    """Invent the last hour's throughput, except for minutes that may end before it is shown."""
    rng = random.Random(5)
    throughput, now = page.snapshots._throughput, time.time()
    for minute in range(57):
        share = 0.25 + 0.75 * abs((minute % 29) - 14) / 14
        for number in range(rng.randrange(1, 9)):
            if minute % 13 > 1:
                size = int(rng.uniform(1e7, 6e7) * share)
                throughput.linked(f"{minute}-{number}", size, now - minute * 60)
