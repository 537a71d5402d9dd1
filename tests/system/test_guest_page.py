"""The page of an invitation in a real Chromium, against a real broker and a real store."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, BrowserContext, Error, Route, expect
from playwright.async_api import Page as Tab

from presignd.s3.checksums import checksum_of
from tests.brokers import command
from tests.guests import invite
from tests.stable import Sharing, sharing
from tests.stores import Store
from tests.system.browsing import PHONE, is_live
from tests.system.scenes import chromium

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.needs("chromium")]

PART = 16 << 20
EVIL = "<img src=x onerror=alert(1)>.txt"
KEPT = """async () => {
    const opened = indexedDB.open("presignd");
    await new Promise((resolve) => (opened.onsuccess = resolve));
    const kept = opened.result.transaction("handles").objectStore("handles").getAll();
    await new Promise((resolve) => (kept.onsuccess = resolve));
    opened.result.close();
    return kept.result.map(({name}) => name);
}"""
_names = (f"page-{number}" for number in count())


@pytest.fixture(scope="module")
def bucket(seaweedfs: Store) -> str:
    return seaweedfs.new_bucket()


@pytest.fixture(scope="module")
def broker(seaweedfs: Store, bucket: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sharing]:
    with sharing(tmp_path_factory.mktemp("broker"), seaweedfs, bucket) as broker:
        yield broker


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as found:
        yield found


class Visit:
    """A tab with an invitation's page, and what it was told."""

    def __init__(self, tab: Tab, store: Store, broker: Sharing, prefix: str) -> None:
        self.tab, self._store, self._broker, self._prefix = tab, store, broker, prefix

    async def choose(self, *paths: Path) -> None:
        """Choose files."""
        await self.tab.locator("#pick-files").set_input_files(paths)

    async def drop(self, path: Path) -> None:
        """Drop a file or a folder, as a person does it with a mouse."""
        await self.drag(path, "dragEnter", "dragOver", "drop")

    async def drag(self, path: Path, *kinds: str) -> None:
        """Send events of a mouse that drags a file or a folder, at one place."""
        browser = await self.tab.context.new_cdp_session(self.tab)
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in kinds:
            await browser.send("Input.dispatchDragEvent", {"type": kind, "x": 200, "y": 200, "data": data})

    async def received(self) -> int:
        """Return how many files the page counts as received."""
        return int((await self.tab.locator("#all").inner_text()).partition(" ")[0])

    async def until_more_than(self, before: int) -> None:
        """Wait until the page counts more files than ``before`` as received."""
        async with asyncio.timeout(100):
            while await self.received() <= before:  # noqa: ASYNC110 - the page tells nobody
                await asyncio.sleep(0.1)

    async def all_received(self) -> None:
        """Wait until the page says that everything is there."""
        await expect(self.tab.locator("#note")).to_have_text("All files have been received. You can close this page.")

    def stored(self) -> dict[str, bytes]:
        """Return what came in, by the path that the guest gave it; each is there once."""
        keys = self._store.list(self._broker.bucket, self._prefix)
        assert len({key.split("/", 2)[2] for key in keys}) == len(keys)
        return {key.split("/", 2)[2]: self._store.read(self._broker.bucket, key) for key in keys}


@contextlib.asynccontextmanager
async def visit(
    browser: Browser, broker: Sharing, store: Store, *options: str, told: list[str] | None = None, **given: Any
) -> AsyncIterator[Visit]:
    """Open a new invitation in a browser of its own: it may ask only the broker and the store."""
    name = next(_names)
    url = invite(broker, name, *options, prefix=f"{name}/")["url"]
    async with await browser.new_context(**{"locale": "en-GB", **given}) as context:
        found = Visit(await opened(context, url), store, broker, f"{name}/")
        asked: list[str] = []
        errors: list[str] = [] if told is None else told
        context.on("request", lambda request: asked.append(request.url))
        context.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
        found.tab.on("pageerror", lambda error: errors.append(str(error)))
        yield found
        own = (f"{broker.links_url}/i/", f"{store.endpoint}/", "blob:")
        assert [each for each in asked if not each.startswith(own)] == []
        if told is None:
            assert errors == []


async def opened(context: BrowserContext, url: str) -> Tab:
    tab = await context.new_page()
    await tab.goto(url)
    await is_live(tab)
    return tab


