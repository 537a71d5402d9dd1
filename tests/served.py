"""A control socket that answers over a real ledger, without a pipeline behind it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio

from presignd.config import (
    Config,
    ControlConfig,
    LedgerConfig,
    LinksConfig,
    LogConfig,
    PresignConfig,
    UploadConfig,
    WatchConfig,
    WebConfig,
)
from presignd.control import server as control
from presignd.control.links import LinkRequests, Revocations, Terms
from presignd.control.requests import PATIENCE, Responder
from presignd.control.server import Answered
from presignd.control.view import BlockedView, FolderView, InFlightView, Phase, View
from presignd.errors import Fault
from presignd.ledger import Ledger, Selection, open_ledger
from presignd.model import FileVersion, Fingerprint, Link, LinksMark, NewVersion, State
from presignd.pipeline.files.folder import Folder
from presignd.pipeline.settle.lane import SettlingPath
from presignd.pipeline.upload.bucket import StoredObject
from presignd.presign.broker_links import IssuedLink
from presignd.runtime import unix_socket
from presignd.states import Event
from presignd.verify.verifier import Verifier
from presignd.webhooks.webhooks import Webhooks, WebhookView
from tests.versions import claim, linking

NOW = datetime(2026, 1, 2, tzinfo=UTC)
SECRET = "c0ffee00" * 8


class Replaced:
    """A bucket where every object was replaced by one of 9 bytes."""

    def __init__(self, watch: WatchConfig) -> None:
        self.watch = watch

    def for_bucket(self, _name: str) -> Replaced:
        return self

    async def find(self, _key: str, *, denied_is_absent: bool, with_checksums: bool) -> StoredObject:
        assert not denied_is_absent
        assert not with_checksums
        return StoredObject(9, "of another object")


class FakeLinks(LinkRequests):
    """Links without a presigner; ``asked`` is what was asked of a broker."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.asked: list[Any] = []
        self.listed: list[IssuedLink] = []
        self.away: Fault | None = None
        self.revocations = Revocations()
        self.elsewhere: set[str] = set()
        """Refs of links that were revoked elsewhere."""

    async def fresh(self, version: FileVersion, expires: int | None, *, by_uid: int) -> Link:
        assert by_uid >= 0
        return link_for(version.key or "", expires or 900)

    async def on_terms(self, version: FileVersion, terms: Terms, *, by_uid: int) -> Link:
        assert by_uid >= 0
        self.asked.append(terms)
        return link_for(version.key or "", 900)

    async def revoke(self, named: Mapping[str, str], *, by_uid: int | None = None) -> None:
        assert by_uid is None or by_uid >= 0
        if self.away:
            raise self.away
        self.asked.append(named)
        await self.revocations.note(named, self._file)

    async def _revoked(self, refs: Collection[str]) -> Collection[str]:
        if self.away:
            raise self.away
        return self.elsewhere & {*refs}

    async def issued(self) -> AsyncGenerator[list[IssuedLink], None]:
        yield self.listed


class FakeWebhooks(Webhooks):
    """Webhooks that send nothing; ``shown`` is how they do."""

    def __init__(self) -> None:
        self.shown: list[WebhookView] = []

    async def overview(self) -> list[WebhookView]:
        return self.shown


class FakeView(View):
    """A daemon without a pipeline, over a real ledger; ``on_put`` is what each test needs."""

    def __init__(self, config: Config, ledger: Ledger) -> None:
        no_units = SimpleNamespace(waiting=list, look_at=lambda *_: None)
        self._in_effect: Any = SimpleNamespace(config=config, work=SimpleNamespace(units=no_units))
        self._phase = Phase(NOW, "ready")
        self.links: FakeLinks = FakeLinks(config.links.file)
        self.ledger = ledger
        self.hints: list[tuple[str, bytes]] = []
        self.held_up: list[BlockedView] = []
        self.moving: list[InFlightView] = []
        self.on_put: Callable[[int, Callable[[int], None]], Any] | None = None
        self.puts: list[tuple[bytes, str, str | None, int]] = []
        self.bucket = Replaced(config.watches[0])
        self.webhooks = FakeWebhooks()

    def folders(self) -> Sequence[FolderView]:
        return [FolderView("drop", "lease", NOW)]

    def settling(self) -> Sequence[SettlingPath]:
        return [SettlingPath("drop", b"new", NOW, "open for writing")]

    def settling_at(self, watch: str, path: bytes) -> SettlingPath | None:
        return next((one for one in self.settling() if (one.watch, one.path) == (watch, path)), None)

    def in_flight(self) -> Sequence[InFlightView]:
        return self.moving

    def blocked(self) -> Sequence[BlockedView]:
        return self.held_up

    def login_url(self) -> str:
        return f"http://127.0.0.1:8321/login?code={SECRET}"

    def hint(self, watch: str, path: bytes) -> None:
        self.hints.append((watch, path))

    def ignored(self, watch: str, path: bytes) -> str:  # noqa: ARG002 - the view's
        return "the rule *.part of ignore_defaults" if path.endswith(b".part") else ""

    async def put(
        self,
        fd: int,
        path: bytes,
        watch: str,
        *,
        key: str | None,
        expires: int | None,  # noqa: ARG002 - the view's
        by_uid: int,
        progress: Callable[[int], None],
    ) -> Link:
        self.puts.append((path, watch, key, by_uid))
        if self.on_put:
            await self.on_put(fd, progress)
        return link_for(key or os.fsdecode(path).rpartition("/")[2], len(os.pread(fd, 1 << 20, 0)))

    @contextlib.asynccontextmanager
    async def verifying(self, *, download: bool) -> AsyncIterator[Verifier]:
        watch = self.config.watches[0]
        folder = Folder(watch)
        try:
            yield Verifier({"drop": self.bucket}, {"drop": folder}, download=download)  # type: ignore[dict-item] # in place of a Bucket
        finally:
            folder.close()

    async def requeue(self, selection: Selection) -> list[FileVersion]:
        return await self.ledger.requeue(selection, NOW)


