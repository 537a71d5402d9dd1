"""Make the version of a settled file: its key, its content type, and whether it is refused. No I/O but the clock."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace

from presignd.config import WatchConfig
from presignd.errors import Fault
from presignd.errors import fault as fault_for
from presignd.model import Fingerprint, NewVersion, Source, State
from presignd.pipeline.key_template import content_type, may_number, needs_hash, needs_prefix, render_for
from presignd.s3.limits import LARGEST_OBJECT, key_problem
from presignd.system.clock import utcnow

PRIORITIES = {Source.PUT: 0, Source.EVENT: 1, Source.SCAN: 1, Source.BACKLOG: 2}


class Intake:
    """Makes new versions of each watch's files."""

    def __init__(self, watches: Sequence[WatchConfig], host: str) -> None:
        self._watches = {watch.name: watch for watch in watches}
        self._host = host

    def make_version(
        self, watch: str, path: bytes, fingerprint: Fingerprint, source: Source, *, fault: Fault | None = None
    ) -> NewVersion:
        """Make the version of a settled file; one that can't go through is quarantined from the start.

        ``fault`` is one met while it settled (``unreadable``).
        """
        rules = self._watches[watch]
        version = NewVersion(
            file_id=str(uuid.uuid4()),
            watch=watch,
            path=path,
            fingerprint=fingerprint,
            bucket=rules.bucket,
            key=None,
            content_type=content_type(rules, path),
            priority=PRIORITIES[source],
            queued_at=utcnow(),
            fresh_key=rules.collision == "rename",
            next_key=may_number(rules),
        )
        try:
            return replace(version, key=self._checked_key(rules, version, fault))
        except Fault as refused:
            return _quarantined(version, refused)

    def planned(self, version: NewVersion, prefix: str) -> NewVersion:
        """Return a version with the key it would get below the presigner's ``prefix``, to be shown.

        One whose key only its content tells has none yet.
        """
        rules = self._watches[version.watch]
        if version.key or version.state is State.QUARANTINED or needs_hash(rules.key):
            return version
        try:
            return replace(version, key=self._rendered(rules, version, prefix))
        except Fault as refused:
            return _quarantined(version, refused)

    def named(self, version: NewVersion, key: str) -> NewVersion:
        """Give a version the key that a ``put`` asked for; raise ``key_refused``."""
        if why := key_problem(key):
            raise fault_for("key_refused", why)
        return replace(version, key=key, state=State.QUEUED, error_code="", error="")

    def _checked_key(self, rules: WatchConfig, version: NewVersion, problem: Fault | None) -> str | None:
        if problem:
            raise problem
        refuse_too_large(rules, version.fingerprint.size)
        if needs_hash(rules.key) or needs_prefix(rules.key):
            return None  # known once it is about to be sent
        return self._rendered(rules, version)

    def _rendered(self, rules: WatchConfig, version: NewVersion, prefix: str = "") -> str:
        return render_for(
            rules,
            version.path,
            version.file_id,
            version.fingerprint,
            version.queued_at,
            host=self._host,
            prefix=prefix,
        )


def _quarantined(version: NewVersion, refused: Fault) -> NewVersion:
    return replace(version, state=State.QUARANTINED, error_code=refused.code, error=refused.message)


def refuse_too_large(rules: WatchConfig, size: int) -> None:
    """Raise ``too_large`` for a file of ``size`` bytes that the watch or S3 doesn't take."""
    largest = min(rules.max_size or LARGEST_OBJECT, LARGEST_OBJECT)
    if size > largest:
        raise fault_for("too_large", f"{size} bytes, at most {largest}")