def file_of(folder: Path, name: str, size: int) -> Path:
    """Make a file whose bytes repeat with no part's length."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((b"%d " % size + bytes(range(251))) * (size // 251 + 1))
    with path.open("r+b") as file:
        file.truncate(size)
    return path


async def receipt_of(tab: Tab) -> Any:
    async with tab.expect_download() as download:
        await tab.get_by_role("button", name="Save as JSON").click()
    path = await (await download.value).path()
    return json.loads(await asyncio.to_thread(path.read_text, "utf-8"))


# --- sending ------------------------------------------------------------------------------------------
async def test_files_of_every_size_come_in_whole_and_the_receipt_names_them(
    browser: Browser, broker: Sharing, seaweedfs: Store, tmp_path: Path
) -> None:
    names = {"empty": 0, EVIL: 5, "Stra\u00dfe \u05d0.txt": 1000, "b" * 200 + ".bin": PART, "parts.bin": 2 * PART + 7}
    paths = [file_of(tmp_path, name, size) for name, size in names.items()]
    async with visit(browser, broker, seaweedfs, "--note", "M\u00e4rz & <b>") as page:
        await expect(page.tab.locator("#what")).to_have_text("M\u00e4rz & <b>")
        await page.choose(*paths)
        await page.all_received()
        receipt = await receipt_of(page.tab)
        assert await page.tab.locator("img").count() == 0
        await expect(page.tab.locator("#unscripted")).to_be_hidden()
    assert page.stored() == {path.name: path.read_bytes() for path in paths}
    assert receipt["note"] == "M\u00e4rz & <b>"
    assert {each["path"]: each["size"] for each in receipt["files"]} == names
    assert {each["path"]: each["checksum"] for each in receipt["files"]} == {
        path.name: checksum_of(path.read_bytes(), "crc64nvme") for path in paths
    }


async def test_files_come_in_at_a_gateway_with_minio_s_front_end_too(
    browser: Browser, juicefs: Store, tmp_path: Path
) -> None:
    paths = [file_of(tmp_path, name, size) for name, size in {"empty": 0, "small": 9, "parts": PART + 1}.items()]
    with sharing(tmp_path / "broker", juicefs, juicefs.bucket) as broker:
        async with visit(browser, broker, juicefs) as page:
            await page.choose(*paths)
            await page.all_received()
    assert page.stored() == {path.name: path.read_bytes() for path in paths}


@pytest.mark.parametrize("how", ["drop", "choose"])
async def test_a_folder_keeps_its_structure(
    browser: Browser, broker: Sharing, seaweedfs: Store, tmp_path: Path, how: str
) -> None:
    paths = [file_of(tmp_path, f"folder/{name}", 10) for name in ("a.txt", "below/a.txt", "below/deep/\u00e9.txt")]
    paths += [file_of(tmp_path, f"folder/many/{number}", 1) for number in range(110)]
    async with visit(browser, broker, seaweedfs) as page:
        if how == "choose":
            await page.tab.locator("#pick-folder").set_input_files(tmp_path / "folder")
        else:
            await page.drop(tmp_path / "folder")
        await page.all_received()
    assert page.stored() == {str(path.relative_to(tmp_path)): path.read_bytes() for path in paths}


async def test_pasted_pictures_of_one_name_are_two_files(browser: Browser, broker: Sharing, seaweedfs: Store) -> None:
    paste = """text => {
        const data = new DataTransfer();
        data.items.add(new File([text], "image.png", {type: "image/png"}));
        dispatchEvent(new ClipboardEvent("paste", {clipboardData: data}));
    }"""
    async with visit(browser, broker, seaweedfs) as page:
        await page.tab.evaluate(paste, "one")
        await page.tab.evaluate(paste, "another")
        await page.all_received()
        await expect(page.tab.locator("#list li")).to_have_count(2)
    assert page.stored() == {"image.png": b"one", "image~2.png": b"another"}


# --- going on -----------------------------------------------------------------------------------------
async def test_after_a_reload_only_what_is_missing_is_sent(
    browser: Browser, broker: Sharing, seaweedfs: Store, tmp_path: Path
) -> None:
    path = file_of(tmp_path, "large.bin", 5 * PART + 1)
    sent: list[str] = []
    block = True

    async def watch(route: Route) -> None:
        url = route.request.url
        if route.request.method == "PUT":
            number = url.split("partNumber=")[1].split("&")[0]
            if block and int(number) > 2:
                return  # never answered
            sent.append(number)
        await route.continue_()

    async with visit(browser, broker, seaweedfs) as page:
        await page.tab.route("**/*partNumber=*", watch)
        await page.choose(path)
        bar = page.tab.locator("#list progress")
        await expect(page.tab.locator("#list li")).to_contain_text("33.6 MB of 83.9 MB")
        assert await bar.count() == 1
        page.tab.on("dialog", lambda dialog: asyncio.ensure_future(dialog.accept()))
        await page.tab.reload()
        await is_live(page.tab)
        await expect(page.tab.locator("#list li")).to_contain_text("Choose this file again")
        block = False
        await page.choose(path)
        await page.all_received()
    assert sorted(sent) == ["1", "2", "3", "4", "5", "6"], "each part once"
    assert page.stored() == {"large.bin": path.read_bytes()}


ASKS_FIRST = """
    const may = FileSystemHandle.prototype;
    may.queryPermission = async () => "prompt";
    may.requestPermission = async () => "granted";
