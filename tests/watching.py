"""A watched folder with a real ledger and no store: what settles is recorded, and stays queued."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import structlog
from structlog.testing import LogCapture

from presignd.config import WatchConfig
from presignd.ledger import Ledger, open_ledger
from presignd.model import FileVersion, NewVersion
from presignd.pipeline.files.folder import Folder
from presignd.pipeline.files.hash import Prepared
from presignd.pipeline.files.lease import ignore_sigio
from presignd.pipeline.settle.lane import Lane
from presignd.pipeline.unit.folders import WatchMarkers
from presignd.pipeline.watch.watcher import PAUSES, Pauses, Watcher

PATIENCE = 60.0
"""Seconds after which a promise counts as broken: far more than any of them takes."""

EVENTS: ContextVar[Literal["auto", "inotify", "watchfiles"]] = ContextVar("EVENTS", default="auto")
"""Where hints come from, unless a test says."""


@dataclass
class Drop:
    """The running stages, for a test."""

    root: Path
    ledger: Ledger
    folder: Folder
    watcher: Watcher
    versions: list[FileVersion] = field(default_factory=list)
    vanished: list[FileVersion] = field(default_factory=list)
    log: list[Any] = field(default_factory=list)

    def paths(self) -> list[bytes]:
        return [version.path for version in self.versions]

    def events(self, name: str) -> list[Any]:
        return [entry for entry in self.log if entry["event"] == name]

    async def until(self, promise: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not promise():  # noqa: ASYNC110 - any state of the stages may be asked for
                await asyncio.sleep(0.01)

    async def has(self, *names: str | bytes) -> None:
        wanted = {os.fsencode(name) for name in names}
        await self.until(lambda: wanted <= set(self.paths()))

    async def recorded(self, path: bytes, promise: Callable[[FileVersion], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while (version := await self.ledger.by_path("drop", path)) is None or not promise(version):  # noqa: ASYNC110 - the same
                await asyncio.sleep(0.01)

    async def scanned(self, times: int = 1) -> None:
        await self.until(lambda: len(self.events("scan.finished")) >= times)

    async def rescan(self) -> None:
        """Wait for a complete scan that began after this call."""
        before = len(self.events("scan.finished"))
        self.watcher.scanner.request("test")
        await self.scanned(before + 1)

    async def through(self) -> None:
        """Wait until nothing is settling."""
        await self.until(lambda: not self.watcher.lane.snapshot())


@asynccontextmanager
async def watching(tmp_path: Path, *, pauses: Pauses = PAUSES, **options: Any) -> AsyncIterator[Drop]:
    """Watch ``tmp_path/drop`` (made where missing) with a quiet time of 50 ms unless told otherwise."""
    ignore_sigio()
    root = tmp_path / "drop"
    root.mkdir(exist_ok=True)
    config = WatchConfig(
        **{"name": "drop", "path": root, "bucket": "test-bucket", "settle": 0.05, "events": EVENTS.get()} | options
    )
    ledger, folder, capture = await open_ledger(tmp_path / "ledger"), Folder(config), LogCapture()
    log = structlog.wrap_logger(None, processors=[capture], wrapper_class=structlog.make_filtering_bound_logger(0))
    versions: list[FileVersion] = []
    vanished: list[FileVersion] = []

    async def record(new: Sequence[NewVersion], _: Mapping[str, Prepared]) -> None:
        versions.extend([one.version for one in await ledger.enqueue(new)])

    async def is_there(_: FileVersion) -> bool:
        return True

    watcher = Watcher(
        config,
        folder,
        Lane(config, ledger, record=record, on_return=is_there),
        ledger,
        log,
        ahead=lambda _: None,
        markers=WatchMarkers(),
        on_vanished=vanished.extend,
        pauses=pauses,
    )
    drop = Drop(root, ledger, folder, watcher, versions, vanished, capture.entries)
    try:
        async with _running(watcher.run()):
            yield drop
    finally:
        folder.close()
        await ledger.close(clean=True)


@asynccontextmanager
async def _running(*loops: Any) -> AsyncIterator[None]:
    tasks = [asyncio.ensure_future(loop) for loop in loops]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome
