"""One ``file.done`` for each version: logged after the ledger's commit, then recorded as announced.

After a crash between the two, the next start logs it again with ``replayed: true``. The same happens when the log was
stuck or its disk full.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from typing import Any, TypeAlias

from presignd.errors import CODES
from presignd.ledger import Enqueued, Ledger
from presignd.model import FileVersion, Link, State
from presignd.runtime.crash_points import passed
from presignd.runtime.heartbeat import alive, resting
from presignd.states import done_status
from presignd.telemetry import metrics
from presignd.telemetry.log import LEFT_OUT, LoggedLink, Mark, get_logger, mark

LOG_SECONDS = 1.0
"""How long the start and the end wait for a log whose reader is stuck."""
LOOK_SECONDS = 0.02
RECORD_SECONDS = 0.05
"""Seconds from one commit of what was announced to the next: no caller waits for it."""
REPLAYED_AT_ONCE = 1000

_Columns: TypeAlias = dict[str, Sequence[Any]]
"""The fields of the lines of a list: for each its value in each line, or ``LEFT_OUT``."""


@lru_cache(maxsize=1024)  # three lines of a file show it
def shown_path(root: bytes, path: bytes) -> str:
    """Return the absolute path of a version as text; bytes that are not UTF-8 become backslash escapes."""
    whole = path if path.startswith(b"/") else root.rstrip(b"/") + b"/" + path
    return whole.decode("utf-8", "backslashreplace")


class Announcer:
    """Logs what happens to versions, with the same fields each time, and records each ``file.done`` as announced.

    ``roots`` are the watches' folders, for absolute paths. ``on_end`` takes the versions that ended or were
    quarantined. With ``priority``, a ``file.done`` is recorded only for versions of that priority: those that a command
    put itself, as its log has no other reader.
    """

    def __init__(
        self,
        ledger: Ledger,
        roots: Mapping[str, bytes],
        on_end: Callable[[Sequence[FileVersion]], None],
        priority: int | None = None,
    ) -> None:
        self._ledger, self._roots, self._on_end, self._priority = ledger, roots, on_end, priority
        self._logged: dict[str, None] = {}
        self._flushed = mark()
        self._more = asyncio.Event()
        self._log = get_logger()

    def path(self, version: FileVersion) -> str:
        """Return the version's absolute path as text."""
        return self.paths([version])[0]

    def paths(self, versions: Sequence[FileVersion]) -> list[str]:
        """Return the absolute path of each version as text."""
        return [shown_path(self._roots.get(version.watch, b""), version.path) for version in versions]

    def event(self, name: str, version: FileVersion, *, level: str = "info", **more: Any) -> None:
        """Log one event about a version."""
        fields = {name: value for name, (value,) in self._fields([version]).items() if value is not LEFT_OUT}
        getattr(self._log, level)(name, **fields, **more)

    def _fields(self, versions: Sequence[FileVersion]) -> _Columns:
        """Return the fields that each event about a version has, in a line's order; those not known yet are left out.

        Whole columns at once: a call for each file took twice as long.
        """
        return {
            "file_id": [version.file_id for version in versions],
            "watch": [version.watch for version in versions],
            "path": self.paths(versions),
            "bucket": [version.bucket for version in versions],
            "key": [version.key or LEFT_OUT for version in versions],
            "size": [version.fingerprint.size for version in versions],
            "checksum": [version.checksum or LEFT_OUT for version in versions],
            # Until it is verified, a checksum may be in its place.
            "etag": [v.etag if v.etag and (v.checksum or ":" not in v.etag) else LEFT_OUT for v in versions],
        }

    def enqueued(self, done: Sequence[Enqueued]) -> None:
        """Log what was queued, superseded, or quarantined from the start."""
        if superseded := [entry.superseded for entry in done if entry.superseded]:
            self.done(superseded)
        versions = [entry.version for entry in done]
        for version in versions:
            if version.state is State.QUARANTINED:
                self.quarantined(version)
        if queued := [version for version in versions if version.state is not State.QUARANTINED]:
            self._log.info("file.queued", each=self._fields(queued))

    def linked(self, links: Sequence[Link], *, disclose: bool, by_uid: int | None = None) -> None:
        """Log ``link.created`` for each, with the link itself only where it may be disclosed."""
        of = dict(zip(Link._fields, zip(*links, strict=True), strict=True))
        each: _Columns = {name: of[name] for name in ("file_id", "watch", "path", "bucket", "key", "expires_at")}
        if by_uid is not None:
            each["by_uid"] = [by_uid] * len(links)
        if disclose:
            each["url"] = [*map(LoggedLink, of["url"])]
        self._log.info("link.created", each=each)

    def done(self, versions: Sequence[FileVersion], *, replayed: bool = False) -> None:
        """Log ``file.done`` for versions whose end is committed."""
        if not versions:
            return
        ends = self._ends(versions, replayed=replayed)
        taken = self._log.info("file.done", each=ends)
        passed("done.said")
        self._logged |= dict.fromkeys(
            [version.file_id for version in versions[:taken] if self._priority in (None, version.priority)]
        )
        if not replayed:
            _count(versions, ends)
        self._on_end(versions)
        self._more.set()

    def _ends(self, versions: Sequence[FileVersion], *, replayed: bool) -> _Columns:
        """Return the fields of ``file.done`` of each."""
        fields = self._fields(versions)
        fields["attempt"] = [version.attempt for version in versions]
        if not replayed:
            took = [(v.done_at - v.queued_at).total_seconds() if v.done_at else None for v in versions]
            # The clock may have been set back since.
            fields["duration_ms"] = [LEFT_OUT if each is None else max(0, round(each * 1000)) for each in took]
        fields["status"] = [*map(done_status, versions)]
        fields["expires_at"] = [version.expires_at or LEFT_OUT for version in versions]
        if replayed:
            fields["replayed"] = [True] * len(versions)
        return fields

    def quarantined(self, version: FileVersion, exception: str = "") -> None:
        """Log that a version is quarantined, with the cause and the fix."""
        more = {"exception": exception} if exception else {}
        self.event(
            "file.quarantined",
            version,
            level="error",
            attempt=version.attempt,
            error_code=version.error_code,
            error=version.error,
            fix=CODES[version.error_code].fix,
            **more,
        )
        metrics.UPLOADS.labels(version.watch, "quarantined").inc()
        self._on_end([version])

    async def replay(self) -> None:
        """Log each ``file.done`` again that an earlier run may not have logged, no faster than the log's reader."""
        logged = {*self._logged}
        unannounced = await self._ledger.unannounced()
        logged.update(self._logged)  # a command's file may have ended since the start: it is recorded soon
        ended = [version for version in unannounced if version.file_id not in logged]
        patience = LOG_SECONDS
        for start in range(0, len(ended), REPLAYED_AT_ONCE):
            self.done(ended[start : start + REPLAYED_AT_ONCE], replayed=True)
            if not await self.flush(patience):
                patience = 0.0

    async def run(self) -> None:
        """Record what was logged, many versions in one commit."""
        with alive("announcer") as heart:
            while True:
                with heart.resting():
                    await self._more.wait()
                    await asyncio.sleep(RECORD_SECONDS)
                await self.flush()

    async def flush(self, seconds: float = math.inf) -> bool:
        """Record what was logged, once it has left this process; return whether it did within ``seconds``.

        The next start logs the rest again, and everything since the last flush if a full disk refused a line of it.
        """
        self._more.clear()
        logged, here = [*self._logged], mark()
        if not await _has_left(here, seconds):
            return False
        none_refused, self._flushed = here.none_refused_since(self._flushed), here
        if logged and none_refused:
            await self._ledger.record_announced(logged)
        for file_id in logged:
            self._logged.pop(file_id, None)
        return True


