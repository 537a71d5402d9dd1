"""Uppy from the npm registry, unmodified, sends to an invitation by the module in docs/broker.md as it stands there."""

from __future__ import annotations

import re
import subprocess
from collections.abc import AsyncIterator, Iterator
from itertools import count
from pathlib import Path

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer
from playwright.async_api import Page

from tests.guests import invite
from tests.needs import find, need
from tests.stable import Sharing, sharing
from tests.stores import Store
from tests.system.scenes import chromium

pytestmark = [pytest.mark.long, pytest.mark.needs("chromium", "npm")]

PART = 16 << 20
DOCS = Path(__file__).parents[2] / "docs" / "broker.md"
PACKAGES = ("@uppy/core@6", "@uppy/aws-s3@6", "esbuild@0.25")
ENTRY = 'export { default as Uppy } from "@uppy/core"; export { default as AwsS3 } from "@uppy/aws-s3";'
HTML = """<!doctype html><title>Uppy</title><script type="module">
import { Uppy, AwsS3 } from "/uppy/uppy.js";
import { sendTo } from "/uppy/adapter.js";
window.uppy = new Uppy({ allowMultipleUploadBatches: true });
uppy.use(AwsS3, sendTo(uppy, location.hash.slice(1)));
</script><input type="file" multiple>"""
UPLOAD = """async () => {
  for (const data of document.querySelector("input").files) uppy.addFile({ name: data.name, type: data.type, data });
  const { successful, failed } = await uppy.upload();
  return [successful.map(({ name }) => name).sort(), failed.map(({ name, error }) => [name, error])];
}"""
PAUSED = """async () => {
  const result = new Promise((resolve) => uppy.on("complete", ({ failed }) => resolve(failed.length)));
  let parts = 0;
  uppy.on("s3-multipart:part-uploaded", () => {
    if (++parts !== 1) return;
    uppy.pauseAll();
    setTimeout(() => uppy.resumeAll(), 0);
  });
  const [file] = document.querySelector("input").files;
  uppy.addFile({ name: file.name, type: file.type, data: file });
  uppy.upload();
  return [await result, parts];
}"""
_names = (f"uppy-{number}" for number in count())


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Install Uppy, and bundle its modules for a browser; nothing of it is changed."""
    need("npm")
    folder, npm = tmp_path_factory.mktemp("npm"), find("npm")
    assert npm is not None
    quiet = ("--silent", "--no-audit", "--no-fund", "--no-save")
    subprocess.run([npm, "install", "--prefix", str(folder), *quiet, *PACKAGES], check=True, timeout=500, cwd=folder)
    (folder / "entry.js").write_text(ENTRY)
    made = [f"{folder}/node_modules/.bin/esbuild", "entry.js", "--bundle", "--format=esm", "--outfile=uppy.js"]
    subprocess.run(made, check=True, capture_output=True, timeout=100, cwd=folder)
    return (folder / "uppy.js").read_bytes()


@pytest.fixture
def broker(seaweedfs: Store, tmp_path: Path) -> Iterator[Sharing]:
    with sharing(tmp_path / "broker", seaweedfs, seaweedfs.new_bucket()) as broker:
        yield broker


class Site:
    """What a proxy under one name serves: the page and its modules, and ``/i/`` by the broker."""

    def __init__(self, broker: Sharing, bundle: bytes) -> None:
        (adapter,) = re.findall(r"^<!-- uppy -->\n```js\n(.*?)^```$", DOCS.read_text("utf-8"), re.MULTILINE | re.DOTALL)
        script = "text/javascript"
        self._files = {"": ("text/html", HTML), "uppy.js": (script, bundle.decode()), "adapter.js": (script, adapter)}
        self._broker, self._name = broker.url, broker.links_url.removeprefix("http://")

    async def file(self, request: web.Request) -> web.Response:
        """Answer a file."""
        kind, text = self._files[request.match_info["name"]]
        return web.Response(text=text, content_type=kind)

    async def pass_on(self, request: web.Request) -> web.Response:
        """Ask the broker, under the name of its links."""
        headers = {name: request.headers[name] for name in ("Accept", "Content-Type") if name in request.headers}
        url, body = f"{self._broker}{request.path_qs}", await request.read()
        async with (
            ClientSession() as http,
            http.request(request.method, url, data=body, headers=headers | {"Host": self._name}) as answer,
        ):
            return web.Response(status=answer.status, body=await answer.read(), content_type=answer.content_type)


@pytest.fixture
async def tab(bundle: bytes, broker: Sharing) -> AsyncIterator[Page]:
    """Open the page, for a new invitation."""
    site, app = Site(broker, bundle), web.Application()
    app.router.add_get("/uppy/{name:.*}", site.file)
    app.router.add_route("*", "/i/{rest:.*}", site.pass_on)
    invited = invite(broker, next(_names), prefix="in/")["url"].rpartition("/i/")[2]
    async with TestServer(app, host="localhost") as server, chromium() as browser:
        page = await (await browser.new_context()).new_page()
        await page.goto(f"{server.make_url('/uppy/')}#{server.make_url(f'/i/{invited}')}")
        await page.wait_for_function("window.uppy")
        yield page


def file_of(folder: Path, name: str, size: int) -> Path:
    path = folder / name
    path.write_bytes((name.encode() + bytes(range(251))) * (size // 251 + 1))
    with path.open("r+b") as file:
        file.truncate(size)
    return path


def stored(store: Store, broker: Sharing) -> dict[str, bytes]:
    keys = store.list(broker.bucket, "in/")
    return {key.split("/", 2)[2]: store.read(broker.bucket, key) for key in keys}


async def test_uppy_sends_small_files_and_large_ones_in_parts(
    tab: Page, broker: Sharing, seaweedfs: Store, tmp_path: Path
) -> None:
    sizes = {"empty.txt": 0, "sm\u00e5ll <b>.txt": 1000, "large.bin": 2 * PART + 7}
    paths = [file_of(tmp_path, name, size) for name, size in sizes.items()]
    await tab.locator("input").set_input_files(paths)
    assert await tab.evaluate(UPLOAD) == [sorted(sizes), []]
    assert stored(seaweedfs, broker) == {path.name: path.read_bytes() for path in paths}
    assert len(broker.events("upload.received")) == len(paths)


async def test_uppy_pauses_and_resumes_and_sends_no_part_again(
    tab: Page, broker: Sharing, seaweedfs: Store, tmp_path: Path
) -> None:
    sent: list[str] = []
    tab.on("requestfinished", lambda request: sent.append(request.url) if "partNumber=" in request.url else None)
    path = file_of(tmp_path, "large.bin", 3 * PART)
    await tab.locator("input").set_input_files(path)
    failed, parts = await tab.evaluate(PAUSED)
    assert (failed, parts) == (0, 3)
    assert stored(seaweedfs, broker) == {path.name: path.read_bytes()}
    assert len(broker.events("upload.received")) == 1
    first = [url for url in sent if "partNumber=1&" in url and "uploadId" in url and "X-Amz-Date" in url]
    assert len(first) == 1
