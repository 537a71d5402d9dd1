"""A Chromium that saves downloads by itself, as a person's does.

Playwright takes over every download, and cancels one that breaks off. So this one is started with a profile of its own
and driven over the DevTools protocol: its pages, and the button of chrome://downloads.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import aiohttp

from presignd.demo.seaweedfs import LOOPBACK
from tests.needs import CHROMIUM
from tests.system.scenes import FLAGS

T = TypeVar("T")
PATIENCE = 300.0
"""Seconds: a busy machine is no failure."""
_DOWNLOADS = "document.querySelector('downloads-manager')?.shadowRoot.querySelector('downloads-item')?.shadowRoot"
_RESUME = f"""(() => {{
    const button = {_DOWNLOADS}?.querySelector('#pause-or-resume');
    if (button?.textContent.trim() !== "Resume") return false;
    button.click();
    return true;
}})()"""


class SavingBrowser:
    """A running Chromium; ``folder`` is where it saves."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, folder: Path) -> None:
        self._socket, self.folder = socket, folder
        self._numbers = itertools.count(1)

    async def save(self, url: str) -> None:
        """Open an address that is a download, in a tab of its own."""
        tab = await self._tab("about:blank")
        await self._evaluate(tab, f"location.href = {json.dumps(url)}")

    async def resume(self) -> None:
        """Press "Resume" beside the newest download, once it has broken off."""
        tab = await self._tab("chrome://downloads/")
        await _until(lambda: self._evaluate(tab, _RESUME))

    async def saved(self, name: str) -> Path:
        """Return the file once it is whole: until then it has another name."""
        file = self.folder / name
        await _until(lambda: asyncio.to_thread(file.exists))
        return file

    async def _tab(self, url: str) -> str:
        target = await self._call("Target.createTarget", url=url)
        attached = await self._call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        return str(attached["sessionId"])

    async def _evaluate(self, tab: str, expression: str) -> Any:
        found = await self._call("Runtime.evaluate", tab, expression=expression, returnByValue=True)
        return found["result"].get("value")

    async def _call(self, method: str, session: str = "", **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        of = {"sessionId": session} if session else {}
        await self._socket.send_json({"id": number, "method": method, "params": params, **of})
        while True:
            answer = await self._socket.receive_json(timeout=PATIENCE)
            if answer.get("id") == number:
                assert "result" in answer, answer
                return dict(answer["result"])


@contextlib.asynccontextmanager
async def saving_browser(folder: Path) -> AsyncIterator[SavingBrowser]:
    """Run one; everything it writes is below ``folder``."""
    profile, saved = folder / "profile", folder / "saved"
    _configure(profile, saved)
    flags = ["--headless=new", *FLAGS, "--no-first-run", "--remote-debugging-port=0", f"--user-data-dir={profile}"]
    process = await asyncio.create_subprocess_exec(
        CHROMIUM, *flags, "about:blank", stdout=DEVNULL, stderr=DEVNULL, start_new_session=True
    )
    try:
        place = await _until(lambda: asyncio.to_thread(_place, profile / "DevToolsActivePort"))
        async with aiohttp.ClientSession() as session, session.ws_connect(place, max_msg_size=0) as socket:
            yield SavingBrowser(socket, saved)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def _configure(profile: Path, saved: Path) -> None:
    for each in (profile / "Default", saved):
        each.mkdir(parents=True)
    settings = {"download": {"default_directory": str(saved), "prompt_for_download": False}}
    (profile / "Default" / "Preferences").write_text(json.dumps(settings), encoding="utf-8")


def _place(file: Path) -> str:
    """Return the address of the DevTools socket, "" until Chromium has written it: port and path, a line each."""
    port, _, path = file.read_text("ascii").strip().partition("\n") if file.exists() else ("", "", "")
    return f"ws://{LOOPBACK}:{port}{path}" if path else ""


async def _until(true: Callable[[], Awaitable[T]]) -> T:
    """Wait for a result that is true; Chromium tells of none of these by an event."""
    async with asyncio.timeout(PATIENCE):
        while not (found := await true()):  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.1)
    return found