async def _has_left(logged: Mark, seconds: float) -> bool:
    """Return whether a part of the log left this process within ``seconds``. Only the log's reader can be stuck."""
    deadline = time.monotonic() + seconds
    with resting():
        while not logged.is_past():
            if time.monotonic() >= deadline:
                return False
            await asyncio.sleep(LOOK_SECONDS)
    return True


def _count(versions: Sequence[FileVersion], ends: _Columns) -> None:
    """Update the metrics for versions that ended in this run; ``ends`` are the fields of their ``file.done``."""
    each = zip(ends["watch"], ends["status"], ends["size"], ends["duration_ms"], versions, strict=True)
    for (watch, status), group in groupby(each, itemgetter(0, 1)):
        _, _, sizes, durations, ended = zip(*group, strict=True)
        metrics.labelled(metrics.UPLOADS, watch, status).inc(len(ended))
        if status == "linked":
            metrics.labelled(metrics.UPLOAD_BYTES, watch).inc(sum(sizes))
            duration = metrics.labelled(metrics.UPLOAD_DURATION, watch)
            for took in durations:
                if took is not LEFT_OUT:
                    duration.observe(took / 1000)
            if done_at := ended[-1].done_at:
                metrics.labelled(metrics.LAST_UPLOAD, watch).set(done_at.timestamp())
