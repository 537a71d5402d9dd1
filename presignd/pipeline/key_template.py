"""Render key templates into keys that every store accepts. Pure."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo

from presignd.config import WatchConfig
from presignd.config.templates import template_fields
from presignd.errors import fault
from presignd.model import Fingerprint
from presignd.s3.limits import CHECK_NAME, key_problem

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
        raise fault("key_refused", "its name is no UTF-8") from None
    if "/" not in path:  # a file at the top has no parent: "{parent}/{name}" is its name, not "/name"
        template = template.replace("{parent}/", "")
    key = template.format_map({name: _VALUES[name](parts, path) for name in _fields(template)})
    if problem := problem_of(key):
        raise fault("key_refused", problem)
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
