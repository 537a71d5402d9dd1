"""An invitation's page in a tab of Chromium or Firefox: what a guest does, in the words that both have."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Protocol

from playwright.async_api import BrowserContext, CDPSession, Page

from tests.stable import Sharing
from tests.stores import Store
from tests.system.firefox import Session, firefox
from tests.system.scenes import chromium

PATIENCE = 280.0
"""Seconds until something is called missing: a limit for what hangs, long enough for a busy machine."""

DROP = """async (tree) => {
  const files = [...document.getElementById("dropped").files];
  const entry = (name, node, above) => typeof node === "number"
    ? { isFile: true, name, fullPath: above + name, file: (done) => done(files[node]) }
    : { isFile: false, name, fullPath: above + name, createReader() {
        const all = Object.entries(node).map(([child, below]) => entry(child, below, `${above}${name}/`));
        return { readEntries: (done) => done(all.splice(0, 100)) };
      } };
  const [[name, node]] = Object.entries(tree);
  const item = { kind: "file", webkitGetAsEntry: () => entry(name, node, "/") };
  const event = new Event("drop", { cancelable: true });
  Object.defineProperty(event, "dataTransfer", { value: { items: [item], files } });
  dispatchEvent(event);
  document.getElementById("dropped").remove();
}"""
"""Drops a folder whose files were given to a field: BiDi has no drag from outside of the browser."""

RECEIPT = """async () => {
  const make = URL.createObjectURL;
  let saved;
  URL.createObjectURL = (blob) => make(saved = blob);
  document.getElementById("save-json").click();
  URL.createObjectURL = make;
  return JSON.parse(await saved.text());
}"""

PAUSED_AFTER_A_PART = """async () => {
  const opened = indexedDB.open("presignd");
  await new Promise((resolve) => (opened.onsuccess = resolve));
  const pick = () => new Promise((resolve) => {
    const asked = opened.result.transaction("uploads").objectStore("uploads").getAll();
    asked.onsuccess = () => resolve(asked.result.flatMap(({ parts }) => Object.keys(parts)));
  });
  while (!(await pick()).length) await new Promise((resolve) => setTimeout(resolve, 10));
  document.getElementById("pause-all").click();
  const parts = await pick();
  opened.result.close();
  return parts;
}"""


class Tab(Protocol):
    """One tab. ``sent`` has method and URL of each request."""

    sent: list[tuple[str, str]]

    async def go(self, url: str) -> None:
        """Open an address, or the same one anew."""

    async def run(self, function: str, argument: Any = None) -> Any:
        """Call a function of the page's JavaScript; argument and result are JSON."""

    async def choose(self, *paths: Path) -> None:
        """Choose files."""

    async def drop(self, folder: Path) -> None:
        """Drop a folder."""

    async def offline(self, is_cut: bool) -> None:
        """Cut the network, or mend it."""


