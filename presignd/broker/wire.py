"""What the broker is asked and answers, as JSON (contract §7)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Annotated, Any

from pydantic import ConfigDict, FailFast, TypeAdapter, ValidationError
from pydantic_core import from_json, to_json

from presignd.broker.models import TokenConfig
from presignd.broker.policy import Refusal, RefusalCode
from presignd.errors import Fault
from presignd.presign import Grant, GrantRequest, reason_of
from presignd.redaction import redact
from presignd.units import rfc3339

MAX_GRANTS = 1000
"""Requests in one call."""

MAX_BODY = 4 << 20
"""Bytes of a body: a thousand requests whose keys have a thousand bytes each, and room for their headers."""

LONGEST_REASON = 1000
"""Characters of a refusal's message."""

MAX_HEADERS = 100
"""Headers of one request, far more than a store takes."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The requests of one call, and by their places those that have a field which this broker doesn't know."""

    grants: list[GrantRequest]
    refused: dict[int, Refusal]


@dataclass(frozen=True, slots=True)
class Batch:
    """The body of ``POST /v1/grants``."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    grants: Annotated[list[GrantRequest], FailFast()]


class TooMany(ValueError):
    """More requests than one call may have."""


BATCH = TypeAdapter(Batch)
_OF_BATCH, _OF_REQUEST = (frozenset(each.name for each in fields(model)) for model in (Batch, GrantRequest))


def read_batch(body: bytes) -> Asked:
    """Return the requests in a body; raise ``ValueError`` that names the wrong field, never its value, or ``TooMany``.

    Values of another type are errors, and a request with an unknown field is refused: ignored or guessed at, a
    mistyped condition would leave unbound what it should bind. A newer daemon's other requests go on.
    """
    try:
        document = from_json(body)
    except ValueError as problem:
        raise ValueError(f"Invalid JSON: {problem}") from None
    refused = _without_excess(document)
    try:
        return Asked(BATCH.validate_json(to_json(document), strict=True).grants, refused)
    except ValidationError as problem:
        raise ValueError(reason_of(problem)) from None


def _without_excess(document: Any) -> dict[int, Refusal]:
    """Refuse what can be wrong so often that telling each mistake, as pydantic does, takes seconds and gigabytes.

    Unknown fields of requests are taken out, and the first of each is told. Whatever else is wrong stays to be
    named. A name that stands twice in one object counts once, the last time.
    """
    refused: dict[int, Refusal] = {}
    if not isinstance(document, dict):
        return refused
    if unknown := _unknown(document, _OF_BATCH):
        raise ValueError(unknown)
    grants = document.get("grants")
    if not isinstance(grants, list):
        return refused
    if len(grants) > MAX_GRANTS:
        raise TooMany(f"at most {MAX_GRANTS} grants in one call")
    for number, grant in enumerate(grants):
        if not isinstance(grant, dict):
            continue
        if unknown := _unknown(grant, _OF_REQUEST):
            refused[number] = Refusal(RefusalCode.UNKNOWN_FIELD, unknown)
            grants[number] = {name: value for name, value in grant.items() if name in _OF_REQUEST}
        headers = grant.get("headers")
        if isinstance(headers, dict) and len(headers) > MAX_HEADERS:
            raise ValueError(f"grants.{number}.headers: at most {MAX_HEADERS}")
    return refused


def _unknown(found: dict[str, Any], known: frozenset[str]) -> str:
    name = next((name for name in found if name not in known), None)
    return "" if name is None else f"{name[:100]}: no such field"


def write_answers(answers: Sequence[Grant | Refusal | Fault]) -> bytes:
    """Return the body that answers a batch."""
    return json.dumps({"grants": [_answer(each) for each in answers]}).encode()


def _answer(answer: Grant | Refusal | Fault) -> dict[str, Any]:
    return answer.to_json() if isinstance(answer, Grant) else error(answer.code, answer.message)


def error(code: str, message: str) -> dict[str, Any]:
    """Return a refusal, of one request in its place or of the whole call.

    A fault can have words of the store's, which may repeat what it was asked: redacted, and no longer than a reason is.
    """
    return {"error": {"code": code, "message": redact.redact(message)[:LONGEST_REASON]}}


def me(token: TokenConfig, *, credential_ends: datetime | None) -> dict[str, Any]:
    """Return what ``GET /v1/me`` tells a token: sizes in bytes, times in seconds, null for no limit."""
    return {
        "name": token.name,
        "bucket": token.bucket,
        "prefix": token.prefix,
        "operations": list(token.operations),
        "headers": list(token.headers),
        "max_size": token.max_size,
        "max_put_expires": token.max_put_expires,
        "max_link_expires": token.max_link_expires,
        "max_grants": MAX_GRANTS,
        "versions": True,
        "rate": token.rate,
        "valid_until": rfc3339(token.valid_until) if token.valid_until else None,
        "credential_expires_at": rfc3339(credential_ends) if credential_ends else None,
    }