"""
"""Chromium asks once it was closed meanwhile; headless it can't be answered."""


@pytest.mark.parametrize("asks", [False, True], ids=["by itself", "asks"])
async def test_what_was_dropped_goes_on_after_a_reload_without_what_was_cancelled(
    browser: Browser, broker: Sharing, seaweedfs: Store, tmp_path: Path, *, asks: bool
) -> None:
    folder = tmp_path / "folder"
    names = ("there.txt", "below/\u00fc.txt", "empty", f"below/{EVIL}", "not.txt", "gone.txt")
    paths = [file_of(folder, name, 9) for name in names]
    holds = True

    async def hold(route: Route) -> None:
        if route.request.method != "PUT" or not holds or "there.txt" in route.request.url:
            await route.continue_()  # any other is never answered

    async with visit(browser, broker, seaweedfs) as page:
        if asks:
            await page.tab.add_init_script(ASKS_FIRST)
        page.tab.on("dialog", lambda dialog: asyncio.ensure_future(dialog.accept()))
        await page.tab.route("**/folder/*", hold)
        await page.tab.route("**/folder/below/*", hold)
        await page.drop(folder)
        await expect(page.tab.locator("#list li", has_text="there.txt")).to_contain_text("Received")
        await page.tab.get_by_role("button", name="Cancel: folder/not.txt").click()
        paths.pop().unlink()
        await page.tab.reload()
        await is_live(page.tab)
        holds = False
        go_on = page.tab.get_by_role("button", name="Go on with what was dropped")
        if asks:
            await expect(page.tab.locator("#list li", has_text="\u00fc.txt")).to_contain_text("Choose this file again")
            await go_on.click()
        await page.tab.get_by_role("button", name="Cancel: folder/gone.txt").click()
        await expect(page.tab.locator("#all")).to_contain_text("3 of 4 received")
        await expect(go_on).to_be_hidden()
        # Chromium opens no file of a folder again whose name Windows does not allow.
        await expect(page.tab.locator("#list li", has_text=EVIL)).to_contain_text("Choose this file again")
        paths[4].unlink()
        await (page.choose(paths[3]) if asks else page.drop(folder))
        await page.all_received()
        await page.tab.reload()
        await is_live(page.tab)
        assert await page.tab.evaluate(KEPT) == [], "all is there: nothing has to be opened again"
    assert page.stored() == {str(path.relative_to(tmp_path)): path.read_bytes() for path in paths[:4]}


async def test_what_was_paused_goes_on_after_a_reload_only_by_hand(
    browser: Browser, broker: Sharing, seaweedfs: Store, tmp_path: Path
) -> None:
    path = file_of(tmp_path / "folder", "large.bin", 2 * PART)
    async with visit(browser, broker, seaweedfs) as page:
        await page.tab.route("**/*partNumber=*", lambda _: None)  # never answered
        await page.drop(tmp_path / "folder")
        await page.tab.get_by_role("button", name="Pause all").click()
        row = page.tab.locator("#list li")
        await expect(row).to_contain_text("Paused")
        await page.tab.unroute_all(behavior="ignoreErrors")
        await page.tab.reload()
        await is_live(page.tab)
        await expect(row).to_contain_text("Choose this file again")
        await page.tab.get_by_role("button", name="Go on with what was dropped").click()
        await page.all_received()
    assert page.stored() == {"folder/large.bin": path.read_bytes()}


