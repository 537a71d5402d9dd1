"""A whole daemon in the test's own event loop, on FaultyS3: as quick to start as its parts are to build."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest

from presignd.app.assembly import Pipeline, open_pipeline
from presignd.app.daemon import Daemon
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
    WebhookConfig,
)
from presignd.control.view import View
from presignd.ledger import Ledger
from presignd.ledger.lock import DaemonLock
from presignd.pipeline.in_effect import PAUSES, Pauses, Work
from presignd.presign import local
from presignd.s3.sigv4 import presign
from presignd.telemetry import log
from presignd.webhooks.schedule import Schedule
from tests.canary import assert_no_secrets, assert_no_signatures
from tests.faulty_s3 import FaultyS3
from tests.links import whole_lines
from tests.stores import Store

Event = dict[str, Any]
QUICK = 0.02
"""Seconds in place of each pause between probes and between retries."""


class Said(io.StringIO):
    """The log as it is written, one or more whole lines at a time, by any thread."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.lines: list[str] = []

    def write(self, lines: str) -> int:
        self.lines.append(lines)
        self.events += [json.loads(line) for line in lines.splitlines()]
        return len(lines)

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.lines)


@dataclass
class Running:
    """A daemon that runs, and all it has said."""

    folder: Path
    pipeline: Pipeline = field(repr=False)
    said: Said = field(repr=False)
    stop: Callable[[], None] = field(repr=False)
    reload: asyncio.Event = field(default_factory=asyncio.Event, repr=False)

    @property
    def view(self) -> View:
        """What the control socket and the status page are answered from."""
        return self.pipeline.view

    @property
    def ledger(self) -> Ledger:
        """The open ledger."""
        return self.pipeline.ledger

    @property
    def work(self) -> Work:
        """The work of the configuration in effect."""
        return self.pipeline.in_effect.work

    def events(self, *names: str) -> list[Event]:
        """Return what was logged so far, of these names (all of them without any)."""
        return [event for event in self.said.events if not names or event["event"] in names]

    def codes(self, *names: str) -> list[str]:
        """Return the error codes of these events, in order."""
        return [event["error_code"] for event in self.events(*names)]

    def drop(self, name: str, content: bytes = b"content", *, watch: str = "drop") -> Path:
        """Write a file into a watched folder."""
        path = self.folder / watch / name
        path.write_bytes(content)
        return path

    async def until(self, true: Callable[[], object], what: str, seconds: float = 20) -> None:
        """Wait until ``true()``, or fail with the end of the log."""
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline, f"no {what} in {seconds} s; log:\n{self.said.text[-4000:]}"
            await asyncio.sleep(0.01)

    async def done(self, count: int = 1) -> list[Event]:
        """Wait for so many linked versions."""

        def there() -> list[Event]:
            return [event for event in self.events("file.done") if event["status"] in ("linked", "adopted")]

        await self.until(lambda: len(there()) >= count, f"{count} linked")
        return there()

    async def said_by_now(self, name: str, count: int = 1) -> list[Event]:
        """Wait for so many events of a name."""
        await self.until(lambda: len(self.events(name)) >= count, f"{count} of {name}")
        return self.events(name)

    async def rescan(self) -> None:
        """Return after a whole scan that began later than this call, of each watch."""
        watchers = list(self.pipeline.watchers)
        await asyncio.gather(*(watcher.watching.wait() for watcher in watchers))
        before = len(self.events("scan.finished"))
        for watcher in watchers:
            watcher.scanner.request("test")
        await self.said_by_now("scan.finished", before + len(watchers))

    def links(self) -> list[str]:
        """Return the keys in links.jsonl."""
        file = self.folder / "links.jsonl"
        return [json.loads(line)["key"] for line in whole_lines(file)]


def watch(folder: Path, name: str = "drop", **more: Any) -> WatchConfig:
    """Configure a watch on ``folder/name``, made here."""
    (folder / name).mkdir(exist_ok=True)
    return WatchConfig(**{"name": name, "path": folder / name, "bucket": FaultyS3.bucket, "settle": 0.0, **more})


def config(
    folder: Path,
    store: FaultyS3 | Store,
    *watches: WatchConfig,
    upload: dict[str, Any] | None = None,
    webhooks: Sequence[WebhookConfig] = (),
    **presign: Any,
) -> Config:
    """Configure a daemon on ``store``, with one watch named drop unless others are given."""
    keys = {"endpoint": store.endpoint, "access_key": store.access_key, "secret_key": store.secret_key}
    return Config(
        presign=PresignConfig(**{**keys, "region": "us-east-1", **presign}),
        watches=watches or (watch(folder),),
        webhooks=tuple(webhooks),
        upload=UploadConfig(**{"drain_timeout": 0.0, **(upload or {})}),
        ledger=LedgerConfig(path=folder / "state"),
        links=LinksConfig(file=folder / "links.jsonl"),
        control=ControlConfig(),
        log=LogConfig(level="debug", format="json"),
        web=WebConfig(),
    )


def quickly(*_: Any, **__: Any) -> float:
    """Stand in for ``backoff``: every pause between probes and between retries is a short one."""
    return QUICK


QUICKLY = Pauses(backoff=quickly, writer=timedelta(seconds=QUICK), finish=QUICK)
"""Every pause is a short one."""


@contextmanager
def signatures() -> Iterator[set[str]]:
    """Record every signature that is made during the block."""
    made: set[str] = set()

    def signing(*args: Any, **more: Any) -> str:
        url = presign(*args, **more)
        made.add(url.rpartition("X-Amz-Signature=")[2])
        return url

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(local, "presign", signing)
        yield made


@asynccontextmanager
async def running(
    configured: Config,
    *,
    quick: bool = True,
    debug: bool = False,
    load: Callable[[], Config] | None = None,
    schedule: Schedule | None = None,
) -> AsyncIterator[Running]:
    """Run a daemon until the block is left; at the end, search all it said, and its metrics, for anything secret.

    ``debug`` has asyncio log all it does, too; recording where each future was made takes twice as long as all else.
    ``load`` gives what it reads when it is to ``reload``; ``schedule`` says when webhooks are tried again.
    """
    said = Said()
    log.setup(configured.log, stream=said)
    asyncio.get_running_loop().set_debug(debug)
    with signatures() as made, DaemonLock(configured.ledger.path):
        async with open_pipeline(configured, pauses=QUICKLY if quick else PAUSES, schedule=schedule) as pipeline:
            daemon = Daemon(pipeline, load=load)
            serving = asyncio.create_task(daemon.serve())
            try:
                folders = [*(each.path for each in configured.watches), *(each.path for each in configured.inboxes)]
                yield Running(folders[0].parent, pipeline, said, daemon.service.stop, daemon.service.reload)
            finally:
                daemon.service.stop()
                await serving
    secret = configured.presign.secret_key
    hooks = [each.get_secret_value() for hook in configured.webhooks for each in (hook.secret, hook.url)]
    for text in (said.text, generate_latest()):
        assert_no_secrets(text, *hooks, *([secret.get_secret_value()] if secret else []))
        assert_no_signatures(text, made)


running_in_debug = partial(running, debug=True)
"""For the fault matrix: what asyncio logs of a fault holds no secret either."""
