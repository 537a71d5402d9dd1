"""Render key templates into keys that every store accepts. Pure."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from string import Formatter
from zoneinfo import ZoneInfo

from presignd.config import WatchConfig
from presignd.errors import fault
from presignd.model import Fingerprint
from presignd.s3.limits import CHECK_NAME, key_problem

_FIRST = int((datetime.min.replace(tzinfo=UTC) + timedelta(days=1)).timestamp())
_LAST = int((datetime.max.replace(tzinfo=UTC) - timedelta(days=1)).timestamp())
"""Seconds since 1970: whichever zone it is, they are within the years 1 to 9999."""


@dataclass(frozen=True, slots=True)
class KeyParts:
    """The values of a template's fields: the path below the watch, names, times, and the hash where it is known."""

    path: bytes
    watch: str
    host: str
    file_id: str
    mtime_ns: int
    queued_at: datetime
    zone: tzinfo
    sha256: str = ""
    prefix: str = ""


def render(template: str, parts: KeyParts) -> str:
    """Render a key template; raise ``key_refused`` where the result is not a storable key."""
    try:
        path = parts.path.decode("utf-8")
    except UnicodeDecodeError:
        raise fault("key_refused", "its name is no UTF-8") from None
    parent, name = posixpath.split(path.lstrip("/"))
    # A file at the top has no parent: "{parent}/{name}" is its name, not "/name".
    template = template if parent else template.replace("{parent}/", "")
    stem, suffix = posixpath.splitext(name)
    key = template.format(
        path=path.lstrip("/"),
        name=name,
        stem=stem,
        suffix=suffix,
        parent=parent,
        watch=parts.watch,
        host=parts.host,
        uuid=parts.file_id,
        sha256=parts.sha256,
        prefix=parts.prefix,
        mtime=_time(parts.mtime_ns, parts.zone),
        queued=parts.queued_at.astimezone(parts.zone),
    )
    if problem := key_problem(key):
        raise fault("key_refused", problem)
    return key


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
    zone = ZoneInfo(watch.timezone)
    path = path.rsplit(b"/", 1)[-1] if path.startswith(b"/") else path
    parts = KeyParts(path, watch.name, host, file_id, fingerprint.mtime_ns, queued_at, zone, sha256, prefix)
    return render(watch.key, parts)


def needs_hash(template: str) -> bool:
    """Return whether the key depends on the content."""
    return any(field == "sha256" for _, field, _, _ in Formatter().parse(template))


def needs_prefix(template: str) -> bool:
    """Return whether the key depends on what the presigner's token may write."""
    return template.startswith("{prefix}")


def check_key(watch: WatchConfig, prefix: str = "") -> str:
    """Return the fixed check key of a watch: below the literal folder its template begins with.

    So a credential limited to that folder can be probed. It stays inside ``prefix``, also
    where that ends within a name.
    """
    begin, template = (prefix, watch.key.removeprefix("{prefix}")) if needs_prefix(watch.key) else ("", watch.key)
    folder, slash, _ = (begin + template.split("{", 1)[0]).rpartition("/")
    inside = folder.rstrip("/") + slash
    return (inside if inside.startswith(begin) else begin) + CHECK_NAME
