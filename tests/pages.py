"""The status page over a real ledger and a view that the test sets, and a client without a browser."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp

from presignd.config import Config
from presignd.control.view import FolderView, InFlightView
from presignd.ledger import Ledger, open_ledger
from presignd.links import encode
from presignd.model import FileVersion, Fingerprint, Link, NewVersion, State
from presignd.pages.pace import PACE, Pace
from presignd.pipeline.settle.lane import SettlingPath
from presignd.states import Event
from presignd.system.clock import utcnow
from presignd.web.serving import StatusPage, serving
from presignd.web.snapshots import Snapshots
from tests.served import SECRET, FakeView
from tests.versions import claim

TOKEN = "a-token-of-the-tests"


class Stage(FakeView):
    """A view whose parts the test sets."""

    def __init__(self, config: Config, ledger: Ledger) -> None:
        super().__init__(config, ledger)
        self.uploads: list[InFlightView] = []
        self.unsettled: list[SettlingPath] = []
        self.lost = False

    def folders(self) -> list[FolderView]:
        now = utcnow()
        return [FolderView(w.name, "lease", now + timedelta(seconds=42), lost=self.lost) for w in self.config.watches]

    def settling(self) -> list[SettlingPath]:
        return self.unsettled

    def in_flight(self) -> list[InFlightView]:
        return self.uploads


@dataclass
class Page:
    """A running status page, with an HTTP client."""

    view: Stage
    page: StatusPage
    session: aiohttp.ClientSession

    @property
    def login_url(self) -> str:
        return self.page.login_url()

    @property
    def root(self) -> str:
        return self.login_url.partition("/login")[0]

    @property
    def snapshots(self) -> Snapshots:
        assert self.page._snapshots is not None
        return self.page._snapshots

    async def ask(self, path: str, *, method: str = "GET", **given: Any) -> tuple[int, str, Mapping[str, str]]:
        """Return status, body and headers; redirects are not followed."""
        async with self.session.request(method, self.root + path, allow_redirects=False, **given) as answer:
            return answer.status, await answer.text(), answer.headers

    async def log_in(self) -> dict[str, str]:
        """Return the cookie that a browser gets by the login address."""
        async with self.session.get(self.login_url, allow_redirects=False) as answer:
            assert answer.status == 303
            [(name, morsel)] = answer.cookies.items()
            return {name: morsel.value}

    async def recorded(self, name: str, *events: Event, size: int = 5, age: float = 0, **changes: Any) -> FileVersion:
        """Record a version, queued ``age`` seconds ago, and move it through ``events``."""
        ledger, now = self.view.ledger, utcnow() - timedelta(seconds=age)
        print_ = Fingerprint(abs(hash(name)) % (1 << 40), size, 1, 1)
        path = os.fsencode(name)
        new = NewVersion(f"id-{path.hex()}", "drop", path, print_, "bucket", path.hex(), "", 0, now)
        version = (await ledger.enqueue([new]))[0].version
        for event in events:
            if event is Event.CLAIM:
                version = (await claim(ledger, "drop", 1, now))[0]
            else:
                version = await ledger.apply(version, event, **changes)
        return version

    async def quarantined(self, name: str, code: str = "too_large", error: str = "it is 9 TB") -> FileVersion:
        """Record a quarantined version."""
        version = await self.recorded(name, Event.QUARANTINE, error_code=code, error=error)
        assert version.state is State.QUARANTINED
        return version

    def add_link(self, name: str, *, size: int = 5, age: float = 60, lives: float | None = 840, url: str = "") -> Link:
        """Write one line into links.jsonl: ``age`` seconds old, dead in ``lives`` (None: never)."""
        now = utcnow()
        link = Link(
            now - timedelta(seconds=age),
            f"id-{name}",
            "drop",
            f"/srv/drop/{name}",
            "bucket",
            name,
            size,
            "",
            "",
            "md5:00",
            None if lives is None else now + timedelta(seconds=lives),
            url or f"http://127.0.0.1:1/bucket/{name}?X-Amz-Signature={SECRET}",
        )
        with self.view.config.links.file.open("ab") as file:
            file.write(encode(link))
        return link


@contextlib.asynccontextmanager
async def page_of(config: Config, *, listen: str = "127.0.0.1:0", pace: Pace = PACE, **web: Any) -> AsyncIterator[Page]:
    """Serve the page of ``config`` during the block."""
    named = web.pop("token_file", None) or _token(config.ledger.path.parent)
    changed = config.web.model_copy(update={"listen": listen, "token_file": named, **web})
    config = config.model_copy(update={"web": changed})
    ledger = await open_ledger(config.ledger.path)
    view = Stage(config, ledger)
    try:
        async with (
            serving(view, pace) as page,
            aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session,
        ):
            await until(lambda: is_up(page))
            yield Page(view, page, session)
    finally:
        await ledger.close(clean=True)


def is_up(page: StatusPage) -> bool:
    return bool(page._url) and page._snapshots is not None


async def until(promise: Callable[[], object], seconds: float = 10) -> None:
    """Wait until ``promise()`` holds."""
    async with asyncio.timeout(seconds):
        while not promise():  # noqa: ASYNC110 - any state may be asked for
            await asyncio.sleep(0.01)


def _token(folder: Path) -> Path:
    path = folder / "token"
    path.write_text(TOKEN, "ascii")
    path.chmod(0o600)
    return path


def texts(html: str) -> str:
    """Return the text without markup."""
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())
