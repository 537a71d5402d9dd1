"""The broker's request bodies: any body is read or refused, in little time and memory."""

from __future__ import annotations

import json
import tracemalloc

import pytest

from presignd.broker.wire import MAX_BODY, MAX_HEADERS, TooMany, read_batch

ASKED = {"operation": "get", "bucket": "b", "key": "k", "expires": 1}


def body(grants: object, **more: object) -> bytes:
    return json.dumps({"grants": grants, **more}, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (body([{}] * (MAX_BODY // 4)), "at most 1000 grants"),
        (body([{}] * 1000), "grants.0.operation"),
        (body([{f"{n:x}": 1 for n in range(MAX_BODY // 12)}]), "grants.0.operation"),
        (body([], **{f"{n:x}": 1 for n in range(MAX_BODY // 12)}), "0: no such field"),
        (body([{**ASKED, "headers": {f"{n:x}": 1 for n in range(MAX_BODY // 12)}}]), "grants.0.headers: at most 100"),
        (b'{"grants":[{' + b",".join([b'"a":1'] * (MAX_BODY // 6 - 10)) + b"}]}", "grants.0.operation"),
    ],
    ids=["requests", "empty requests", "fields", "fields beside", "headers", "one field again and again"],
)
def test_a_body_full_of_mistakes_takes_no_memory_beyond_its_own(wrong: bytes, named: str) -> None:
    """Told one by one, as pydantic does, a body of 4 MiB took seven seconds and more memory than the machine has."""
    assert len(wrong) <= MAX_BODY
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=named) as refused:
            read_batch(wrong)
        assert tracemalloc.get_traced_memory()[1] < 50 * MAX_BODY
    finally:
        tracemalloc.stop()
    assert len(str(refused.value)) < 200


def test_only_too_many_requests_are_too_many() -> None:
    assert len(read_batch(body([ASKED] * 1000)).grants) == 1000
    with pytest.raises(TooMany):
        read_batch(body([ASKED] * 1001))
    (most,) = read_batch(body([{**ASKED, "headers": {f"x{n}": "" for n in range(MAX_HEADERS)}}])).grants
    assert len(most.headers) == 100


def test_values_are_read_as_they_were_sent() -> None:
    sent = {**ASKED, "key": "ü\U0001f600\n%2e", "size": 10**30, "headers": {"x-amz-meta-a": "\u2028\t"}}
    (read,) = read_batch(body([{**sent, "date": "2026-01-01T00:00:00Z"}])).grants
    assert (read.key, read.size, dict(read.headers)) == (sent["key"], 10**30, sent["headers"])
    assert read.date is not None
    for mistyped in ({"size": "5"}, {"size": 5.0}, {"public": 1}, {"date": 5.5}, {"key": None}):
        with pytest.raises(ValueError, match=next(iter(mistyped))):
            read_batch(body([{**ASKED, **mistyped}]))