def link_for(key: str, size: int) -> Link:
    url = f"http://127.0.0.1/bucket/{key}?X-Amz-Signature={SECRET}"
    return Link(NOW, "id", "drop", key, "bucket", key, size, "text/plain", "", "md5:00", NOW, url)


def configuration(folder: Path, **watch: Any) -> Config:
    (folder / "drop").mkdir()
    return Config(
        presign=PresignConfig(),
        watches=(WatchConfig(name="drop", path=folder / "drop", bucket="bucket", **watch),),
        upload=UploadConfig(),
        ledger=LedgerConfig(path=folder / "ledger"),
        links=LinksConfig(file=folder / "links.jsonl"),
        control=ControlConfig(),
        log=LogConfig(),
        web=WebConfig(),
    )


@dataclass
class Served:
    """A control socket that answers, and how to ask it."""

    path: Path
    view: FakeView

    async def ask(self, request: Mapping[str, Any], fds: Sequence[int] = ()) -> list[dict[str, Any]]:
        return [answer async for answer in control.exchange(unix_socket.connect(self.path), request, fds)]

    async def refusal(self, request: Mapping[str, Any], fds: Sequence[int] = ()) -> Answered:
        with pytest.raises(Answered) as refused:
            await self.ask(request, fds)
        return refused.value

    async def raw(self, *pieces: bytes) -> list[dict[str, Any]]:
        """Send bytes as they are and read to the end."""
        reader, writer = await asyncio.open_unix_connection(str(self.path), limit=1 << 24)
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
        data = b""
        with contextlib.suppress(ConnectionError):
            while more := await reader.read(1 << 16):
                data += more
        writer.close()
        return [json.loads(line) for line in data.splitlines()]


@contextlib.asynccontextmanager
async def serving(
    config: Config, path: Path | None = None, *, patience: float = PATIENCE, **timeouts: float
) -> AsyncIterator[Served]:
    ledger = await open_ledger(config.ledger.path)
    view = FakeView(config, ledger)
    path = path or config.ledger.path / "control.sock"
    try:
        responder = Responder(view, view.login_url, patience=patience)
        async with control.serve(path, config.control.group, responder.answer, **timeouts):
            yield Served(path, view)
    finally:
        await ledger.close(clean=True)


async def recorded(
    served: Served, name: str, *events: Event, state: State = State.QUEUED, **changes: Any
) -> FileVersion:
    """Drop a file and move its version through ``events``."""
    file = served.view.config.watches[0].path / name
    file.write_bytes(b"hello")
    ledger = served.view.ledger
    new = NewVersion(
        f"id-{name}", "drop", os.fsencode(name), Fingerprint.of(file.stat()), "bucket", name, "text/plain", 0, NOW,
        state=state,
    )  # fmt: skip
    version = (await ledger.enqueue([new]))[0].version
    for event in events:
        match event:
            case Event.CLAIM:
                version = (await claim(ledger, "drop", 1, NOW))[0]
            case Event.LINK:
                version = (await ledger.record_linked([linking(version)], LinksMark(1, 1)))[0]
            case _:
                version = await ledger.apply(version, event, **changes)
    return version


UPLOADED = (Event.CLAIM, Event.VERIFY)
DONE = (*UPLOADED, Event.LINK)


@pytest_asyncio.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(configuration(tmp_path)) as found:
        yield found
