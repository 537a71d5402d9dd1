"""Makes the pictures of status page and fleet page in docs/: ``python -m tests.system.pictures [FOLDER]``."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from playwright.async_api import Browser

from tests import fleet
from tests.pages import Page
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


async def main(target: Path) -> None:
    """Take all pictures."""
    async with chromium() as browser:
        for shot in SHOTS:
            with tempfile.TemporaryDirectory() as folder:
                await take_status(browser, shot, Path(folder), target)
        for fleet_shot in FLEET_SHOTS:
            with tempfile.TemporaryDirectory() as folder:
                await take_fleet(browser, fleet_shot, Path(folder), target)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]) if sys.argv[1:] else DOCS))
