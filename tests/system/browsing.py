"""A page in a real Chromium: opened in a browser of its own, which asks nobody else and meets no error."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any, Protocol

from playwright.async_api import Browser, Locator, expect
from playwright.async_api import Page as Tab

PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 844},
    "is_mobile": True,
    "has_touch": True,
    "device_scale_factor": 2,
}
expect.set_options(timeout=90_000)  # a busy machine is no failure


class Served(Protocol):
    """A page that is served: its address, and one that logs in once."""

    @property
    def root(self) -> str: ...
    @property
    def login_url(self) -> str: ...


@contextlib.asynccontextmanager
async def opened(browser: Browser, page: Served, *, known: bool = True, **given: Any) -> AsyncIterator[Tab]:
    """Open the page in a browser of its own; it may ask nobody else, and nothing may be refused or fail in it."""
    async with await browser.new_context(**given) as context:
        tab = await context.new_page()
        asked: list[str] = []
        told: list[str] = []
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("console", lambda message: told.append(message.text) if message.type == "error" else None)
        tab.on("pageerror", lambda error: told.append(str(error)))
        await tab.goto(page.login_url if known else page.root)
        yield tab
        assert [url for url in asked if not url.startswith(page.root + "/")] == []
        assert told == []


async def is_live(tab: Tab) -> None:
    """Wait until the stream is open: then buttons that need JavaScript are there too."""
    await expect(tab.locator("html")).to_have_attribute("data-live", "yes")


def section(tab: Tab, name: str) -> Locator:
    """Return one section of the page."""
    return tab.locator(f"section#{name}")
