"""Stable links in a real Chromium, and with curl and wget: opened, limited, resumed, played, refused."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, expect
from playwright.async_api import Page as Tab

from tests.stable import Sharing, sharing
from tests.stores import Store, on_one_store
from tests.system.breaking import broken_off
from tests.system.scenes import chromium

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.needs("chromium"),
]
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
BODY = bytes(range(256)) * 4000


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def broker(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sharing]:
    bucket = store.new_bucket()
    store.write(bucket, "one/a.bin", BODY)
    store.write(bucket, "one/page.html", b"<script>document.title = 'it ran'</script>")
    with sharing(tmp_path_factory.mktemp("broker"), store, bucket) as broker:
        yield broker


async def tab_of(browser: Browser, url: str, **given: Any) -> tuple[Tab, list[str]]:
    """Open an address in a browser of its own; return what went wrong in it, too."""
    context = await browser.new_context(**given)
    tab = await context.new_page()
    told: list[str] = []
    tab.on("console", lambda message: told.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: told.append(str(error)))
    await tab.goto(url)
    return tab, told


async def downloaded(tab: Tab, button: str = "Download") -> tuple[str, bytes]:
    """Press the button; return the name and the content of what was saved."""
    async with tab.expect_download() as waiting:
        await tab.get_by_role("button", name=button).click()
    found = await waiting.value
    return found.suggested_filename, await asyncio.to_thread(Path(await found.path()).read_bytes)


async def test_a_limited_link_is_downloaded_by_its_button_and_then_used_up(browser: Browser, broker: Sharing) -> None:
    link = broker.link("one/a.bin", filename="R\u00e9sum\u00e9 \u8cc7\u6599.bin", max_downloads=1, size=len(BODY))
    tab, told = await tab_of(browser, link["url"])
    await expect(tab.get_by_role("heading")).to_have_text("R\u00e9sum\u00e9 \u8cc7\u6599.bin")
    assert await downloaded(tab) == ("R\u00e9sum\u00e9 \u8cc7\u6599.bin", BODY)
    assert told == [], "the policy lets the form's answer lead to the store"
    await tab.reload()
    await expect(tab.get_by_text("is not counted")).to_be_visible()
    assert (await downloaded(tab))[1] == BODY
    other, _ = await tab_of(browser, link["url"])
    await expect(other.get_by_role("heading")).to_have_text("This link is used up")
    assert broker.opened(link) == 1


async def test_the_sixth_opening_of_five_says_so_and_a_revoked_link_does(browser: Browser, broker: Sharing) -> None:
    link = broker.link("one/a.bin", max_downloads=5)
    for _ in range(5):
        tab, _ = await tab_of(browser, link["url"])
        assert (await downloaded(tab))[1] == BODY
        await tab.context.close()
    tab, told = await tab_of(browser, link["url"])
    await expect(tab.get_by_role("heading")).to_have_text("This link is used up")
    await expect(tab.get_by_role("main")).to_contain_text("made for a limited number of downloads. Ask whoever sent it")
    revoked = broker.link("one/a.bin")
    broker.revoke_link(revoked)
    await tab.goto(revoked["url"])
    await expect(tab.get_by_role("heading")).to_have_text("This link was revoked")
    assert not [line for line in told if "410" not in line]


@on_one_store
async def test_a_pin_is_typed_and_sent_by_keyboard_alone(browser: Browser, broker: Sharing) -> None:
    link = broker.link("one/a.bin", pin="2468")
    tab, _ = await tab_of(browser, link["url"])
    await tab.keyboard.type("1111")
    await tab.keyboard.press("Enter")
    await expect(tab.get_by_role("alert")).to_have_text("This PIN is wrong.")
    await tab.keyboard.type("2468")
    async with tab.expect_download() as waiting:
        await tab.keyboard.press("Enter")
    assert (await waiting.value).suggested_filename == "a.bin"


async def test_a_page_that_an_uploader_stored_is_saved_and_never_run(browser: Browser, broker: Sharing) -> None:
    link = broker.link("one/page.html", content_type="text/html", disposition="inline", max_downloads=5)
    tab, _ = await tab_of(browser, link["url"])
    assert (await downloaded(tab, "Open"))[0] == "page.html"
    assert await tab.title() == "page.html"


async def test_a_link_without_limits_is_saved_under_its_name(browser: Browser, broker: Sharing) -> None:
    link = broker.link("one/a.bin", filename="b.bin")
    tab = await (await browser.new_context()).new_page()
    async with tab.expect_download() as waiting:
        await tab.evaluate("url => { location.href = url }", link["url"])
    assert (await waiting.value).suggested_filename == "b.bin"


async def test_a_video_element_plays_and_seeks_through_a_link(browser: Browser, broker: Sharing, store: Store) -> None:
    store.write(broker.bucket, "one/tone.wav", wave(seconds=60))
    link = broker.link("one/tone.wav", content_type="audio/wav", disposition="inline")
    tab = await (await browser.new_context()).new_page()
    await tab.set_content(f'<video src="{link["url"]}" muted></video>')
    seek = """async at => {
        const video = document.querySelector("video");
        const done = new Promise((ok, bad) => { video.onseeked = ok; video.onerror = bad; });
        if (!video.readyState) await new Promise((ok, bad) => { video.onloadedmetadata = ok; video.onerror = bad; });
        video.currentTime = at;
        await done;
        return [video.duration, video.currentTime];
    }"""
    assert await tab.evaluate(seek, 55) == [60, 55]
    assert await tab.evaluate(seek, 5) == [60, 5]


def wave(seconds: int) -> bytes:
    """Return silence as a WAV file: 16 bit, mono, 44.1 kHz."""
    data = bytes(2 * 44_100 * seconds)
    head = b"RIFF" + (36 + len(data)).to_bytes(4, "little") + b"WAVEfmt " + (16).to_bytes(4, "little")
    form = [(1, 2), (1, 2), (44_100, 4), (88_200, 4), (2, 2), (16, 2)]
    return (
        head
        + b"".join(n.to_bytes(size, "little") for n, size in form)
        + b"data"
        + len(data).to_bytes(4, "little")
        + data
    )


@on_one_store
@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("given", [{}, PHONE], ids=["desk", "phone"])
async def test_axe_finds_nothing_wrong(browser: Browser, broker: Sharing, colours: str, given: dict[str, Any]) -> None:
    link = broker.link("one/a.bin", pin="2468", max_downloads=3, note="As agreed", size=5)
    gone = broker.link("one/a.bin", expires_at="2020-01-01T00:00:00Z")
    for url in (link["url"], gone["url"], f"{broker.links_url}/l/none"):
        tab, _ = await tab_of(browser, url, color_scheme=colours, **given)
        results = await Axe().run(tab)
        assert results.violations_count == 0, results.generate_report()
        width = await tab.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert width <= 0, "nothing is wider than the screen"
        await tab.context.close()


# --- without a browser ------------------------------------------------------------------------------
def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.needs("curl")
async def test_curl_follows_a_link_asks_for_its_head_and_spends_a_limited_one(broker: Sharing, tmp_path: Path) -> None:
    link = broker.link("one/a.bin", filename="b c.bin")
    assert run(tmp_path, "curl", "-fsSLOJ", link["url"]).returncode == 0
    assert (tmp_path / "b c.bin").read_bytes() == BODY
    head = run(tmp_path, "curl", "-fsSLI", link["url"])
    assert f"content-length: {len(BODY)}" in head.stdout.lower()
    limited = broker.link("one/a.bin", filename="d.bin", pin="24 68", max_downloads=1)
    spend = ("curl", "-fsSOJL", "--data-urlencode", "pin=24 68", limited["url"])
    assert run(tmp_path, *spend).returncode == 0
    assert (tmp_path / "d.bin").read_bytes() == BODY
    assert run(tmp_path, *spend).returncode == 22
    assert "used up" in run(tmp_path, "curl", "-sS", limited["url"]).stdout


@pytest.mark.needs("wget")
async def test_wget_resumes_a_download_that_broke_off(store: Store, tmp_path: Path) -> None:
    bucket = store.new_bucket()
    store.write(bucket, "one/w.bin", BODY)
    with broken_off(store, bucket, "one/w.bin", tmp_path, "reset") as (link, proxy):
        done = await asyncio.to_thread(run, tmp_path, "wget", "-nv", "-t", "5", "-O", "w.bin", link["url"])
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "w.bin").read_bytes() == BODY
    assert [0 < start < len(BODY) for start in proxy.resumed] == [True]
