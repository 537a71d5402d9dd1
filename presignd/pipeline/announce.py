"""One ``file.done`` for each version: said after the ledger's commit, and recorded as said.

A crash between saying and recording makes the next start say it again, with ``replayed: true``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from presignd import metrics
from presignd.config import WatchConfig
from presignd.crash_points import passed
from presignd.heartbeat import alive
from presignd.ledger import Ledger
from presignd.log import get_logger
from presignd.model import FileVersion
from presignd.states import done_status


def shown_path(root: bytes, path: bytes) -> str:
    """Return the absolute path of a version as text; bytes that are no UTF-8 stand as backslash escapes."""
    whole = path if path.startswith(b"/") else root.rstrip(b"/") + b"/" + path
    return whole.decode("utf-8", "backslashreplace")


class Announcer:
    """Says how versions end, and what else befalls them, with the fields of the contract."""

    def __init__(self, ledger: Ledger, roots: dict[str, bytes], on_end: Callable[[FileVersion], None]) -> None:
        self._ledger = ledger
        self._roots = roots
        self._on_end = on_end
        self._said: list[str] = []
        self._more = asyncio.Event()
        self._log = get_logger()

    def add_watch(self, watch: WatchConfig, root: bytes) -> None:
        """Know a watch's root, for the absolute paths that are shown."""
        self._roots[watch.name] = root

    def path(self, version: FileVersion) -> str:
        """Return the version's absolute path as text."""
        return shown_path(self._roots.get(version.watch, b""), version.path)

    def event(self, name: str, version: FileVersion, *, level: str = "info", **more: Any) -> None:
        """Log one event about a version."""
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
        getattr(self._log, level)(name, **{k: v for k, v in fields.items() if v not in ("", None)}, **more)

    def done(self, versions: Sequence[FileVersion], *, replayed: bool = False) -> None:
        """Say ``file.done`` for ended versions, whose end is committed."""
        for version in versions:
            more: dict[str, Any] = {"replayed": True} if replayed else {}
            if version.expires_at:
                more["expires_at"] = version.expires_at
            if not replayed and version.done_at:
                took = (version.done_at - version.queued_at).total_seconds()
                more["duration_ms"] = max(0, round(took * 1000))  # the clock may have been set back meanwhile
            self.event("file.done", version, attempt=version.attempt, status=done_status(version), **more)
            if not replayed:
                _count(version)
            passed("done.said")
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
        """Say again what an earlier run may not have said."""
        self.done(await self._ledger.unannounced(), replayed=True)

    async def run(self) -> None:
        """Record what was said, many at a time."""
        with alive("announcer") as heart:
            while True:
                with heart.resting():
                    await self._more.wait()
                await self.flush()

    async def flush(self) -> None:
        """Record now what was said."""
        self._more.clear()
        said, self._said = self._said, []
        if said:
            await self._ledger.announced(said)


def _count(version: FileVersion) -> None:
    """Move the metrics of a version that ended in this run."""
    status = done_status(version)
    metrics.labelled(metrics.UPLOADS, version.watch, status).inc()
    if status == "linked" and version.done_at:
        metrics.labelled(metrics.UPLOAD_BYTES, version.watch).inc(version.size)
        took = (version.done_at - version.queued_at).total_seconds()
        metrics.labelled(metrics.UPLOAD_DURATION, version.watch).observe(took)
        metrics.labelled(metrics.LAST_UPLOAD, version.watch).set(version.done_at.timestamp())


def utcnow() -> datetime:
    """Return the time in UTC."""
    return datetime.now(UTC)