async def test_a_cut_network_and_a_restarted_broker_are_waited_for(
    browser: Browser, broker: Sharing, seaweedfs: Store, tmp_path: Path
) -> None:
    path = file_of(tmp_path, "film.bin", 3 * PART)
    async with visit(browser, broker, seaweedfs, told=[]) as page:
        await page.tab.context.set_offline(True)
        await page.choose(path)
        await expect(page.tab.locator("#list li")).to_contain_text("It goes on by itself.")
        broker.kill()
        await page.tab.context.set_offline(False)
        await asyncio.to_thread(broker.start)
        await page.all_received()
    assert page.stored() == {"film.bin": path.read_bytes()}


async def test_what_is_dropped_comes_in_though_the_page_moves_under_the_pointer(
    browser: Browser, broker: Sharing, seaweedfs: Store, tmp_path: Path
) -> None:
    """As right after a reload, when its buttons appear."""
    path = file_of(tmp_path, "a.txt", 3)
    async with visit(browser, broker, seaweedfs) as page:
        await page.drag(path, "dragEnter", "dragOver")
        await page.tab.evaluate("() => { document.elementFromPoint(200, 200).style.display = 'none'; }")
        await page.drag(path, "drop")
        await page.all_received()


class Line:
    """A line that lets so many PUTs through, and keeps the others waiting."""

    def __init__(self, allowed: int) -> None:
        self.allowed, self._asked = allowed, 0

    async def pace(self, route: Route) -> None:
        if route.request.method == "PUT":
            self._asked += 1
            number = self._asked
            while number > self.allowed:  # noqa: ASYNC110 - several wait, each for another number
                await asyncio.sleep(0.05)
        with contextlib.suppress(Error):  # the page is another by now
            await route.continue_()


async def test_a_folder_comes_in_whole_and_once_whatever_is_cut(
    browser: Browser, broker: Sharing, seaweedfs: Store, tmp_path: Path
) -> None:
    """The network is cut twice, the tab reloaded twice, and the broker killed twice."""
    folder = tmp_path / "all"
    sizes = {f"{number % 7}/{number} \u00fc {EVIL}": number % 5 * 1000 for number in range(120)}
    paths = [file_of(folder, name, size) for name, size in {**sizes, "large.bin": 4 * PART + 5}.items()]
    line = Line(20)

    async with visit(browser, broker, seaweedfs, told=[]) as page:
        page.tab.on("dialog", lambda dialog: asyncio.ensure_future(dialog.accept()))
        await page.tab.route("**/all/**", line.pace)
        for _ in range(2):
            await page.drop(folder)
            await expect(page.tab.locator("#list li")).to_have_count(len(paths))
            await page.until_more_than(0)
            before = await page.received()
            assert before < len(paths), "the rest is cut"
            await page.tab.context.set_offline(True)
            await asyncio.to_thread(broker.kill)
            await page.tab.context.set_offline(False)
            await asyncio.to_thread(broker.start)
            line.allowed += 40
            await page.until_more_than(before)
            await page.tab.reload()
            await is_live(page.tab)
        line.allowed = 10_000
        await page.drop(folder)
        await page.all_received()
        receipt = await receipt_of(page.tab)
    assert page.stored() == {str(path.relative_to(tmp_path)): path.read_bytes() for path in paths}
    assert sorted(each["path"] for each in receipt["files"]) == sorted(page.stored())


async def test_an_expired_grant_is_signed_again(
    browser: Browser, broker: Sharing, seaweedfs: Store, tmp_path: Path
) -> None:
    path = file_of(tmp_path, "late.txt", 9)
    refused: list[str] = []

    async def refuse_once(route: Route) -> None:
        if route.request.method == "PUT" and not refused:
            refused.append(route.request.url)
            cors = {"Access-Control-Allow-Origin": "*"}
            body = "<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"
            await route.fulfill(status=403, body=body, headers=cors, content_type="application/xml")
        else:
            await route.continue_()

    async with visit(browser, broker, seaweedfs, told=[]) as page:
        await page.tab.route("**/late.txt?*", refuse_once)
        await page.choose(path)
        await page.all_received()
    assert len(refused) == 1
    assert page.stored() == {"late.txt": path.read_bytes()}


