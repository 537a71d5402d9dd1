"""Make the version of a complete file: choose its key, content type and priority, or refuse it.

No I/O but the clock; key templates are rendered into keys that every store accepts.
"""

from __future__ import annotations

import mimetypes
import posixpath
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
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


_ids = Ids()


def make_version(
    watch: WatchConfig,
    path: bytes,
    fingerprint: Fingerprint,
    source: Source,
    *,
    fault: Fault | None = None,
    prefix: str | None = None,
    now: datetime | None = None,
) -> NewVersion:
    """Return the version of a complete file; one that can't be sent is quarantined from the start.

    ``fault``: the fault of a file that can't be read (``unreadable``). ``prefix``: the presigner's, None if it is asked
    only as the file is sent; a key that depends on the content is known only then, too. ``now``: the time, by default
    the clock's.
    """
    key, refused, file_id, now = None, fault, _ids.new(), now or utcnow()
    if not refused:
        try:
            refuse_too_large(watch, fingerprint.size)
            if not needs_hash(watch.key) and (prefix is not None or not needs_prefix(watch.key)):
                key = render_for(watch, path, file_id, fingerprint, now, prefix=prefix or "")
        except Fault as problem:
            refused = problem
    return NewVersion(
        file_id=file_id,
        watch=watch.name,
        path=path,
        fingerprint=fingerprint,
        bucket=watch.bucket,
        key=key,
        content_type=content_type(watch, path),
        priority=UPLOAD_PRIORITIES[source],
        queued_at=now,
        fresh_key=watch.collision == "rename",
        next_key=may_number(watch),
        state=State.QUARANTINED if refused else State.QUEUED,
        error_code=refused.code if refused else "",
        error=refused.message if refused else "",
    )


def with_key(version: NewVersion, key: str) -> NewVersion:
    """Return a version with the key that a ``put`` gave; raise ``key_refused``."""
    if why := problem_of(key):
        raise fault_for("key_refused", why)
    return version._replace(key=key, state=State.QUEUED, error_code="", error="")


def ignored(version: NewVersion) -> NewVersion:
    """Return a version that is recorded as ignored; it has no key, as a file that is never sent reserves none."""
    return version._replace(state=State.IGNORED, key=None, error_code="", error="")


def refuse_too_large(watch_config: WatchConfig, size: int) -> None:
    """Raise ``too_large`` for a file of ``size`` bytes that the watch or S3 doesn't accept."""
    largest = min(watch_config.max_size or LARGEST_OBJECT, LARGEST_OBJECT)
    if size > largest:
        raise fault_for("too_large", f"{size} bytes, at most {largest}")


def content_type(watch: WatchConfig, path: bytes) -> str:
    """Return the watch's content type, or guess it from the name (IANA types by suffix)."""
    if watch.content_type != "auto":
        return watch.content_type
    name = path.rpartition(b"/")[2]
    begin, *suffixes = name.rsplit(b".", 2)
    # Two suffixes decide. All of the name is needed where the dots begin it (a hidden file), or for a URL's scheme.
    return _guessed_type(b".".join((b"x", *suffixes)) if begin.strip(b".") and b":" not in name else name)


@lru_cache(maxsize=1024)
def _guessed_type(name: bytes) -> str:
    kind, encoding = mimetypes.guess_type(name.decode("utf-8", "replace"), strict=False)
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


@cache
def host_name() -> str:
    """Return this host's name as it was at the first use: keys keep it while the daemon runs."""
    return socket.gethostname()


@dataclass(slots=True)
class _KeyParts:
    """The values for a template's fields: the path below the watch, names, times, and the hash if it is known.

    By a field's name it gives the field's value. Only those in the template are computed: most keys are ``{path}``.
    """

    path: str
    watch: WatchConfig
    file_id: str
    mtime_ns: int
    queued_at: datetime
    sha256: str
    prefix: str

    def __getitem__(self, field: str) -> object:
        return _VALUES[field](self)

    def mtime(self) -> datetime:
        """Return the file's time, or the nearest that a ``datetime`` can hold: filesystems know more years."""
        seconds = min(max(self.mtime_ns // 1_000_000_000, _FIRST), _LAST)
        return datetime.fromtimestamp(seconds, ZoneInfo(self.watch.timezone))


_VALUES: Mapping[str, Callable[[_KeyParts], object]] = {
    "path": lambda parts: parts.path,
    "name": lambda parts: posixpath.basename(parts.path),
    "stem": lambda parts: posixpath.splitext(posixpath.basename(parts.path))[0],
    "suffix": lambda parts: posixpath.splitext(parts.path)[1],
    "parent": lambda parts: posixpath.dirname(parts.path),
    "watch": lambda parts: parts.watch.name,
    "host": lambda _: host_name(),
    "uuid": lambda parts: parts.file_id,
    "sha256": lambda parts: parts.sha256,
    "prefix": lambda parts: parts.prefix,
    "mtime": _KeyParts.mtime,
    "queued": lambda parts: parts.queued_at.astimezone(ZoneInfo(parts.watch.timezone)),
}
"""The value of each field."""


def render_for(
    watch: WatchConfig,
    path: bytes,
    file_id: str,
    fingerprint: Fingerprint,
    queued_at: datetime,
    *,
    sha256: str = "",
    prefix: str = "",
) -> str:
    """Render the key of one version of a watch; raise ``key_refused`` where it is no storable key.

    A file put from elsewhere (an absolute ``path``) is named by its last component alone.
    """
    try:
        name = (path.rpartition(b"/")[2] if path.startswith(b"/") else path).decode("utf-8")
    except UnicodeDecodeError:
        raise fault_for("key_refused", "its name is no UTF-8") from None
    parts = _KeyParts(name, watch, file_id, fingerprint.mtime_ns, queued_at, sha256, prefix)
    template = watch.key
    if "{parent}/" in template and "/" not in name:  # at the top: "{parent}/{name}" is its name, not "/name"
        template = template.replace("{parent}/", "")
    key = template.format_map(parts)
    if problem := problem_of(key):
        raise fault_for("key_refused", problem)
    return key


def problem_of(key: str) -> str | None:
    """Return why a file can't have this key, None if it can: the probes write and remove the check key."""
    if f"/{key}".endswith(f"/{CHECK_NAME}"):
        return f"{CHECK_NAME} is the name of presignd's own objects"
    return key_problem(key)


@lru_cache(maxsize=1024)
def _fields(template: str) -> frozenset[str]:
    return frozenset(part.field for part in template_fields(template) if part.field)


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
