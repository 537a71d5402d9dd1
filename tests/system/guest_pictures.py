"""Makes the pictures of an invitation's page in docs/: ``python -m tests.system.guest_pictures [FOLDER]``."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from playwright.async_api import Browser, Route, expect

from tests.guests import invite
from tests.stable import Sharing, sharing
from tests.stores import SeaweedFS
from tests.system.browsing import is_live
from tests.system.pictures import DOCS, Shot
from tests.system.scenes import chromium

SHOTS = (
    Shot("light", []),
    Shot("dark", [], "dark"),
    Shot("phone", [], width=390, height=844),
)
FILES = {  # their names and sizes
    "Scan, page 1.tiff": 2_400_000,
    "Scan, page 2.tiff": 2_300_000,
    "Drone over the site.mp4": 60_000_000,
    "Letter.pdf": 120_000,
}
TERMS = ("--max-files", "20", "--max-size", "5GB", "--total", "50GB", "--note", "Scans for March")


async def hold(route: Route) -> None:
    """Leave the parts of a large file but its first two unanswered."""
    if "partNumber=1&" in route.request.url or "partNumber=2&" in route.request.url:
        await route.continue_()


async def take(browser: Browser, shot: Shot, broker: Sharing, folder: Path, target: Path) -> None:
    """Take one picture: files that came in, one under way, one paused."""
    url = invite(broker, f"pictures-{shot.name}", *TERMS, prefix="pictures/")["url"]
    size = {"width": shot.width, "height": shot.height}
    async with await browser.new_context(viewport=size, color_scheme=shot.colours, locale="en-GB") as context:  # type: ignore[arg-type]  # a TypedDict
        tab = await context.new_page()
        await tab.route("**/*partNumber=*", hold)
        await tab.goto(url)
        await is_live(tab)
        await tab.locator("#pick-files").set_input_files([folder / name for name in FILES])
        await expect(tab.locator("#note")).to_have_text("3 of 4 received")
        await expect(tab.locator("#list")).to_contain_text("33.6 MB of 60 MB")
        await tab.screenshot(path=target / f"guest-{shot.name}.png", full_page=shot.name != "phone")


async def main(target: Path) -> None:
    """Take all pictures."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name, size in FILES.items():
            (folder / name).write_bytes(b"\0" * size)
        store = SeaweedFS(folder / "store")
        store.start()
        try:
            with sharing(folder / "broker", store, store.bucket) as broker:
                async with chromium() as browser:
                    for shot in SHOTS:
                        await take(browser, shot, broker, folder, target)
        finally:
            store.kill()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]) if sys.argv[1:] else DOCS))
