"""Verification of a broker's grants: each must be the presigned form of its request. Pure.

Method, address, query and headers must equal those that ``local`` makes of the same request. So a broker cannot direct
the daemon to another host, bucket or key, nor change what it sends.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import unquote

from presignd.config import PresignConfig
from presignd.errors import Fault, fault
from presignd.presign import Grant, GrantRequest
from presignd.presign.local import METHODS, bound_headers, own_query, refuse_incomplete
from presignd.s3.limits import MAX_EXPIRES
from presignd.s3.sigv4 import choose_addressing, target

CLOCK_SLACK = timedelta(minutes=1)
"""Largest difference between a fresh grant's date and its response's Date: an older grant was made for someone else."""

_SIGNING = ("X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Date", "X-Amz-Expires", "X-Amz-SignedHeaders")
_SIGNATURE, _TOKEN = "X-Amz-Signature", "X-Amz-Security-Token"
_PAIR = re.compile(r"[A-Za-z0-9._~-]+=[A-Za-z0-9._~%-]*")
_EXPIRES = re.compile(r"[1-9][0-9]{0,6}")


@dataclass(frozen=True, slots=True)
class Expected:
    """A request, and the parts that its grant must have."""

    request: GrantRequest
    method: str
    target: str
    query: Mapping[str, str] = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)


def expect(request: GrantRequest, config: PresignConfig) -> Expected:
    """Return what the grant for ``request`` must contain; raise the ``Fault`` of a request that cannot be signed."""
    refuse_incomplete(request)
    endpoint = config.public_endpoint if request.public and config.public_endpoint else config.endpoint
    addressing = choose_addressing(config.addressing, endpoint, request.bucket)
    try:
        address = target(endpoint, request.bucket, request.key, addressing)
        headers = bound_headers(request)
        "".join(headers.values()).encode()
    except UnicodeEncodeError:
        raise fault("key_refused", "the key or a header is not UTF-8") from None
    return Expected(request, METHODS[request.operation], address, own_query(request), headers)


def checked(expected: Expected, answer: Mapping[str, Any], now: datetime) -> Grant:
    """Return the grant in a broker's ``answer``; raise ``wrong_grant`` if it is not the expected one.

    ``now`` (UTC) is the broker's clock, by the Date of its response.
    """
    given = _read(answer)
    _require_request(expected, given)
    params = _params(given.url[len(expected.target) + 1 :])
    _require_query(expected, params)
    date = _date(params["X-Amz-Date"])
    ends = _ends(expected.request, date, params["X-Amz-Expires"])
    _require_times(expected.request, given, date, ends, now)
    return Grant(expected.method, given.url, expected.headers, ends, date)


def _read(answer: Mapping[str, Any]) -> Grant:
    """Read the answer. Its ``signer_date`` may be missing: the URL has it too."""
    try:
        return Grant.from_json({"signer_date": answer.get("expires_at"), **answer})
    except ValueError as problem:
        raise _wrong(str(problem)) from None


def _require_request(expected: Expected, given: Grant) -> None:
    """Compare all but the query. Faults quote no URL: it may hold anything."""
    if given.method != expected.method:
        raise _wrong(f"not the method {expected.method}")
    if not given.url.startswith(f"{expected.target}?"):
        raise _wrong("not for the endpoint, bucket and key asked for")
    if _lower(given.headers) != _lower(expected.headers):
        raise _wrong("other headers than were to be bound")


def _lower(headers: Mapping[str, str]) -> list[tuple[str, str]]:
    return sorted((name.lower(), value) for name, value in headers.items())


def _params(query: str) -> dict[str, str]:
    """Split a query in canonical form; raise ``wrong_grant`` for any other form, or a name twice."""
    pairs = query.split("&")
    params = {name: unquote(value) for name, _, value in (pair.partition("=") for pair in pairs)}
    if len(params) < len(pairs) or not all(_PAIR.fullmatch(pair) for pair in pairs):
        raise _wrong("a query that is no presigned one")
    return params


def _require_query(expected: Expected, params: Mapping[str, str]) -> None:
    """Require the operation's own parameters and the signature, and nothing else."""
    own = {name: value for name, value in params.items() if name not in (*_SIGNING, _SIGNATURE, _TOKEN)}
    if own != expected.query:
        raise _wrong("another operation in its query")
    if any(name not in params for name in (*_SIGNING, _SIGNATURE)):
        raise _wrong("no presigned query")
    bound = sorted({"host", *(name.lower() for name in expected.headers)})
    if params["X-Amz-SignedHeaders"].split(";") != bound:
        raise _wrong("not signed over the headers asked for")


def _date(text: str) -> datetime:
    try:
        return datetime.strptime(text, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except ValueError:
        raise _wrong("no date") from None


def _ends(request: GrantRequest, date: datetime, text: str) -> datetime:
    """Return the URL's expiry. It must not be later than requested: others could use the URL until then."""
    if not _EXPIRES.fullmatch(text) or int(text) > min(request.expires, MAX_EXPIRES):
        raise _wrong("an expiry that was not asked for")
    try:
        return date + timedelta(seconds=int(text))
    except OverflowError:
        raise _wrong("no date") from None


def _require_times(request: GrantRequest, given: Grant, date: datetime, ends: datetime, now: datetime) -> None:
    """Compare the stated times with the signed ones, and these with the requested ones."""
    if given.expires_at != ends:
        raise _wrong("it ends at another time than it says")
    if request.date is None and abs(date - now) > CLOCK_SLACK:
        raise _wrong("it was not made just now")
    if request.date is None:
        return
    if date != request.date.replace(microsecond=0):
        raise _wrong("another date than was asked for")
    if ends <= now < date + timedelta(seconds=min(request.expires, MAX_EXPIRES)):
        raise _wrong("it has expired already")


def _wrong(what: str) -> Fault:
    return fault("wrong_grant", what)