async def test_a_paused_file_waits_and_a_cancelled_one_is_given_back(
    browser: Browser, broker: Sharing, seaweedfs: Store, tmp_path: Path
) -> None:
    path = file_of(tmp_path, "big.bin", 2 * PART)
    held = asyncio.Event()

    async def hold(route: Route) -> None:
        await held.wait()
        with contextlib.suppress(Exception):  # it was given up meanwhile
            await route.continue_()

    async with visit(browser, broker, seaweedfs, "--max-files", "1", told=[]) as page:
        await page.tab.route("**/*partNumber=*", hold)
        await page.choose(path)
        await page.tab.get_by_role("button", name="Pause: big.bin").click()
        await expect(page.tab.locator("#list li")).to_contain_text("Paused")
        await page.choose(file_of(tmp_path, "second.txt", 3))
        await expect(page.tab.locator("#list li").nth(1)).to_contain_text("takes no more files")
        held.set()
        await page.tab.get_by_role("button", name="Resume: big.bin").click()
        await expect(page.tab.locator("#list li").first).to_contain_text("Received")
        await page.tab.get_by_role("button", name="Cancel: second.txt").click()
        await page.all_received()
    assert set(page.stored()) == {"big.bin"}


async def test_it_does_not_say_that_all_was_received_when_the_last_file_was_refused(
    browser: Browser, broker: Sharing, seaweedfs: Store, tmp_path: Path
) -> None:
    """Counts are told ten seconds apart, so that a screen reader is quiet; the last one is told at once."""
    async with visit(browser, broker, seaweedfs, "--max-files", "1", told=[]) as page:
        await page.tab.clock.set_fixed_time(time.time())  # those ten seconds never pass
        await expect(page.tab.locator("#limits")).to_contain_text("1 more file.")
        await page.choose(file_of(tmp_path, "first.txt", 3))
        await page.all_received()
        await expect(page.tab.locator("#limits")).to_contain_text("0 more files.")
        await page.choose(file_of(tmp_path, "second.txt", 3))
        await expect(page.tab.locator("#list li").nth(1)).to_contain_text("takes no more files")
        await expect(page.tab.locator("#note")).to_have_text("1 of 2 received")


# --- who may ------------------------------------------------------------------------------------------
async def test_a_pin_is_asked_for_first_and_known_after_a_reload(
    browser: Browser, broker: Sharing, seaweedfs: Store, tmp_path: Path
) -> None:
    name = next(_names)
    made = invite(broker, name, "--pin", prefix=f"{name}/")
    async with await browser.new_context(locale="en-GB") as context:
        page = Visit(await opened(context, made["url"]), seaweedfs, broker, f"{name}/")
        await expect(page.tab.get_by_role("button", name="Choose files")).to_be_hidden()
        await expect(page.tab.get_by_label("PIN")).to_be_focused()
        await page.tab.get_by_label("PIN").fill("wrong")
        await page.tab.get_by_role("button", name="Open").click()
        await expect(page.tab.locator("#note")).to_have_text("This PIN is wrong.")
        await page.tab.get_by_label("PIN").fill(made["pin"])
        await page.tab.keyboard.press("Enter")
        await expect(page.tab.get_by_role("button", name="Choose files")).to_be_visible()
        await page.tab.reload()
        await is_live(page.tab)
        await page.choose(file_of(tmp_path, "a", 1))
        await page.all_received()


async def test_without_javascript_it_says_what_to_do(browser: Browser, broker: Sharing) -> None:
    url = invite(broker, next(_names))["url"]
    async with await browser.new_context(java_script_enabled=False) as context:
        tab = await context.new_page()
        await tab.goto(url)
        await expect(tab.locator("body")).to_contain_text("switch JavaScript on")
        await expect(tab.locator("body")).to_contain_text("schalten Sie JavaScript")


async def test_a_revoked_invitation_says_so_and_takes_nothing_more(
    browser: Browser, broker: Sharing, seaweedfs: Store, tmp_path: Path
) -> None:
    name = next(_names)
    url = invite(broker, name, prefix=f"{name}/")["url"]
    async with await browser.new_context(locale="en-GB") as context:
        page = Visit(await opened(context, url), seaweedfs, broker, f"{name}/")
        assert command("invite", "revoke", name, "-c", broker.file).returncode == 0
        await page.choose(file_of(tmp_path, "a", 1))
        await expect(page.tab.locator("#note")).to_contain_text("This invitation has ended.")
        await expect(page.tab.get_by_role("button", name="Choose files")).to_be_hidden()
    assert page.stored() == {}


