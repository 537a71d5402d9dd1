"""The status page in a real Chromium: live, without JavaScript, without CSS, by keyboard, on a phone, dark."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, expect

from presignd.pages.pace import Pace
from tests.pages import Page
from tests.served import SECRET
from tests.stores import Store
from tests.system.browsing import PHONE, is_live, opened, section
from tests.system.harness import Presignd, config_for, fetch
from tests.system.scenes import busy, chromium, errors, stage

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.needs("chromium"),
]
FOCUS = "document.activeElement.id || document.activeElement.textContent.trim()"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as found:
        yield found


@pytest_asyncio.fixture(loop_scope="module")
async def page(tmp_path: Path) -> AsyncIterator[Page]:
    async with stage(tmp_path, Pace(look=0.05, snapshot=0.02)) as found:
        yield found


# --- the command ------------------------------------------------------------------------------------
async def test_a_dropped_file_s_link_appears_in_an_open_page_and_is_copied(
    browser: Browser, seaweedfs: Store, tmp_path: Path
) -> None:
    config = config_for(
        seaweedfs, tmp_path, seaweedfs.new_bucket(), watch='settle = "0s"', more='[web]\nlisten = "127.0.0.1:0"'
    )
    daemon = Presignd(tmp_path, config, secrets=(seaweedfs.secret_key,))
    try:
        await asyncio.to_thread(daemon.start)
        login = (await asyncio.to_thread(daemon.run, "web", check=True)).stdout.strip()
        async with await browser.new_context(permissions=["clipboard-read", "clipboard-write"]) as context:
            tab = await context.new_page()
            await tab.goto(login)
            assert "token" not in tab.url
            await is_live(tab)
            (tmp_path / "drop" / "report.pdf").write_bytes(b"what was dropped")
            await tab.get_by_role("button", name="Copy link of").click()
            await expect(tab.get_by_role("status")).to_have_text("Link copied.")
            url = await tab.evaluate("navigator.clipboard.readText()")
            await expect(section(tab, "hour")).to_contain_text("1 file with 16 bytes")
        assert await asyncio.to_thread(fetch, url) == b"what was dropped"
        token = (tmp_path / "state" / "web.token").read_text("ascii").strip()
        assert token not in login, "it would stay in the browser's history"
        daemon.stop()
        assert token not in daemon.log.read_text("utf-8")
    finally:
        daemon.end()


# --- live -------------------------------------------------------------------------------------------
async def test_an_open_page_follows_what_goes_on(browser: Browser, page: Page) -> None:
    async with opened(browser, page) as tab:
        await expect(tab.locator("#headline")).to_have_text("Up to date")
        await is_live(tab)
        await busy(page)
        await expect(section(tab, "uploads")).to_contain_text("film.mkv")
        await expect(tab).to_have_title("3 in progress, 24 queued, 1 not complete yet - presignd")
        await errors(page)
        await expect(section(tab, "blocked")).to_contain_text("Waiting for the store")
        await expect(section(tab, "blocked")).to_contain_text("start the store")
        page.view.held_up = []
        await expect(section(tab, "blocked")).to_be_hidden()


async def test_expiry_counts_down_and_a_dead_link_is_taken_away(browser: Browser, page: Page) -> None:
    page.add_link("report.pdf", lives=100)
    async with opened(browser, page) as tab:
        await is_live(tab)
        left = section(tab, "links").locator("time[data-kind=until]")
        first = await left.inner_text()
        await expect(left).not_to_have_text(first)
        page.view.config.links.file.unlink()
        page.add_link("report.pdf", lives=-1)
        await expect(section(tab, "links")).to_contain_text("expired")
        assert SECRET not in await tab.content()


async def test_retry_takes_a_file_back_and_says_so(browser: Browser, page: Page) -> None:
    await errors(page)
    async with opened(browser, page) as tab:
        await is_live(tab)
        await tab.get_by_role("button", name="Retry /srv/drop/payroll.xlsx").click()
        await expect(tab.get_by_role("status")).to_have_text("1 file is queued again.\n")
        await expect(section(tab, "stopped")).to_contain_text("Quarantined: 2 files")
        await expect(section(tab, "stopped")).not_to_contain_text("payroll.xlsx")
        await tab.get_by_role("button", name="Retry all").click()
        await expect(section(tab, "stopped")).to_be_hidden()
    assert await page.view.ledger.quarantined() == []


async def test_without_the_token_there_is_no_link_and_no_button(browser: Browser, page: Page) -> None:
    await busy(page)
    await errors(page)
    async with opened(browser, page, known=False) as tab:
        await is_live(tab)
        await expect(tab.get_by_text("presignd web").first).to_be_visible()
        await expect(section(tab, "links")).to_contain_text("letter.odt")
        assert await tab.locator("main a, main button, main form").count() == 0
        assert "X-Amz" not in await tab.content()


async def test_a_page_whose_daemon_has_gone_says_so(browser: Browser, tmp_path: Path) -> None:
    async with await browser.new_context() as context:
        tab = await context.new_page()
        async with stage(tmp_path) as page:
            await tab.goto(page.root)
            await is_live(tab)
        await expect(tab.get_by_role("status")).to_contain_text("Not connected")


# --- for everybody ----------------------------------------------------------------------------------
async def test_without_javascript_all_is_there_and_retry_works(browser: Browser, page: Page) -> None:
    await busy(page)
    await errors(page)
    async with opened(browser, page, java_script_enabled=False) as tab:
        for words in ("film.mkv", "2.7 GB of 4.3 GB", "letter.odt", "expires in", "payroll.xlsx", "reload it"):
            await expect(tab.locator("body")).to_contain_text(words)
        await tab.get_by_role("button", name="Retry /srv/drop/payroll.xlsx").click()
        assert tab.url == page.root + "/"
        await expect(section(tab, "stopped")).to_contain_text("Quarantined: 2 files")


async def test_without_css_all_can_be_read_in_a_sensible_order(browser: Browser, page: Page) -> None:
    await busy(page)
    await errors(page)
    async with opened(browser, page) as tab:
        await is_live(tab)
        await tab.evaluate("document.querySelector('link[rel=stylesheet]').remove()")
        read = await tab.locator("body").inner_text()
    places = [
        read.index(words)
        for words in (
            "presignd",
            "Waiting for the store",
            "Uploading 3 files",
            "Quarantined",
            "Latest links",
            "Watches",
        )
    ]
    assert places == sorted(places)
    assert "Retry /srv/drop/payroll.xlsx" in read
    assert "192 files with" in read, "the chart in words"


async def test_everything_is_reached_by_keyboard_and_an_update_takes_no_focus_away(
    browser: Browser, page: Page
) -> None:
    await busy(page)
    await errors(page)
    async with opened(browser, page) as tab:
        await is_live(tab)
        wanted = await tab.locator("a:visible, button:visible, summary:visible").count()
        seen = []
        for _ in range(wanted):
            await tab.keyboard.press("Tab")
            seen.append(await tab.evaluate(FOCUS))
            outline = await tab.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert outline == "solid", seen[-1]
        assert len(set(seen)) == wanted, "each of them, and each once"

        button = tab.get_by_role("button", name="Retry /srv/drop/a\\b.txt")
        await button.focus()
        await page.quarantined("one-more.bin")
        page.snapshots.stale()  # a busy machine waits longer before it takes the next one
        await expect(section(tab, "stopped")).to_contain_text("one-more.bin")
        await expect(button).to_be_focused()
        await tab.keyboard.press("Enter")
        await expect(section(tab, "stopped")).not_to_contain_text("a\\b.txt")


async def test_on_a_phone_nothing_is_wider_than_the_screen_and_buttons_can_be_hit(browser: Browser, page: Page) -> None:
    await busy(page)
    await errors(page)
    await page.quarantined("x" * 200 + ".bin", "unreadable", "y" * 300)
    page.add_link("z" * 200)
    async with opened(browser, page, **PHONE) as tab:
        await is_live(tab)
        assert await tab.evaluate("document.scrollingElement.scrollWidth") <= 390
        for button in await tab.get_by_role("button").all():
            box = await button.bounding_box()
            assert box is not None
            assert box["height"] >= 32
            assert box["width"] >= 44
        await tab.get_by_role("button", name="Retry all").tap()
        await expect(section(tab, "stopped")).to_be_hidden()


@pytest.mark.parametrize(
    ("known", "given"),
    [
        pytest.param(True, {"color_scheme": "light"}, id="light"),
        pytest.param(True, {"color_scheme": "dark"}, id="dark"),
        pytest.param(True, {"forced_colors": "active"}, id="forced colours"),
        pytest.param(True, PHONE, id="phone"),
        pytest.param(False, {}, id="without the token"),
    ],
)
async def test_axe_finds_nothing(browser: Browser, page: Page, known: bool, given: dict[str, Any]) -> None:
    await busy(page)
    await errors(page)
    async with opened(browser, page, known=known, **given) as tab:
        await is_live(tab)
        found = (await Axe().run(tab)).response["violations"]
    assert [(one["id"], one["impact"], [node["html"] for node in one["nodes"]]) for one in found] == []


async def test_a_qr_code_is_loaded_when_it_is_opened_and_stays_open(browser: Browser, page: Page) -> None:
    page.add_link("report.pdf")
    async with opened(browser, page) as tab:
        await is_live(tab)
        image = section(tab, "links").get_by_role("img")
        await expect(image).to_have_count(0)
        await section(tab, "links").get_by_text("QR code").click()
        await expect(image).to_be_visible()
        assert await image.evaluate("async (it) => { await it.decode(); return it.naturalWidth > 0; }")
        page.add_link("another.pdf")
        page.snapshots.stale()
        await expect(section(tab, "links")).to_contain_text("another.pdf")
        await expect(image).to_have_count(1)
        await expect(image).to_be_visible()
        assert (await Axe().run(tab)).response["violations"] == []


async def test_light_and_dark_are_two(browser: Browser, page: Page) -> None:
    grounds = set()
    for colours in ("light", "dark"):
        async with opened(browser, page, color_scheme=colours) as tab:
            grounds.add(await tab.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(grounds) == 2


async def test_a_forged_file_name_does_nothing(browser: Browser, page: Page) -> None:
    evil = "<img src=x onerror=alert(1)><script>alert(2)</script>.txt"
    async with opened(browser, page) as tab:
        await is_live(tab)
        await page.quarantined(evil)
        page.add_link(evil)
        await expect(section(tab, "stopped")).to_contain_text(evil)
        await expect(section(tab, "links")).to_contain_text(evil)
        assert await tab.locator("img:not([src^=qr]), main script").count() == 0
