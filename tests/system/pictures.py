"""Makes the pictures of status page, fleet page and links in docs/: ``python -m tests.system.pictures [FOLDER]``."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from playwright.async_api import Browser

from tests import fleet
from tests.pages import Page
from tests.stable import sharing
from tests.system.scenes import busy, chromium, errors, stage

DOCS = Path(__file__).parents[2] / "docs"


async def empty(_page: Page) -> None:
    """Leave the page empty."""


class Shot(NamedTuple):
    """One picture: its scene, colours and width."""

    name: str
    scenes: Sequence[Callable[[Page], Awaitable[None]]]
    colours: Literal["light", "dark"] = "light"
    width: int = 760
    height: int = 300


class FleetShot(NamedTuple):
    """One picture of a fleet with a token that needs attention."""

    name: str
    colours: Literal["light", "dark"] = "light"
    width: int = 760
    height: int = 300


SHOTS = (
    Shot("empty", [empty]),
    Shot("busy", [busy]),
    Shot("errors", [errors]),
    Shot("dark", [busy], "dark"),
    Shot("phone", [busy, errors], width=390, height=844),
)
FLEET_SHOTS = (FleetShot("light"), FleetShot("dark", "dark"), FleetShot("phone", width=390, height=844))


async def take_status(browser: Browser, shot: Shot, folder: Path, target: Path) -> None:
    """Take one picture of the status page into ``target``."""
    async with stage(folder) as page:
        for scene in shot.scenes:
            await scene(page)
        await take(browser, shot, page.login_url, target / f"page-{shot.name}.png")


async def take_fleet(browser: Browser, shot: FleetShot, folder: Path, target: Path) -> None:
    """Take one picture of the fleet page into ``target``."""
    async with fleet.fleet_of(folder, count_links=fleet.count_links) as page:
        fleet.busy(page)
        fleet.troubled(page)
        await take(browser, shot, page.login_url, target / f"fleet-{shot.name}.png")


async def take(browser: Browser, shot: Shot | FleetShot, url: str, target: Path) -> None:
    """Take one picture of the page at ``url``."""
    size = {"width": shot.width, "height": shot.height}
    context = await browser.new_context(viewport=size, color_scheme=shot.colours)  # type: ignore[arg-type]  # a TypedDict
    tab = await context.new_page()
    await tab.goto(url)
    await tab.screenshot(path=target, full_page=shot.name != "phone")
    await context.close()


# --- links ------------------------------------------------------------------------------------------
class NoStore:
    """Keys and an address: the page of a link asks no store."""

    endpoint = "http://127.0.0.1:9"
    access_key = "AKIAPICTURES"
    secret_key = "pictures-secret-0123456789"


REPORT: dict[str, Any] = {
    "filename": "Annual report 2026.pdf",
    "size": 4_812_345,
    "content_type": "application/pdf",
    "note": "As agreed, the numbers for the board.",
    "expires_at": "2027-01-31T12:00:00Z",
    "max_downloads": 5,
}
LINKS: Sequence[tuple[Shot, dict[str, Any]]] = (
    (Shot("page", []), {}),
    (Shot("pin", []), {"pin": "2468"}),
    (Shot("dark", [], "dark"), {}),
    (Shot("phone", [], width=390, height=844), {"pin": "2468"}),
)
"""The pictures of links, each with what its link has beside ``REPORT``'s terms."""


async def take_links(browser: Browser, folder: Path, target: Path) -> None:
    """Take the pictures of links into ``target``."""
    with sharing(folder, NoStore(), "test-bucket") as broker:  # type: ignore[arg-type]  # all that is used of a store
        broker.secret = broker.token("office-scanner", "test-bucket", operations=["get", "link"])
        for shot, terms in LINKS:
            link = broker.link("office-scanner/report.pdf", **{**REPORT, **terms})
            await take(browser, shot, link["url"], target / f"link-{shot.name}.png")


async def main(target: Path) -> None:
    """Take all pictures."""
    async with chromium() as browser:
        for shot in SHOTS:
            with tempfile.TemporaryDirectory() as folder:
                await take_status(browser, shot, Path(folder), target)
        for fleet_shot in FLEET_SHOTS:
            with tempfile.TemporaryDirectory() as folder:
                await take_fleet(browser, fleet_shot, Path(folder), target)
        with tempfile.TemporaryDirectory() as folder:
            await take_links(browser, Path(folder), target)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]) if sys.argv[1:] else DOCS))
