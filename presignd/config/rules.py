"""Which values are valid, one function per rule.

Each returns the value, or raises ``ValueError`` with the reason. Pure.
"""

from __future__ import annotations

import base64
import difflib
import ipaddress
import re
import zoneinfo
from collections.abc import Mapping, Sequence
from typing import Any

from pathspec import GitIgnoreSpec

from presignd.config.templates import template_fields
from presignd.s3.checksums import native
from presignd.s3.limits import MAX_EXPIRES

_HEADER_NAMES = {
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "expires",
    "x-amz-storage-class",
    "x-amz-tagging",
}
_HEADER_PREFIXES = ("x-amz-meta-", "x-amz-server-side-encryption")
_OWN_HEADERS = {
    "content-type": "set content_type",
    "content-length": "presignd sets it",
    "content-md5": "upload.checksum sets it",
    "host": "presign.endpoint sets it",
}
SECRET_PREFIX = "whsec_"  # noqa: S105 - what each begins with
LEAST_SECRET = 16
"""Bytes of a webhook's secret, at least."""
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def check_expiry(seconds: int, *, signed: bool = True) -> int:
    """Return ``seconds`` if a link may live that long: 1 second at least; 7 days at most if it is ``signed``."""
    if seconds < 1:
        raise ValueError("must be at least 1s")
    if signed and seconds > MAX_EXPIRES:
        raise ValueError("must be at most 7d: S3 signatures live no longer")
    return seconds


def check_watch_name(name: str) -> str:
    """Return ``name`` if it fits in logs, commands and environment variables."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise ValueError("must be 1 to 64 letters, digits, and . _ - after the first")
    return name


def check_bucket(name: str) -> str:
    """Return ``name`` if S3's naming rules allow it."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", name) or ".." in name:
        raise ValueError(
            "must be a bucket name: 3 to 63 lower-case letters, digits, dots and hyphens, "
            "a letter or digit at each end, no two dots in a row"
        )
    try:
        ipaddress.IPv4Address(name)
    except ValueError:
        return name
    raise ValueError("must be a bucket name, not an IP address")


def check_timezone(name: str) -> str:
    """Return ``name`` if the system knows this time zone."""
    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        known = zoneinfo.available_timezones()
        if name == "UTC":  # works without any time zone data
            return name
        raise ValueError(_unknown_zone(name, known)) from None
    return name


def _unknown_zone(name: str, known: set[str]) -> str:
    if not known:
        return "can't be looked up: this system has no time zones; install tzdata"
    near = difflib.get_close_matches(name, known, 1)
    return "is no known time zone; " + (f"did you mean {near[0]}?" if near else "write e.g. Europe/Berlin")


def check_ignore(patterns: Sequence[str]) -> tuple[str, ...]:
    """Return ``patterns`` if each is a gitignore pattern that can match something, or a comment."""
    for pattern in patterns:
        try:
            compiled = GitIgnoreSpec.from_lines([pattern]).patterns
        except ValueError:
            raise ValueError(f'has "{pattern}", which is no gitignore pattern') from None
        text = pattern.strip()
        if text and not text.startswith("#") and all(each.include is None for each in compiled):
            raise ValueError(f'has "{pattern}", which matches nothing')
    return tuple(patterns)


def check_content_type(value: str) -> str:
    """Return ``value`` if it is "auto" or a media type."""
    if value != "auto" and not (re.fullmatch(r"[\w.+*-]+/[\w.+*-]+( *;[ -~]*)?", value, re.ASCII)):
        raise ValueError('must be "auto" or a media type such as "text/plain; charset=utf-8"')
    return value


def check_checksum(algorithm: str) -> str:
    """Return ``algorithm`` if it can be computed here at a useful speed."""
    if algorithm.startswith("crc") and native(algorithm) is None:
        raise ValueError('needs the Python package awscrt, which is not installed here; "md5" needs none')
    return algorithm


def check_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return ``headers`` if each may be sent with an upload, is named once, and has a printable value."""
    for name, value in headers.items():
        check_header_name(name)
        if not re.fullmatch(r"[!-~]([ -~]*[!-~])?", value):
            raise ValueError(f"{name}: its value must be printable ASCII, with no space at either end")
    if len({name.lower() for name in headers}) < len(headers):
        raise ValueError("name one header twice: upper and lower case are the same")
    return dict(headers)


def check_signing_secret(secret: str) -> str:
    """Return a webhook's secret if it is valid by Standard Webhooks: ``whsec_`` (which may be left out) and base64."""
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except ValueError:
        key = b""
    if len(key) < LEAST_SECRET:
        raise ValueError(
            f"must be {SECRET_PREFIX} and at least {LEAST_SECRET} random bytes in base64; make one: "
            f'echo "{SECRET_PREFIX}$(openssl rand -base64 32)"'
        )
    return secret


def check_header_name(name: str) -> None:
    """Raise ``ValueError`` unless a header of this name may be sent with an upload."""
    lower = name.lower()
    if lower == "x-amz-acl" or lower.startswith("x-amz-grant-"):
        raise ValueError(f"{name}: ACLs are never sent; who may read is what links and bucket policies say")
    if lower in _OWN_HEADERS:
        raise ValueError(f"{name}: is not set here; {_OWN_HEADERS[lower]}")
    prefixed = any(lower.startswith(prefix) for prefix in _HEADER_PREFIXES) and lower != "x-amz-meta-"
    if not _TOKEN.fullmatch(name) or not (prefixed or lower in _HEADER_NAMES):
        raise ValueError(
            f"{name}: is not allowed; these are: x-amz-meta-*, x-amz-tagging, x-amz-storage-class, "
            "x-amz-server-side-encryption*, Cache-Control, Content-Disposition, Content-Encoding, "
            "Content-Language, Expires"
        )


def check_folder_unit(watch: Mapping[str, Any]) -> str:
    """Return "folder" if the watch's other (valid) options allow a folder to get one link as a whole."""
    marker, key = watch.get("ready_marker"), watch.get("key")
    if marker is not None and "{name}" not in marker:
        raise ValueError('is "folder", which needs ready_marker with {name}, e.g. "{name}.ok": it says which is whole')
    if not watch.get("recursive", True):
        raise ValueError('is "folder", which needs recursive = true')
    if watch.get("existing") == "ignore":
        raise ValueError('is "folder", which needs existing = "upload": a folder without some files is not whole')
    if key is not None and not _keeps_paths(key):
        raise ValueError(
            'is "folder", which needs a key that ends with {path}, with only text, {watch}, {host} and {prefix} before '
            "it: so a folder's files share a prefix"
        )
    return "folder"


def _keeps_paths(key: str) -> bool:
    *before, last = [part.field for part in template_fields(key)]
    return last == "path" and key.endswith("{path}") and set(before) <= {"watch", "host", "prefix", None}


def is_secret_header(name: str) -> bool:
    """Return whether the value of this header is a key (SSE-C), which is never shown."""
    return name.lower().endswith("-customer-key")
