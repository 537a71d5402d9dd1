"""The broker's JSON: batches of requests, their results, and ``/v1/me`` (docs/broker.md)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, FailFast, TypeAdapter, ValidationError
from pydantic_core import from_json, to_json

from presignd.broker.config import TokenConfig
from presignd.broker.policy import Refusal, RefusalCode
from presignd.errors import Fault
from presignd.presign import Grant, GrantRequest, reason_of
from presignd.redaction import redact
from presignd.s3.checksums import HEADERS
from presignd.units import rfc3339

MAX_GRANTS = 1000
"""Requests in one call."""

MAX_BODY = 4 << 20
"""Bytes of a body: enough for a thousand requests with keys of a thousand bytes, and headers."""

LONGEST_REASON = 1000
"""Characters of an error message."""

MAX_HEADERS = 100
"""Headers of one request, far more than a store accepts."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ParsedBatch:
    """The requests of one call; ``refused`` holds, by place, those with a field that this broker does not know."""

    grants: list[GrantRequest]
    refused: dict[int, Refusal]


@dataclass(frozen=True, slots=True)
class Batch:
    """The body of ``POST /v1/grants``."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    grants: Annotated[list[GrantRequest], FailFast()]


class TooMany(ValueError):
    """The call has more than ``MAX_GRANTS`` requests, which it calls ``name``."""

    def __init__(self, name: str) -> None:
        super().__init__(f"at most {MAX_GRANTS} {name} in one call")
        self.code = f"too_many_{name}"


BATCH = TypeAdapter(Batch)
_OF_REQUEST = frozenset(each.name for each in fields(GrantRequest))


def read_batch(body: bytes) -> ParsedBatch:
    """Return the requests in a body; raise ``TooMany``, or ``ValueError`` that names the wrong field but not its value.

    A value of the wrong type is an error. A request with an unknown field is refused, because ignoring a mistyped
    condition would leave the request unconditional. Other requests of a newer daemon still pass.
    """
    batch, refused = read_items(body, BATCH, "grants", _OF_REQUEST)
    return ParsedBatch(batch.grants, refused)


def read_items(body: bytes, model: TypeAdapter[T], name: str, known: frozenset[str]) -> tuple[T, dict[int, Refusal]]:
    """Return a body with the list ``name``, and a refusal for each item that has a field not in ``known``.

    Raises what ``read_batch`` does.
    """
    try:
        document = from_json(body)
    except ValueError as problem:
        raise ValueError(f"Invalid JSON: {problem}") from None
    refused = _without_excess(document, name, known)
    return read_one(to_json(document), model), refused


def read_one(body: bytes, model: TypeAdapter[T], *, strict: bool = True) -> T:
    """Parse a body by ``model``; raise ``ValueError`` that names the wrong field but not its value."""
    try:
        return model.validate_json(body, strict=strict)
    except ValidationError as problem:
        raise ValueError(reason_of(problem)) from None


def _without_excess(document: Any, name: str, known: frozenset[str]) -> dict[int, Refusal]:
    """Handle mistakes that can occur so often that pydantic's list of errors would take seconds and gigabytes.

    Unknown fields of items are removed, and the first of each item is reported. Other mistakes are left to
    pydantic. If a name occurs twice in one object, the last value counts.
    """
    refused: dict[int, Refusal] = {}
    if not isinstance(document, dict):
        return refused
    if unknown := _unknown(document, frozenset({name})):
        raise ValueError(unknown)
    items = document.get(name)
    if not isinstance(items, list):
        return refused
    if len(items) > MAX_GRANTS:
        raise TooMany(name)
    for number, item in enumerate(items):
        if not isinstance(item, dict):
            continue
        if unknown := _unknown(item, known):
            refused[number] = Refusal(RefusalCode.UNKNOWN_FIELD, unknown)
        items[number] = {field: value for field, value in item.items() if field in known}
        headers = item.get("headers")
        if isinstance(headers, dict) and len(headers) > MAX_HEADERS:
            raise ValueError(f"{name}.{number}.headers: at most {MAX_HEADERS}")
    return refused


def _unknown(found: dict[str, Any], known: frozenset[str]) -> str:
    name = next((name for name in found if name not in known), None)
    return "" if name is None else f"{name[:100]}: no such field"


def write_results(results: Sequence[Grant | Refusal | Fault]) -> bytes:
    """Return the body of the response to a batch."""
    return json.dumps({"grants": [_result(each) for each in results]}).encode()


def _result(result: Grant | Refusal | Fault) -> dict[str, Any]:
    return result.to_json() if isinstance(result, Grant) else error(result.code, result.message)


def error(code: str, message: str) -> dict[str, Any]:
    """Return the error of one request or of a whole call.

    A fault's message may quote the store, which may repeat its request: it is redacted and cut to ``LONGEST_REASON``.
    """
    return {"error": {"code": code, "message": redact.redact(message)[:LONGEST_REASON]}}


def me(token: TokenConfig, *, credential_ends: datetime | None, links_url: str) -> dict[str, Any]:
    """Return the answer to ``GET /v1/me``: sizes in bytes, durations in seconds, null for no limit."""
    return {
        "name": token.name,
        "bucket": token.bucket,
        "prefix": token.prefix,
        "operations": list(token.operations),
        "headers": list(token.headers),
        "max_size": token.max_size,
        "max_put_expires": token.max_put_expires,
        "max_link_expires": token.max_link_expires,
        "max_stable_link": token.max_stable_link,
        "links_url": links_url or None,
        "max_grants": MAX_GRANTS,
        "versions": True,
        "checksums": list(HEADERS),
        "rate": token.rate,
        "valid_until": rfc3339(token.valid_until) if token.valid_until else None,
        "credential_expires_at": rfc3339(credential_ends) if credential_ends else None,
    }
