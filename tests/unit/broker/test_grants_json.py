"""Grants and their requests as JSON: what a daemon sends is what a broker reads, and back."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from presignd.broker.policy import Refusal, RefusalCode
from presignd.broker.wire import ParsedBatch, read_batch
from presignd.presign import Grant, GrantRequest, Operation

WHOLE = datetime(2026, 1, 1, 12, tzinfo=UTC)
GET = GrantRequest(Operation.GET, "bucket", "a/key", 900)


def batch(request: dict[str, Any]) -> bytes:
    return json.dumps({"grants": [request]}).encode()


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
aware = st.datetimes(datetime(2020, 1, 1), datetime(2040, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - hypothesis adds the zone
requests = st.builds(
    GrantRequest,
    st.sampled_from(Operation),
    texts,
    texts,
    st.integers(),
    size=st.none() | st.integers(0),
    content_type=texts,
    checksum=texts,
    headers=st.dictionaries(texts, texts, max_size=3),
    if_none_match=st.booleans(),
    if_match=texts,
    date=st.none() | aware,
    public=st.booleans(),
    upload_id=texts,
    part_number=st.integers(0, 10_000),
    checksum_algorithm=texts,
    checksum_type=texts,
    checksum_mode=texts,
)
grants = st.builds(Grant, texts, texts, st.dictionaries(texts, texts, max_size=3), aware, aware)


@given(requests)
def test_every_request_survives_json(request: GrantRequest) -> None:
    assert read_batch(batch(request.to_json())) == ParsedBatch([request], {})


@given(grants)
def test_every_grant_survives_json(grant: Grant) -> None:
    assert Grant.from_json(json.loads(json.dumps(grant.to_json()))) == grant


def test_the_field_names_are_those_of_the_broker_api() -> None:
    document = {
        "operation": "put",
        "bucket": "b",
        "key": "k",
        "size": 5,
        "content_type": "text/plain",
        "checksum": "md5:" + "00" * 16,
        "headers": {},
        "if_none_match": False,
        "expires": 3600,
    }
    (request,) = read_batch(batch(document)).grants
    assert request == GrantRequest(
        Operation.PUT, "b", "k", 3600, size=5, content_type="text/plain", checksum="md5:" + "00" * 16
    )
    part = replace(request, operation=Operation.MULTIPART_PART, upload_id="u", part_number=2).to_json()
    assert (part["operation"], part["upload_id"], part["part_number"]) == ("multipart.part", "u", 2)
    grant = Grant("PUT", "http://x", {}, WHOLE, WHOLE).to_json()
    assert grant == {
        "method": "PUT",
        "url": "http://x",
        "headers": {},
        "expires_at": "2026-01-01T12:00:00Z",
        "signer_date": "2026-01-01T12:00:00Z",
    }


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"operation": "copy"}, "operation: "),
        ({"size": "many"}, "size: "),
        ({"headers": {"a": 1}}, "headers.a: "),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=rf"^grants\.0\.{reason}"):
        read_batch(batch({**GET.to_json(), **change}))


def test_a_request_with_an_unknown_field_is_refused_alone() -> None:
    """Left aside, the field could have been a misspelt condition; a newer daemon's other requests go on."""
    unknown = {**GET.to_json(), "if_nonematch": True}
    asked = read_batch(json.dumps({"grants": [GET.to_json(), unknown, GET.to_json()]}).encode())
    assert asked == ParsedBatch([GET] * 3, {1: Refusal(RefusalCode.UNKNOWN_FIELD, "if_nonematch: no such field")})


@pytest.mark.parametrize("missing", ["operation", "bucket", "key", "expires"])
def test_a_missing_field_is_named(missing: str) -> None:
    document = {name: value for name, value in GET.to_json().items() if name != missing}
    with pytest.raises(ValueError, match=rf"^grants\.0\.{missing}: "):
        read_batch(batch(document))


def test_a_broken_grant_is_refused_without_quoting_its_url() -> None:
    url = "http://h/b/k?X-Amz-Signature=canary"
    with pytest.raises(ValueError, match=r"^expires_at: ") as caught:
        Grant.from_json({"method": "GET", "url": url, "headers": {}, "expires_at": url, "signer_date": url})
    assert "canary" not in repr(caught.value)
    assert caught.value.__cause__ is None