# --- for everybody ------------------------------------------------------------------------------------
async def test_it_speaks_german(browser: Browser, broker: Sharing, seaweedfs: Store, tmp_path: Path) -> None:
    async with visit(browser, broker, seaweedfs, locale="de-AT") as page:
        await expect(page.tab.get_by_role("button", name="Dateien ausw\u00e4hlen")).to_be_visible()
        await page.choose(file_of(tmp_path, "a", 1))
        await expect(page.tab.locator("#note")).to_contain_text("Alle Dateien sind angekommen.")


async def test_it_speaks_arabic_from_right_to_left(
    browser: Browser, broker: Sharing, seaweedfs: Store, tmp_path: Path
) -> None:
    phone = {**PHONE, "viewport": {"width": 320, "height": 700}}
    async with visit(browser, broker, seaweedfs, locale="ar-EG", **phone) as page:
        await expect(
            page.tab.get_by_role("button", name="\u0627\u062e\u062a\u064a\u0627\u0631 \u0645\u0644\u0641\u0627\u062a")
        ).to_be_visible()
        await page.choose(file_of(tmp_path, "left to right.txt", 1))
        await expect(page.tab.locator("#list li")).to_have_attribute("data-state", "done")
        assert await page.tab.evaluate("getComputedStyle(document.body).direction") == "rtl"
        assert await page.tab.evaluate("document.scrollingElement.scrollWidth - innerWidth") <= 0
        assert (await Axe().run(page.tab)).response["violations"] == []


async def test_two_tabs_with_one_invitation_send_a_file_each_once(
    browser: Browser, broker: Sharing, seaweedfs: Store, tmp_path: Path
) -> None:
    one, other = file_of(tmp_path, "one.bin", 2 * PART), file_of(tmp_path, "other.bin", 2 * PART + 1)
    async with visit(browser, broker, seaweedfs) as page:
        second = Visit(await opened(page.tab.context, page.tab.url), seaweedfs, broker, "")
        await page.choose(one)
        await second.choose(other)
        await page.all_received()
        await second.all_received()
        await second.tab.reload()
        await is_live(second.tab)
        await expect(second.tab.locator("#list li")).to_have_count(2)
        receipt = await receipt_of(second.tab)
    assert page.stored() == {path.name: path.read_bytes() for path in (one, other)}
    assert sorted(each["path"] for each in receipt["files"]) == ["one.bin", "other.bin"]


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({"color_scheme": "light"}, id="light"),
        pytest.param({"color_scheme": "dark"}, id="dark"),
        pytest.param({"forced_colors": "active"}, id="forced colours"),
        pytest.param({**PHONE, "viewport": {"width": 320, "height": 700}}, id="phone"),
    ],
)
async def test_axe_finds_nothing_and_nothing_is_wider_than_the_screen(
    browser: Browser, broker: Sharing, seaweedfs: Store, tmp_path: Path, given: dict[str, Any]
) -> None:
    async with visit(browser, broker, seaweedfs, "--max-size", "1MB", "--note", "n" * 300, **given) as page:
        assert (await Axe().run(page.tab)).response["violations"] == []
        await page.choose(file_of(tmp_path, "x" * 200, 1), file_of(tmp_path, "too large", 2_000_000))
        await expect(page.tab.locator("#list li").nth(1)).to_contain_text("larger than this invitation takes")
        await expect(page.tab.locator("#list li").first).to_contain_text("Received")
        found = (await Axe().run(page.tab)).response["violations"]
        width = await page.tab.evaluate("document.scrollingElement.scrollWidth - innerWidth")
    assert [(one["id"], one["impact"], [node["html"] for node in one["nodes"]]) for one in found] == []
    assert width <= 0


async def test_it_works_by_keyboard_and_focus_is_not_lost(
    browser: Browser, broker: Sharing, seaweedfs: Store, tmp_path: Path
) -> None:
    async with visit(browser, broker, seaweedfs, "--max-size", "1MB", told=[]) as page:
        await page.choose(*(file_of(tmp_path, name, 2_000_000) for name in ("one", "two")))
        await page.tab.get_by_role("button", name="Cancel: one").focus()
        await page.tab.keyboard.press("Enter")
        await expect(page.tab.locator("#list li")).to_have_count(1)
        focused = await page.tab.evaluate("document.activeElement.getAttribute('aria-label')")
        assert focused.endswith(": two")
