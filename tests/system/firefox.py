"""Debian's Firefox by WebDriver BiDi (W3C): one process, one socket, as many commands as the guests' tests need."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import tempfile
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp

from tests.needs import FIREFOX

LISTENING = re.compile(rb"WebDriver BiDi listening on (ws://\S+)")
ENDS_WITHIN = 30.0
PREFERENCES: dict[str, str | int | bool] = {
    # It asks nobody but loopback: what it would ask by itself goes to a proxy that is not there.
    "network.proxy.type": 1,
    "network.proxy.http": "127.0.0.1",
    "network.proxy.http_port": 9,
    "network.proxy.ssl": "127.0.0.1",
    "network.proxy.ssl_port": 9,
    "network.proxy.no_proxies_on": "localhost, 127.0.0.1",
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "browser.safebrowsing.malware.enabled": False,
    "browser.safebrowsing.phishing.enabled": False,
    "browser.shell.checkDefaultBrowser": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "services.settings.server": "data:,#",
    "toolkit.telemetry.enabled": False,
    "app.update.enabled": False,
    "extensions.update.enabled": False,
    "intl.accept_languages": "en-GB",
}


class Session:
    """A BiDi session. Answers come in any order; ``requests`` has method and URL of what the pages sent."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._ids = socket, count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self.requests: list[tuple[str, str]] = []

    async def call(self, method: str, **params: Any) -> Any:
        """Send one command and return its result; an error answer is a ``RuntimeError``."""
        number = next(self._ids)
        self._waiting[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": params})
        return await self._waiting[number]

    async def read(self) -> None:
        """Read answers and events until the browser ends."""
        async for message in self._socket:
            document = json.loads(message.data)
            if document.get("method") == "network.beforeRequestSent":
                request = document["params"]["request"]
                self.requests.append((request["method"], request["url"]))
            waiting = self._waiting.pop(document.get("id"), None)
            if waiting is None or waiting.done():
                continue
            if document["type"] == "error":
                waiting.set_exception(RuntimeError(f"{document['error']}: {document['message']}"))
            else:
                waiting.set_result(document["result"])
        for waiting in self._waiting.values():
            waiting.cancel()


@contextlib.asynccontextmanager
async def firefox() -> AsyncIterator[Session]:
    """Run Firefox, headless, with a new profile."""
    with tempfile.TemporaryDirectory(prefix="ff", ignore_cleanup_errors=True) as profile:
        lines = [f"user_pref({json.dumps(name)}, {json.dumps(value)});" for name, value in PREFERENCES.items()]
        (Path(profile) / "user.js").write_text("\n".join(lines), encoding="utf-8")
        flags = ("--headless", "--no-remote", "--remote-debugging-port", "0", "--profile", profile)
        process = await asyncio.create_subprocess_exec(
            FIREFOX,
            *flags,
            env={**os.environ, "HOME": profile},
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            url = await _listening(process)
            draining = asyncio.create_task(_drain(process))
            async with aiohttp.ClientSession() as http, http.ws_connect(f"{url}/session", max_msg_size=0) as socket:
                session = Session(socket)
                reading = asyncio.create_task(session.read())
                prompts = {"default": "accept", "beforeUnload": "accept"}
                await session.call("session.new", capabilities={"alwaysMatch": {"unhandledPromptBehavior": prompts}})
                yield session
                await session.call("browser.close")
                await reading
            await asyncio.wait_for(process.wait(), ENDS_WITHIN)
            await draining
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def _listening(process: asyncio.subprocess.Process) -> str:
    assert process.stderr is not None
    told = b""
    async for line in process.stderr:
        if found := LISTENING.search(line):
            return found[1].decode()
        told += line
    raise RuntimeError(f"Firefox did not start: {told.decode(errors='replace')}")


async def _drain(process: asyncio.subprocess.Process) -> None:
    """Read what it says until it ends: a full pipe would stop it."""
    assert process.stderr is not None
    while await process.stderr.read(1 << 16):
        pass
