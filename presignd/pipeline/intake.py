"""Make the version of a complete file: choose its key, content type and priority, or refuse it.

No I/O but the clock.
"""

from __future__ import annotations

import mimetypes
from collections.abc import Sequence

from presignd.config import WatchConfig
from presignd.errors import Fault
from presignd.errors import fault as fault_for
from presignd.model import Fingerprint, NewVersion, Source, State
from presignd.pipeline.key_template import needs_hash, needs_prefix, problem_of, render_for
from presignd.s3.limits import LARGEST_OBJECT
from presignd.system.clock import utcnow
from presignd.system.ids import Ids

UPLOAD_PRIORITIES = {Source.PUT: 0, Source.EVENT: 1, Source.SCAN: 1, Source.BACKLOG: 2}
"""Priorities of uploads by their source: the lower is sent first. The ledger records it."""

LOOK_PRIORITIES = {Source.EVENT: 0, Source.PUT: 0, Source.SCAN: 1, Source.BACKLOG: 2}
"""Priorities of looks while files settle: the lower is looked at first. Here an event goes before a scan."""


class Intake:
    """Makes new versions of each watch's files."""

    def __init__(self, watches: Sequence[WatchConfig], host: str) -> None:
        self._watches = {watch.name: watch for watch in watches}
        self._host = host
        self._ids = Ids()

    def make_version(
        self, watch: str, path: bytes, fingerprint: Fingerprint, source: Source, *, fault: Fault | None = None
    ) -> NewVersion:
        """Return the version of a complete file; one that can't be sent is quarantined from the start.

        ``fault``: the fault of a file that can't be read (``unreadable``).
        """
        watch_config = self._watches[watch]
        version = NewVersion(
            file_id=self._ids.new(),
            watch=watch,
            path=path,
            fingerprint=fingerprint,
            bucket=watch_config.bucket,
            key=None,
            content_type=content_type(watch_config, path),
            priority=UPLOAD_PRIORITIES[source],
            queued_at=utcnow(),
            fresh_key=watch_config.collision == "rename",
            next_key=may_number(watch_config),
        )
        try:
            return version._replace(key=self._checked_key(watch_config, version, fault))
        except Fault as refused:
            return _quarantined(version, refused)

    def with_planned_key(self, version: NewVersion, prefix: str) -> NewVersion:
        """Return a version with the key it would get below the presigner's ``prefix``, to be shown.

        If the key depends on the content, it has none yet.
        """
        watch_config = self._watches[version.watch]
        if version.key or version.state is State.QUARANTINED or needs_hash(watch_config.key):
            return version
        try:
            return version._replace(key=self._rendered(watch_config, version, prefix))
        except Fault as refused:
            return _quarantined(version, refused)

    def with_key(self, version: NewVersion, key: str) -> NewVersion:
        """Return a version with the key that a ``put`` gave; raise ``key_refused``."""
        if why := problem_of(key):
            raise fault_for("key_refused", why)
        return version._replace(key=key, state=State.QUEUED, error_code="", error="")

    def _checked_key(self, watch_config: WatchConfig, version: NewVersion, problem: Fault | None) -> str | None:
        if problem:
            raise problem
        refuse_too_large(watch_config, version.fingerprint.size)
        if needs_hash(watch_config.key) or needs_prefix(watch_config.key):
            return None  # known once it is about to be sent
        return self._rendered(watch_config, version)

    def _rendered(self, watch_config: WatchConfig, version: NewVersion, prefix: str = "") -> str:
        return render_for(
            watch_config,
            version.path,
            version.file_id,
            version.fingerprint,
            version.queued_at,
            host=self._host,
            prefix=prefix,
        )


def _quarantined(version: NewVersion, refused: Fault) -> NewVersion:
    return version._replace(state=State.QUARANTINED, error_code=refused.code, error=refused.message)


def refuse_too_large(watch_config: WatchConfig, size: int) -> None:
    """Raise ``too_large`` for a file of ``size`` bytes that the watch or S3 doesn't accept."""
    largest = min(watch_config.max_size or LARGEST_OBJECT, LARGEST_OBJECT)
    if size > largest:
        raise fault_for("too_large", f"{size} bytes, at most {largest}")


def content_type(watch: WatchConfig, path: bytes) -> str:
    """Return the watch's content type, or guess it from the name (IANA types by suffix)."""
    if watch.content_type != "auto":
        return watch.content_type
    kind, encoding = mimetypes.guess_type(path.decode("utf-8", "replace").rsplit("/", 1)[-1], strict=False)
    packed = {"gzip": "application/gzip", "bzip2": "application/x-bzip2", "xz": "application/x-xz"}
    if encoding:
        return packed.get(encoding, "application/octet-stream")
    return kind or "application/octet-stream"


def may_number(watch: WatchConfig) -> bool:
    """Return whether a file whose key belongs to another path may get the key ``name~2.ext``."""
    return watch.collision in ("update", "rename")
