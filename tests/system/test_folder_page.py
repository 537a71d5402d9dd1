"""The page of a stable link to a folder in a real Chromium: lists, opens, pages, on a phone and in the dark."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, expect

from tests.brokers import Document
from tests.stable import Sharing, sharing
from tests.stores import Store
from tests.system.scenes import chromium
from tests.system.test_link_page import PHONE, tab_of

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.needs("chromium"),
]
FILES = {
    "a.bin": bytes(range(256)) * 400,
    "raw/<b> & 資料.txt": b"text",
    f"{'long-' * 40}name.jpg": b"x",
    "\u202egpj.exe": b"y",
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as found:
        yield found


def manifest_of(folder: str, files: dict[str, int]) -> bytes:
    entries = [{"path": path, "key": f"{folder}/{path}", "size": size, "checksum": ""} for path, size in files.items()]
    return json.dumps({"unit": folder, "made": "2026-01-01T00:00:00Z", "files": entries}).encode()


@pytest.fixture(scope="module")
def broker(seaweedfs: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sharing]:
    bucket = seaweedfs.new_bucket()
    for path, content in list(FILES.items())[:3]:
        seaweedfs.write(bucket, f"one/shoot/{path}", content)
    sizes = {path: len(content) for path, content in FILES.items()}
    seaweedfs.write(bucket, "one/shoot/MANIFEST.json", manifest_of("one/shoot", sizes))
    many = {f"{number:05}.jpg": number for number in range(2500)}
    seaweedfs.write(bucket, "one/many/MANIFEST.json", manifest_of("one/many", many))
    with sharing(tmp_path_factory.mktemp("broker"), seaweedfs, bucket) as broker:
        yield broker


def shoot(broker: Sharing, **terms: Any) -> Document:
    return broker.link("one/shoot/MANIFEST.json", filename="shoot & <1>", unit=True, **terms)


async def test_a_file_is_saved_by_its_link(browser: Browser, broker: Sharing) -> None:
    tab, told = await tab_of(browser, shoot(broker)["url"])
    await expect(tab.get_by_role("heading")).to_have_text("shoot & <1>")
    assert await tab.title() == "shoot & <1>"
    for path in ("a.bin", "raw/<b> & 資料.txt"):
        async with tab.expect_download() as waiting:
            await tab.get_by_role("link", name=path).click()
        found = await waiting.value
        assert found.suggested_filename == path.rpartition("/")[2].replace("<", "_").replace(">", "_"), (
            "as it saves them"
        )
        assert await asyncio.to_thread(Path(await found.path()).read_bytes) == FILES[path]
    assert told == []


async def test_it_speaks_german(browser: Browser, broker: Sharing) -> None:
    tab, told = await tab_of(browser, shoot(broker)["url"], locale="de-AT")
    await expect(tab.locator("dl")).to_contain_text("4 Dateien")
    assert await tab.evaluate("document.documentElement.lang") == "de"
    assert told == []


async def test_a_pin_opens_the_folder_and_then_its_files(browser: Browser, broker: Sharing) -> None:
    tab, told = await tab_of(browser, shoot(broker, pin="2468", max_downloads=1)["url"])
    await expect(tab.get_by_role("link", name="a.bin")).to_have_count(0)
    await tab.get_by_label("PIN").fill("2468")
    await tab.get_by_role("button", name="Open").click()
    async with tab.expect_download() as waiting:
        await tab.get_by_role("link", name="a.bin").click()
    assert await asyncio.to_thread(Path(await (await waiting.value).path()).read_bytes) == FILES["a.bin"]
    await tab.reload()
    await expect(tab.get_by_role("link", name="a.bin")).to_be_visible()
    assert told == []


async def test_many_files_are_paged(browser: Browser, broker: Sharing) -> None:
    tab, _ = await tab_of(browser, broker.link("one/many/MANIFEST.json", filename="many", unit=True)["url"])
    await expect(tab.get_by_text("2,500 files")).to_be_visible()
    await tab.get_by_role("link", name="Next").click()
    await tab.get_by_role("link", name="Next").click()
    await expect(tab.get_by_text("Page 3 of 3")).to_be_visible()
    await expect(tab.get_by_role("listitem")).to_have_count(500)
    await tab.get_by_role("link", name="Previous").click()
    await expect(tab.get_by_text("Page 2 of 3")).to_be_visible()


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("given", [{}, PHONE], ids=["desktop", "phone"])
async def test_axe_finds_nothing_wrong(browser: Browser, broker: Sharing, colours: str, given: dict[str, Any]) -> None:
    tab, told = await tab_of(browser, shoot(broker, note="For you")["url"], color_scheme=colours, **given)
    found = await Axe().run(tab)
    assert found.violations_count == 0, found.generate_report()
    assert await tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "nothing is cut off"
    assert told == []
