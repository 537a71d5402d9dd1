"""The fleet page in a real Chromium: live, without JavaScript, without CSS, by keyboard, on a phone, dark."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, expect

import presignd
from presignd.pages.pace import Pace
from tests.brokers import FleetBroker
from tests.fleet import Fleet, broken, busy, count_links, fleet_of, troubled
from tests.stores import Store
from tests.system.browsing import PHONE, is_live, opened, section
from tests.system.harness import Presignd, config_for
from tests.system.scenes import chromium

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.needs("chromium"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as found:
        yield found


@pytest_asyncio.fixture(loop_scope="module")
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with fleet_of(tmp_path, count_links=count_links, pace=Pace(look=0.05, snapshot=0.02)) as found:
        yield found


def all_of_it(fleet: Fleet) -> None:
    busy(fleet)
    troubled(fleet)
    broken(fleet)


# --- a real daemon ----------------------------------------------------------------------------------
async def test_a_daemon_is_seen_as_it_uploads(browser: Browser, seaweedfs: Store, tmp_path: Path) -> None:
    bucket = seaweedfs.new_bucket()
    broker = FleetBroker(tmp_path / "broker", seaweedfs)
    secret = broker.token("scanner-1", bucket)
    (tmp_path / "token").touch(0o600)
    (tmp_path / "token").write_text(secret, "ascii")
    presign = f'kind = "broker"\nurl = "{broker.url}"\ntoken_file = "{tmp_path}/token"'
    daemon = Presignd(
        tmp_path, config_for(seaweedfs, tmp_path, bucket, watch='settle = "0s"', presign=presign), secrets=(secret,)
    )
    try:
        await asyncio.to_thread(broker.start)
        async with await browser.new_context() as context:
            tab = await context.new_page()
            await tab.goto(await asyncio.to_thread(broker.address))
            await is_live(tab)
            assert "code" not in tab.url
            await expect(section(tab, "tokens")).to_contain_text("not since the broker started")
            await asyncio.to_thread(daemon.start)
            (tmp_path / "drop" / "report.pdf").write_bytes(b"what was dropped")
            await asyncio.to_thread(daemon.until, lambda: daemon.events("file.done"), "the link")
            await expect(section(tab, "tokens")).to_contain_text(f"daemon{presignd.__version__}")
            await expect(section(tab, "tokens")).to_contain_text("clockin step")
            await expect(section(tab, "hour")).to_contain_text("in the busiest minute")
    finally:
        daemon.end()
        broker.end()


# --- live -------------------------------------------------------------------------------------------
async def test_an_open_page_follows_what_the_broker_sees(browser: Browser, fleet: Fleet) -> None:
    async with opened(browser, fleet) as tab:
        await expect(tab.locator("#headline")).to_have_text("No tokens yet")
        await is_live(tab)
        busy(fleet)
        await expect(tab).to_have_title("3 of 4 tokens active in the last hour - presignd")
        await expect(section(tab, "tokens")).to_contain_text("scanner-2")
        await expect(section(tab, "tokens")).to_contain_text("links alive118")
        await expect(section(tab, "hour").get_by_role("img")).to_be_visible()
        await expect(section(tab, "attention")).to_be_hidden()
        troubled(fleet)
        await expect(section(tab, "attention")).to_contain_text("Its clock is 6 min ahead")
        broken(fleet)
        await expect(section(tab, "problems")).to_contain_text("mri-2.toml: token.mri-2.bucket: is missing")
        fleet.api.tokens.configure(fleet.file, [])
        await expect(section(tab, "problems")).to_be_hidden()


async def test_a_page_whose_broker_has_gone_says_so(browser: Browser, tmp_path: Path) -> None:
    async with await browser.new_context() as context:
        tab = await context.new_page()
        async with fleet_of(tmp_path) as fleet:
            await tab.goto(fleet.login_url)
            await is_live(tab)
        await expect(tab.get_by_role("status")).to_contain_text("Not connected")


async def test_without_the_token_a_browser_is_told_how_to_log_in(browser: Browser, fleet: Fleet) -> None:
    busy(fleet)
    async with await browser.new_context() as context:
        tab = await context.new_page()
        await tab.goto(fleet.root)
        assert await tab.locator("body").inner_text() == "log in first: presignd broker fleet prints the address\n"


# --- for everybody ----------------------------------------------------------------------------------
async def test_without_javascript_all_is_there(browser: Browser, fleet: Fleet) -> None:
    all_of_it(fleet)
    async with opened(browser, fleet, java_script_enabled=False) as tab:
        for words in ("lab-7", "date_refused", "6 min ahead", "curl/8.5.0", "9 s behind", "mri-2.toml", "reload it"):
            await expect(tab.locator("body")).to_contain_text(words)


async def test_without_css_all_can_be_read_in_a_sensible_order(browser: Browser, fleet: Fleet) -> None:
    all_of_it(fleet)
    async with opened(browser, fleet) as tab:
        await is_live(tab)
        await tab.evaluate("document.querySelector('link[rel=stylesheet]').remove()")
        read = await tab.locator("body").inner_text()
    heads = ("presignd broker", "Token files that", "Needs attention", "The last hour", "Tokens", "About this page")
    places = [read.index(words) for words in heads]
    assert places == sorted(places)
    assert "12 refusals" in read, "the chart in words"


async def test_on_a_phone_nothing_is_wider_than_the_screen(browser: Browser, fleet: Fleet) -> None:
    all_of_it(fleet)
    fleet.add_token("x" * 64, prefix="y" * 300 + "/")
    fleet.seen("x" * 64, 1, client="z" * 100, program="w" * 100)
    async with opened(browser, fleet, **PHONE) as tab:
        await is_live(tab)
        assert await tab.evaluate("document.scrollingElement.scrollWidth") <= 390


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({"color_scheme": "light"}, id="light"),
        pytest.param({"color_scheme": "dark"}, id="dark"),
        pytest.param({"forced_colors": "active"}, id="forced colours"),
        pytest.param(PHONE, id="phone"),
    ],
)
async def test_axe_finds_nothing(browser: Browser, fleet: Fleet, given: dict[str, Any]) -> None:
    all_of_it(fleet)
    async with opened(browser, fleet, **given) as tab:
        await is_live(tab)
        found = (await Axe().run(tab)).response["violations"]
    assert [(one["id"], one["impact"], [node["html"] for node in one["nodes"]]) for one in found] == []


async def test_the_links_at_its_foot_are_reached_by_keyboard(browser: Browser, fleet: Fleet) -> None:
    async with opened(browser, fleet) as tab:
        await is_live(tab)
        for name in ("JSON", "metrics"):
            await tab.keyboard.press("Tab")
            await expect(tab.get_by_role("link", name=name)).to_be_focused()


async def test_a_forged_header_does_nothing(browser: Browser, fleet: Fleet) -> None:
    evil = "<img/src=x/onerror=alert(1)>"
    fleet.add_token("one")
    async with opened(browser, fleet) as tab:
        await is_live(tab)
        fleet.seen("one", 1, client=evil, program=evil)
        await expect(section(tab, "tokens")).to_contain_text(evil)
        assert await tab.locator("main img").count() == 0
