"""What a browser misses in a store's answers, before and after it sends a file."""

from __future__ import annotations

import json

import pytest

from presignd.checks.cors import answer_problems, cors_fix
from presignd.s3.responses import Response
from presignd.store.preflight import preflight_problems

ORIGIN = "https://files.example.org"
NEEDED = ["content-md5", "content-type"]


def answer(status: int = 200, **headers: str) -> Response:
    return Response(status, {f"access-control-{name.replace('_', '-')}": value for name, value in headers.items()})


@pytest.mark.parametrize(
    "headers",
    [
        {"allow_origin": "*", "allow_methods": "*", "allow_headers": "*"},
        {"allow_origin": ORIGIN, "allow_methods": "GET, PUT", "allow_headers": "Content-Type,Content-MD5,x"},
    ],
)
def test_a_preflight_that_allows_all_that_is_sent_passes(headers: dict[str, str]) -> None:
    assert preflight_problems(answer(200, **headers), "PUT", NEEDED, ORIGIN) == []


@pytest.mark.parametrize(
    ("response", "problem"),
    [
        (answer(403), "the preflight for PUT was answered with 403"),
        (answer(allow_methods="*", allow_headers="*"), "Access-Control-Allow-Origin is missing"),
        (
            answer(allow_origin="https://other", allow_methods="*", allow_headers="*"),
            "Access-Control-Allow-Origin is 'https://other'",
        ),
        (answer(allow_origin="*", allow_methods="GET", allow_headers="*"), "Access-Control-Allow-Methods lacks PUT"),
        (
            answer(allow_origin="*", allow_methods="PUT", allow_headers="content-type"),
            "Access-Control-Allow-Headers lacks content-md5",
        ),
    ],
)
def test_a_preflight_that_lacks_something_names_it(response: Response, problem: str) -> None:
    assert preflight_problems(response, "PUT", NEEDED, ORIGIN) == [problem]


def test_the_answer_to_a_put_has_to_expose_the_etag() -> None:
    assert answer_problems(answer(allow_origin="*", expose_headers="x, ETag"), ORIGIN) == []
    assert answer_problems(answer(allow_origin=ORIGIN, expose_headers="*"), ORIGIN) == []
    (problem,) = answer_problems(answer(allow_origin="*", expose_headers="x"), ORIGIN)
    assert "lacks ETag" in problem
    assert len(answer_problems(answer(), ORIGIN)) == 2


def test_the_fix_has_a_command_for_each_store() -> None:
    fix = cors_fix("scans", ORIGIN)
    for store in ("S3", "Ceph", "MinIO", "SeaweedFS"):
        assert store in fix
    rules = json.loads(fix.partition("'")[2].partition("'")[0])
    assert rules["CORSRules"][0]["AllowedOrigins"] == [ORIGIN]