class ChromiumTab:
    """A tab of Chromium, by Playwright."""

    def __init__(self, page: Page, browser: CDPSession) -> None:
        self._page, self._browser = page, browser
        self.sent: list[tuple[str, str]] = []
        page.on("request", lambda request: self.sent.append((request.method, request.url)))
        page.on("dialog", lambda dialog: asyncio.ensure_future(dialog.accept()))

    @property
    def context(self) -> BrowserContext:
        return self._page.context

    async def go(self, url: str) -> None:
        await self._page.goto(url)

    async def run(self, function: str, argument: Any = None) -> Any:
        return await self._page.evaluate(function, argument)

    async def choose(self, *paths: Path) -> None:
        await self._page.locator("#pick-files").set_input_files(paths)

    async def drop(self, folder: Path) -> None:
        data = {"items": [], "files": [str(folder)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            await self._browser.send("Input.dispatchDragEvent", {"type": kind, "x": 200, "y": 200, "data": data})

    async def offline(self, is_cut: bool) -> None:
        await self.context.set_offline(is_cut)


class FirefoxTab:
    """A tab of Firefox, by WebDriver BiDi."""

    def __init__(self, session: Session, context: str) -> None:
        self._session, self._context = session, context
        self.sent = session.requests

    async def go(self, url: str) -> None:
        await self._session.call("browsingContext.navigate", context=self._context, url=url, wait="complete")

    async def run(self, function: str, argument: Any = None) -> Any:
        call = f"async () => JSON.stringify(await ({function})({json.dumps(argument)}) ?? null)"
        answer = await self._session.call(
            "script.callFunction", functionDeclaration=call, target={"context": self._context}, awaitPromise=True
        )
        assert answer["type"] == "success", answer
        return json.loads(answer["result"]["value"])

    async def choose(self, *paths: Path) -> None:
        await self._set_files("#pick-files", list(paths))

    async def drop(self, folder: Path) -> None:
        paths = _files_below(folder)
        tree: dict[str, Any] = {}
        for number, path in enumerate(paths):
            *above, name = path.relative_to(folder.parent).parts
            inside = tree
            for each in above:
                inside = inside.setdefault(each, {})
            inside[name] = number
        await self.run(
            "() => void document.body.append("
            "Object.assign(document.createElement('input'), {id: 'dropped', type: 'file', multiple: true}))"
        )
        await self._set_files("#dropped", paths)
        await self.run(DROP, tree)

    async def _set_files(self, field: str, paths: list[Path]) -> None:
        found = await self._session.call(
            "browsingContext.locateNodes", context=self._context, locator={"type": "css", "value": field}
        )
        element = {"sharedId": found["nodes"][0]["sharedId"]}
        await self._session.call(
            "input.setFiles", context=self._context, element=element, files=[str(path) for path in paths]
        )

    async def offline(self, is_cut: bool) -> None:
        conditions = {"type": "offline"} if is_cut else None
        await self._session.call(
            "emulation.setNetworkConditions", networkConditions=conditions, contexts=[self._context]
        )


class GuestPage:
    """The page of an invitation in a tab. ``patience`` is how many seconds it may take for what is waited for."""

    def __init__(self, tab: Tab, url: str) -> None:
        self.tab, self.url, self.patience = tab, url, PATIENCE

    async def open(self) -> None:
        """Open it, or reload it."""
        await self.tab.go(self.url)
        await self.until(lambda: self.tab.run("() => document.documentElement.dataset.live === 'yes'"))

    async def text(self, selector: str) -> str:
        """Return what an element says."""
        return str(await self.tab.run("(at) => document.querySelector(at).innerText", selector))

    async def rows(self) -> int:
        """Return how many files are in the list."""
        return int(await self.tab.run("() => document.querySelectorAll('#list > li').length"))

    async def until_listed(self, count: int) -> None:
        """Wait until the list has so many files."""
        await self.until(lambda: self._has(self.rows, count))

    async def until_more_parts_than(self, before: int) -> None:
        """Wait until it has sent more parts of files than ``before``."""
        await self.until(lambda: self._has(self._parts, before + 1))

    async def _parts(self) -> int:
        return len(self.parts_sent())

    async def _has(self, number: Callable[[], Any], least: int) -> bool:
        return bool(await number() >= least)

    async def all_received(self) -> None:
        """Wait until it says that everything is there."""
        await self.until_says("#note", "All files have been received.")

    async def until_says(self, selector: str, text: str) -> None:
        """Wait until an element says a text."""
        try:
            await self.until(lambda: self._says(selector, text))
        except TimeoutError:
            raise AssertionError(await self.text("body")) from None

    async def _says(self, selector: str, text: str) -> bool:
        return text in await self.text(selector)

    async def until(self, holds: Callable[[], Any]) -> None:
        """Wait until ``holds`` returns true: the page tells nobody."""
        async with asyncio.timeout(self.patience):
            while not await holds():  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.1)

    async def pause_after_a_part(self) -> set[str]:
        """Pause everything once the browser has noted a part; return the numbers of those that are noted."""
        return set(await self.tab.run(PAUSED_AFTER_A_PART))

    async def receipt(self) -> Any:
        """Return the receipt as it is saved."""
        return await self.tab.run(RECEIPT)

    def parts_sent(self) -> list[str]:
        """Return the numbers of the parts that were sent, in order."""
        urls = [url for method, url in self.tab.sent if method == "PUT" and "partNumber=" in url]
        return [url.partition("partNumber=")[2].partition("&")[0] for url in urls]


@contextlib.asynccontextmanager
async def tab_of(name: str, *, listens: bool = True) -> AsyncIterator[Tab]:
    """Open a tab of ``chromium`` or ``firefox``, in a browser of its own.

    ``listens``: its ``sent`` is kept. Firefox then reads each body once more, into memory.
    """
    if name == "chromium":
        async with chromium() as browser, await browser.new_context(locale="en-GB") as context:
            page = await context.new_page()
            yield ChromiumTab(page, await context.new_cdp_session(page))
    else:
        async with firefox() as session:
            (there,) = (await session.call("browsingContext.getTree"))["contexts"]
            if listens:
                events = ["network.beforeRequestSent"]
                await session.call("session.subscribe", events=events, contexts=[there["context"]])
            yield FirefoxTab(session, there["context"])


def _files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def check_asked_only(tab: Tab, broker: Sharing, store: Store) -> None:
    """Assert that the page asked nobody but the broker and the store."""
    own = (f"{broker.links_url}/i/", f"{store.endpoint}/", "blob:", "about:")
    assert [url for _, url in tab.sent if not url.startswith(own)] == []


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stored(store: Store, bucket: str, prefix: str) -> dict[str, str]:
    """Return the SHA-256 of what came in, by the path that the guest gave it; each is there once."""
    keys = store.list(bucket, prefix)
    paths = [key.split("/", 2)[2] for key in keys]
    assert len(set(paths)) == len(paths)
    return {path: _digest(store, bucket, key) for path, key in zip(paths, keys, strict=True)}


def _digest(store: Store, bucket: str, key: str) -> str:
    found = hashlib.sha256()
    for piece in store.client.get_object(Bucket=bucket, Key=key)["Body"].iter_chunks(1 << 20):
        found.update(piece)
    return found.hexdigest()
