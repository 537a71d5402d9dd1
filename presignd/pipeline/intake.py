"""Make the version of a complete file: choose its key, content type and priority, or refuse it.

No I/O but the clock of ``Intake``; key templates are rendered into keys that every store accepts.
"""

from __future__ import annotations

import mimetypes
import posixpath
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo

from presignd.config import WatchConfig
from presignd.config.templates import template_fields
from presignd.errors import Fault
from presignd.errors import fault as fault_for
from presignd.model import Fingerprint, NewVersion, Source, State
from presignd.s3.limits import CHECK_NAME, LARGEST_OBJECT, key_problem
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


# --- keys ---------------------------------------------------------------------------------------

_FIRST = int((datetime.min.replace(tzinfo=UTC) + timedelta(days=1)).timestamp())
_LAST = int((datetime.max.replace(tzinfo=UTC) - timedelta(days=1)).timestamp())
"""Range of seconds since 1970 that is within the years 1 to 9999 in every time zone."""


class KeyParts(NamedTuple):
    """The values for a template's fields: the path below the watch, names, times, and the hash if it is known."""

    path: bytes
    watch: str
    host: str
    file_id: str
    mtime_ns: int
    queued_at: datetime
    timezone: str
    sha256: str = ""
    prefix: str = ""


_VALUES: Mapping[str, Callable[[KeyParts, str], object]] = {
    "path": lambda _, path: path,
    "name": lambda _, path: posixpath.basename(path),
    "stem": lambda _, path: posixpath.splitext(posixpath.basename(path))[0],
    "suffix": lambda _, path: posixpath.splitext(path)[1],
    "parent": lambda _, path: posixpath.dirname(path),
    "watch": lambda parts, _: parts.watch,
    "host": lambda parts, _: parts.host,
    "uuid": lambda parts, _: parts.file_id,
    "sha256": lambda parts, _: parts.sha256,
    "prefix": lambda parts, _: parts.prefix,
    "mtime": lambda parts, _: _time(parts.mtime_ns, ZoneInfo(parts.timezone)),
    "queued": lambda parts, _: parts.queued_at.astimezone(ZoneInfo(parts.timezone)),
}
"""The value of each field. Only the fields of the template are computed: most keys are ``{path}``."""


def render(template: str, parts: KeyParts) -> str:
    """Render a key template; raise ``key_refused`` where the result is not a storable key."""
    try:
        path = parts.path.decode("utf-8").lstrip("/")
    except UnicodeDecodeError:
        raise fault_for("key_refused", "its name is no UTF-8") from None
    if "/" not in path:  # a file at the top has no parent: "{parent}/{name}" is its name, not "/name"
        template = template.replace("{parent}/", "")
    key = template.format_map({name: _VALUES[name](parts, path) for name in _fields(template)})
    if problem := problem_of(key):
        raise fault_for("key_refused", problem)
    return key


def problem_of(key: str) -> str | None:
    """Return why a file can't have this key, None if it can: the probes write and remove the check key."""
    if key.rpartition("/")[2] == CHECK_NAME:
        return f"{CHECK_NAME} is the name of presignd's own objects"
    return key_problem(key)


@lru_cache(maxsize=1024)
def _fields(template: str) -> frozenset[str]:
    return frozenset(part.field for part in template_fields(template) if part.field)


def _time(mtime_ns: int, zone: tzinfo) -> datetime:
    """Return a file's time in ``zone``, or the nearest that a ``datetime`` can hold: filesystems know more years."""
    return datetime.fromtimestamp(min(max(mtime_ns // 1_000_000_000, _FIRST), _LAST), zone)


def render_for(
    watch: WatchConfig,
    path: bytes,
    file_id: str,
    fingerprint: Fingerprint,
    queued_at: datetime,
    *,
    host: str,
    sha256: str = "",
    prefix: str = "",
) -> str:
    """Render the key of one version of a watch; raise ``key_refused`` where it is no storable key.

    A file put from elsewhere (an absolute ``path``) is named by its last component alone.
    """
    path = path.rsplit(b"/", 1)[-1] if path.startswith(b"/") else path
    parts = KeyParts(path, watch.name, host, file_id, fingerprint.mtime_ns, queued_at, watch.timezone, sha256, prefix)
    return render(watch.key, parts)


def needs_hash(template: str) -> bool:
    """Return whether the key depends on the content."""
    return "sha256" in _fields(template)


def needs_prefix(template: str) -> bool:
    """Return whether the key depends on what the presigner's token may write."""
    return template.startswith("{prefix}")


def check_key(watch: WatchConfig, prefix: str = "") -> str:
    """Return the fixed check key of a watch: below the literal folder its template begins with.

    So a credential limited to that folder can be probed. The key stays inside ``prefix``, even if that ends within a
    name.
    """
    begin, template = (prefix, watch.key.removeprefix("{prefix}")) if needs_prefix(watch.key) else ("", watch.key)
    folder, slash, _ = (begin + template.split("{", 1)[0]).rpartition("/")
    inside = folder.rstrip("/") + slash
    return (inside if inside.startswith(begin) else begin) + CHECK_NAME
