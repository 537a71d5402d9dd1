"""One ``file.done`` for each version: said after the ledger's commit, and recorded as said.

A crash between saying and recording makes the next start say it again, with ``replayed: true``; so does a log
that was stuck or full.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from presignd.config import WatchConfig
from presignd.ledger import Ledger
from presignd.model import FileVersion
from presignd.runtime.crash_points import passed
from presignd.runtime.heartbeat import alive, resting
from presignd.states import done_status
from presignd.telemetry import metrics
from presignd.telemetry.log import Mark, get_logger, mark

LOG_SECONDS = 1.0
"""How long a log whose reader is stuck is waited for at the start and at the end."""
LOOK_SECONDS = 0.02
REPLAYED_AT_ONCE = 1000


def shown_path(root: bytes, path: bytes) -> str:
    """Return the absolute path of a version as text; bytes that are no UTF-8 stand as backslash escapes."""
    whole = path if path.startswith(b"/") else root.rstrip(b"/") + b"/" + path
    return whole.decode("utf-8", "backslashreplace")


class Announcer:
    """Says how versions end, and what else befalls them, with the fields of the contract."""

    def __init__(
        self,
        ledger: Ledger,
        roots: dict[str, bytes],
        on_end: Callable[[FileVersion], None],
        *,
        is_told: Callable[[FileVersion], bool] = lambda _: True,
    ) -> None:
        self._ledger = ledger
        self._roots = roots
        self._on_end = on_end
        self._is_told = is_told
        self._said: list[str] = []
        self._said_since = mark()
        self._more = asyncio.Event()
        self._log = get_logger()

    def add_watch(self, watch: WatchConfig, root: bytes) -> None:
        """Know a watch's root, for the absolute paths that are shown."""
        self._roots[watch.name] = root

    def path(self, version: FileVersion) -> str:
        """Return the version's absolute path as text."""
        return shown_path(self._roots.get(version.watch, b""), version.path)

    def event(self, name: str, version: FileVersion, *, level: str = "info", **more: Any) -> bool:
        """Log one event about a version; tell whether the log took it."""
        fields: dict[str, Any] = {
            "file_id": version.file_id,
            "watch": version.watch,
            "path": self.path(version),
            "bucket": version.bucket,
            "key": version.key,
            "size": version.size,
            "checksum": version.checksum,
            "etag": version.etag,
        }
        shown = {name: value for name, value in fields.items() if value not in ("", None)}
        return getattr(self._log, level)(name, **shown, **more) is not False

    def done(self, versions: Sequence[FileVersion], *, replayed: bool = False) -> None:
        """Say ``file.done`` for ended versions, whose end is committed."""
        for version in versions:
            more: dict[str, Any] = {"replayed": True} if replayed else {}
            if version.expires_at:
                more["expires_at"] = version.expires_at
            if not replayed and version.done_at:
                took = (version.done_at - version.queued_at).total_seconds()
                more["duration_ms"] = max(0, round(took * 1000))  # the clock may have been set back meanwhile
            said = self.event("file.done", version, attempt=version.attempt, status=done_status(version), **more)
            if not replayed:
                _count(version)
            passed("done.said")
            if said and self._is_told(version):
                self._said.append(version.file_id)
            self._on_end(version)
        self._more.set()

    def quarantined(self, version: FileVersion, *, fix: str, exception: str = "") -> None:
        """Say that a version waits for a person, why, and what to do."""
        more = {"exception": exception} if exception else {}
        self.event(
            "file.quarantined",
            version,
            level="error",
            attempt=version.attempt,
            error_code=version.error_code,
            error=version.error,
            fix=fix,
            **more,
        )
        metrics.UPLOADS.labels(version.watch, "quarantined").inc()
        self._on_end(version)

    async def replay(self) -> None:
        """Say again what an earlier run may not have said, no faster than the log takes it."""
        ended = await self._ledger.unannounced()
        patience = LOG_SECONDS
        for start in range(0, len(ended), REPLAYED_AT_ONCE):
            self.done(ended[start : start + REPLAYED_AT_ONCE], replayed=True)
            if not await self.flush(patience):
                patience = 0.0

    async def run(self) -> None:
        """Record what was said, many at a time."""
        with alive("announcer") as heart:
            while True:
                with heart.resting():
                    await self._more.wait()
                await self.flush()

    async def flush(self, seconds: float = math.inf) -> bool:
        """Record what was said, once the log has it; tell whether it had within ``seconds``.

        What the log didn't take is said again by the next start, and so is all that was said with what a full disk
        refused.
        """
        self._more.clear()
        said, here = len(self._said), mark()
        if not await _has_left(here, seconds):
            return False
        heard, self._said_since = here.is_heard_of(self._said_since), here
        if said and heard:
            await self._ledger.announced(self._said[:said])
        del self._said[:said]
        return True


async def _has_left(said: Mark, seconds: float) -> bool:
    """Wait until a part of the log has left this process; it is the log's reader that may be stuck, not this loop."""
    deadline = time.monotonic() + seconds
    with resting():
        while not said.is_past():
            if time.monotonic() >= deadline:
                return False
            await asyncio.sleep(LOOK_SECONDS)
    return True


def _count(version: FileVersion) -> None:
    """Move the metrics of a version that ended in this run."""
    status = done_status(version)
    metrics.labelled(metrics.UPLOADS, version.watch, status).inc()
    if status == "linked" and version.done_at:
        metrics.labelled(metrics.UPLOAD_BYTES, version.watch).inc(version.size)
        took = (version.done_at - version.queued_at).total_seconds()
        metrics.labelled(metrics.UPLOAD_DURATION, version.watch).observe(took)
        metrics.labelled(metrics.LAST_UPLOAD, version.watch).set(version.done_at.timestamp())
