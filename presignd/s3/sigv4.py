"""AWS Signature Version 4 in the query string: pure, no clock, no network.

Rules: "Authenticating Requests: Using Query Parameters" in the Amazon S3 API reference. Host and every given header
are signed, the body is UNSIGNED-PAYLOAD, and the path is signed as sent, since S3 never normalises it. The URL has the
query in canonical order, so the signed and the sent query are one string.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from hashlib import sha256
from types import MappingProxyType
from typing import Literal
from urllib.parse import quote, urlsplit

Addressing = Literal["path", "virtual"]

_NOTHING: Mapping[str, str] = MappingProxyType({})
_DEFAULT_PORTS = {"http": 80, "https": 443}
_AWS_HOST = re.compile(r"(^|\.)amazonaws\.com(\.cn)?$")
_LABEL = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")


@dataclass(frozen=True, slots=True)
class Keys:
    """An access key with its secrets, all hidden from ``repr``."""

    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    session_token: str = field(default="", repr=False)


def presign(
    method: str,
    endpoint: str,
    bucket: str,
    key: str,
    *,
    keys: Keys,
    region: str,
    date: datetime,
    expires: int,
    query: Mapping[str, str] = _NOTHING,
    headers: Mapping[str, str] = _NOTHING,
    addressing: Addressing = "path",
) -> str:
    """Return the presigned URL of one request.

    ``endpoint`` is ``scheme://host[:port]``, ``date`` is UTC, ``expires`` is in seconds (1 to ``limits.MAX_EXPIRES``).
    ``headers`` must be sent as given, each name once. An empty ``key`` means the bucket. Raises ``UnicodeEncodeError``
    for text that is no UTF-8.
    """
    site = _site(endpoint, bucket, addressing)
    stamp = _stamp(date)
    scope = _scope(keys, region, stamp[:8])
    header_lines, names = _signed_headers(site.host, headers)
    path = _path(site, key)
    params = (
        f"{scope.credential}&X-Amz-Date={stamp}&X-Amz-Expires={expires}"
        f"{scope.token}&X-Amz-SignedHeaders={_quote_names(names)}"
    )
    if query:
        params = _with_query(params, query)
    request = f"{method}\n{path}\n{params}\n{header_lines}\n{names}\nUNSIGNED-PAYLOAD"
    digest = sha256(request.encode()).hexdigest()
    to_sign = f"AWS4-HMAC-SHA256\n{stamp}\n{scope.text}\n{digest}"
    signing = scope.signing.copy()  # hmac.digest would release the GIL, and other threads run in between
    signing.update(to_sign.encode())
    return f"{site.origin}{path}?{params}&X-Amz-Signature={signing.hexdigest()}"


def target(endpoint: str, bucket: str, key: str, addressing: Addressing) -> str:
    """Return the part before the query of the URL that ``presign`` returns.

    Raises ``UnicodeEncodeError`` for text that is no UTF-8.
    """
    site = _site(endpoint, bucket, addressing)
    return site.origin + _path(site, key)


@lru_cache(maxsize=256)
def choose_addressing(setting: Literal["auto", "path", "virtual"], endpoint: str, bucket: str) -> Addressing:
    """Return the addressing style for ``bucket`` at ``endpoint``.

    "auto" is virtual for AWS, which requires it, and path elsewhere: MinIO, SeaweedFS and Ceph serve virtual hosts only
    with their domain configured. A bucket with dots uses the path, as AWS's wildcard certificate does not cover it.
    """
    if setting != "auto":
        return setting
    host = urlsplit(endpoint).hostname or ""
    return "virtual" if _AWS_HOST.search(host) and _LABEL.fullmatch(bucket) else "path"


@dataclass(frozen=True, slots=True)
class _Site:
    origin: str
    host: str
    root: str
    bucket_path: str


@dataclass(frozen=True, slots=True)
class _Scope:
    text: str
    credential: str
    token: str
    signing: hmac.HMAC = field(repr=False)


@lru_cache(maxsize=256)
def _site(endpoint: str, bucket: str, addressing: Addressing) -> _Site:
    """Return the parts of the URL for a bucket; ``host`` is what an HTTP client sends as Host."""
    parts = urlsplit(endpoint)
    host = parts.netloc.lower()
    if parts.port == _DEFAULT_PORTS.get(parts.scheme):
        host = host.rpartition(":")[0]
    if addressing == "virtual":
        host = f"{bucket}.{host}"
        return _Site(f"{parts.scheme}://{host}", host, "/", "/")
    path = f"/{quote(bucket, safe='')}"
    return _Site(f"{parts.scheme}://{host}", host, f"{path}/", path)


def _path(site: _Site, key: str) -> str:
    return site.root + quote(key) if key else site.bucket_path


@lru_cache(maxsize=64)
def _scope(keys: Keys, region: str, day: str) -> _Scope:
    """Return the scope with the day's signing key: four HMACs, the same for every request of that day."""
    signing_key = f"AWS4{keys.secret_key}".encode()
    for step in (day, region, "s3", "aws4_request"):
        signing_key = hmac.digest(signing_key, step.encode(), "sha256")
    text = f"{day}/{region}/s3/aws4_request"
    credential = quote(f"{keys.access_key}/{text}", safe="")
    token = f"&X-Amz-Security-Token={quote(keys.session_token, safe='')}" if keys.session_token else ""
    signing = hmac.new(signing_key, digestmod="sha256")
    return _Scope(text, f"X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={credential}", token, signing)


@lru_cache(maxsize=64)
def _stamp(date: datetime) -> str:
    # %Y alone leaves out leading zeros: year 999 would read as 9990.
    return f"{date.year:04}{date:%m%dT%H%M%SZ}"


@lru_cache(maxsize=256)
def _quote_names(names: str) -> str:
    return quote(names, safe="")


def _signed_headers(host: str, headers: Mapping[str, str]) -> tuple[str, str]:
    """Return the canonical header lines, each with a newline, and the names joined by ``;``.

    White space in values is collapsed to single spaces (SigV4's Trimall).
    """
    pairs = [(name.lower(), " ".join(value.split())) for name, value in headers.items()]
    pairs.append(("host", host))
    pairs.sort()
    return "".join([f"{name}:{value}\n" for name, value in pairs]), ";".join([name for name, _ in pairs])


def _with_query(params: str, query: Mapping[str, str]) -> str:
    """Add the operation's own parameters, sorted by encoded name."""
    own = [f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in query.items()]
    return "&".join(sorted(params.split("&") + own, key=lambda pair: pair.partition("=")[0]))
