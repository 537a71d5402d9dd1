"""Only the grant that was asked for is accepted from a broker, hostile or mistaken."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from presignd.config import PresignConfig
from presignd.errors import Fault, PresignerFault
from presignd.presign import Grant, GrantRequest, Operation
from presignd.presign.expected import checked, expect
from presignd.presign.local import METHODS, bound_headers, own_query
from presignd.s3.sigv4 import Keys, presign

NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
CONFIG = PresignConfig(kind="broker", url="http://127.0.0.1:8420", endpoint="http://store:9000")
KEYS = Keys("access", "secret-0123456789")
PUT = GrantRequest(
    Operation.PUT,
    "test-bucket",
    "scanner-1/a b.txt",
    3600,
    size=5,
    content_type="text/plain",
    checksum="md5:5d41402abc4b2a76b9719d911017c592",
    headers={"x-amz-meta-owner": "alice"},
    if_none_match=True,
)
LINK = GrantRequest(
    Operation.GET, "test-bucket", "scanner-1/a b.txt", 900, date=NOW - timedelta(minutes=5), public=True
)
PART = GrantRequest(Operation.MULTIPART_PART, "test-bucket", "large", 300, size=5, upload_id="u-1", part_number=3)


def answer(request: GrantRequest, *, endpoint: str = CONFIG.endpoint, **other: Any) -> dict[str, Any]:
    """Sign as a broker would; ``other`` replaces what goes into the signature."""
    made: dict[str, Any] = {
        "method": METHODS[request.operation],
        "bucket": request.bucket,
        "key": request.key,
        "date": (request.date or NOW).replace(microsecond=0),
        "expires": request.expires,
        "query": own_query(request),
        "headers": bound_headers(request),
        **other,
    }
    url = presign(
        made["method"],
        endpoint,
        made["bucket"],
        made["key"],
        keys=made.get("keys", KEYS),
        region="us-east-1",
        date=made["date"],
        expires=made["expires"],
        query=made["query"],
        headers=made["headers"],
        addressing=made.get("addressing", "path"),
    )
    ends = made["date"] + timedelta(seconds=made["expires"])
    return Grant(made["method"], url, made["headers"], ends, made["date"]).to_json()


def judge(request: GrantRequest, told: dict[str, Any], config: PresignConfig = CONFIG) -> Grant:
    return checked(expect(request, config), told, NOW)


def assert_refused(request: GrantRequest, told: dict[str, Any], config: PresignConfig = CONFIG) -> None:
    with pytest.raises(PresignerFault) as refused:
        judge(request, told, config)
    assert refused.value.code == "wrong_grant"
    assert "X-Amz" not in refused.value.message
    assert "evil" not in refused.value.message


@pytest.mark.parametrize("request_", [PUT, LINK, PART], ids=["put", "link", "part"])
def test_the_grant_that_was_asked_for_is_taken(request_: GrantRequest) -> None:
    told = answer(request_)
    grant = judge(request_, told)
    assert grant.to_json() == told


def test_what_is_sent_is_what_was_asked_for_however_the_broker_writes_its_headers() -> None:
    told = answer(PUT)
    told["headers"] = {name.upper(): value for name, value in told["headers"].items()}
    assert judge(PUT, told).headers == bound_headers(PUT)


def test_the_signers_date_is_read_from_what_it_signed() -> None:
    """Contract §7's answer has no ``signer_date``; one that lies is not believed."""
    told = answer(PUT)
    del told["signer_date"]
    assert judge(PUT, told).signer_date == NOW
    assert judge(PUT, {**told, "signer_date": "2031-01-01T00:00:00Z"}).signer_date == NOW


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://evil:9000",
        "https://store:9000",
        "http://store:9001",
        "http://store",
        "http://store:9000.evil",
        "http://store:9000@evil",
        "http://evil#http://store:9000",
        "http://xstore:9000",
    ],
)
def test_a_grant_for_another_host_scheme_or_port_is_refused(endpoint: str) -> None:
    told = answer(PUT)
    told["url"] = told["url"].replace("http://store:9000", endpoint)
    assert_refused(PUT, told)


def test_a_grant_over_plain_http_for_an_https_store_is_refused() -> None:
    config = CONFIG.model_copy(update={"endpoint": "https://store:9000"})
    assert_refused(PUT, answer(PUT), config)


def test_a_bucket_in_the_host_is_taken_only_where_the_configuration_says_so() -> None:
    virtual = answer(PUT, addressing="virtual")
    assert_refused(PUT, virtual)
    assert judge(PUT, virtual, CONFIG.model_copy(update={"addressing": "virtual"})).url == virtual["url"]


def test_a_link_may_be_for_the_public_endpoint_and_an_upload_may_not() -> None:
    config = CONFIG.model_copy(update={"public_endpoint": "https://files.example.org"})
    link = judge(LINK, answer(LINK, endpoint="https://files.example.org"), config)
    assert link.url.startswith("https://files.example.org/test-bucket/")
    assert_refused(LINK, answer(LINK), config)
    assert_refused(PUT, answer(PUT, endpoint="https://files.example.org"), config)


@pytest.mark.parametrize(
    "other",
    [
        {"bucket": "evil"},
        {"key": "scanner-1/evil"},
        {"key": "scanner-1/a b.txt/../evil"},
        {"method": "DELETE"},
        {"method": "POST"},
        {"method": "GET"},
        {"expires": 3601},
        {"expires": 7 * 86400},
        {"date": NOW - timedelta(hours=1)},
        {"date": NOW + timedelta(hours=1)},
        {"query": {"uploads": ""}},
        {"query": {"acl": ""}},
        {"query": {"versionId": "evil"}},
        {"headers": {}},
        {"headers": {**bound_headers(PUT), "x-amz-acl": "public-read"}},
        {"headers": {**bound_headers(PUT), "x-amz-copy-source": "evil/key"}},
        {"headers": {**bound_headers(PUT), "x-amz-meta-owner": "evil"}},
        {"headers": {**bound_headers(PUT), "Content-Length": "6"}},
        {"headers": {name: value for name, value in bound_headers(PUT).items() if name != "If-None-Match"}},
        {"headers": {name: value for name, value in bound_headers(PUT).items() if name != "Content-MD5"}},
    ],
    ids=repr,
)
def test_a_grant_for_anything_else_is_refused(other: dict[str, Any]) -> None:
    assert_refused(PUT, answer(PUT, **other))


def test_a_header_that_is_told_but_not_signed_is_refused() -> None:
    """The store would take other values for it: the size and checksum would bind nothing."""
    told = answer(PUT, headers={"Content-Length": "5"})
    told["headers"] = bound_headers(PUT)
    assert_refused(PUT, told)


@pytest.mark.parametrize(
    "other",
    [
        {"query": {"uploadId": "evil", "partNumber": "3"}},
        {"query": {"uploadId": "u-1", "partNumber": "4"}},
        {"query": {"uploadId": "u-1"}},
        {"query": {}},
    ],
    ids=repr,
)
def test_a_grant_for_another_part_or_upload_is_refused(other: dict[str, Any]) -> None:
    assert_refused(PART, answer(PART, **other))


@pytest.mark.parametrize(
    "change",
    [
        lambda url: url + "&X-Amz-Expires=60",
        lambda url: url + "&X-Amz-Expires=604800",
        lambda url: url + "&X-Amz-Expires=3600",
        lambda url: url + "#fragment",
        lambda url: url + " ",
        lambda url: url + "\r\nHost: evil",
        lambda url: url + "&",
        lambda url: url + "&response-content-type=text/html",
        lambda url: url.partition("?")[0],
        lambda url: url.replace("AWS4-HMAC-SHA256&", "AWS4-HMAC-SHA256&&"),
        lambda url: url.replace("X-Amz-Signature", "X-Amz-Sig"),
        lambda url: url.replace("X-Amz-Date=2026", "X-Amz-Date=x026"),
        lambda url: re.sub(r"X-Amz-Date=\w+", "X-Amz-Date=99991231T235959Z", url),
        lambda url: re.sub(r"X-Amz-Date=\w+", "X-Amz-Date=00010101T000000Z", url),
        lambda url: url.replace("X-Amz-Expires=3600", "X-Amz-Expires=0"),
        lambda url: url.replace("X-Amz-Expires=3600", "X-Amz-Expires=+60"),
        lambda url: url.replace("%20b.txt", "%20b%2Etxt"),
        lambda url: url.replace("/scanner-1/", "//scanner-1/"),
    ],
)
def test_a_url_that_is_not_just_the_presigned_one_is_refused(change: Callable[[str], Any]) -> None:
    told = answer(PUT)
    assert_refused(PUT, {**told, "url": change(told["url"])})


@pytest.mark.parametrize(
    "change",
    [
        {"expires_at": "2026-11-23T13:00:01Z"},
        {"expires_at": "2031-01-01T00:00:00Z"},
        {"expires_at": "2026-11-23T13:00:00"},
        {"expires_at": "soon"},
        {"expires_at": "9999-12-31T23:59:59-23:59"},
        {"expires_at": "0001-01-01T00:00:00+23:59"},
        {"expires_at": 1e300},
        {"expires_at": None},
        {"headers": None},
        {"headers": {"Content-Length": 5}},
        {"method": "put"},
        {"url": ""},
        {"url": 5},
        {"url": None},
        {"url": ["http://store:9000/test-bucket/scanner-1/a%20b.txt?"]},
        {"method": None},
    ],
    ids=repr,
)
def test_an_answer_that_lies_or_is_no_grant_is_refused(change: dict[str, Any]) -> None:
    assert_refused(PUT, {**answer(PUT), **change})


def test_a_link_that_expired_already_is_refused() -> None:
    """Its ``expires_at`` would be honest, and the link no use to anybody."""
    assert_refused(LINK, answer(LINK, expires=299))
    assert judge(LINK, answer(LINK, expires=301)).expires_at == NOW + timedelta(seconds=1)


def test_a_link_that_was_asked_for_too_late_says_so_itself() -> None:
    """One made again by its committed date may be over by then; that is no fault of the broker's."""
    late = replace(LINK, expires=60)
    assert judge(late, answer(late)).expires_at < NOW


def test_a_link_of_another_date_is_refused() -> None:
    """The same URL must come again after a crash: the date is the one asked for."""
    assert_refused(LINK, answer(LINK, date=NOW))


def test_a_broker_may_shorten_and_says_how_long_it_really_lives() -> None:
    assert judge(PUT, answer(PUT, expires=60)).expires_at == NOW + timedelta(seconds=60)


def test_a_temporary_credentials_token_stands_in_the_query() -> None:
    told = answer(PUT, keys=Keys("access", "secret-0123456789", "session/token=="))
    assert judge(PUT, told).url == told["url"]


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (replace(PUT, key=""), "key_refused"),
        (replace(PUT, key="a\ud800"), "key_refused"),
        (replace(PUT, headers={"x-amz-meta-a": "\ud800"}), "key_refused"),
        (replace(PUT, size=-1), "grant_refused"),
        (replace(PUT, checksum="md5:short"), "grant_refused"),
    ],
)
def test_what_nobody_can_sign_is_refused_without_asking(request_: GrantRequest, code: str) -> None:
    with pytest.raises(Fault) as refused:
        expect(request_, CONFIG)
    assert refused.value.code == code


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=4)
URLS = st.text(alphabet="http://store:9000test-bucket@?&=%#.evil", max_size=60)


@given(
    st.dictionaries(st.sampled_from(["method", "url", "headers", "expires_at", "signer_date"]), JSON | URLS),
    st.tuples(st.integers(0, 400), st.integers(0, 12), st.text(max_size=12)),
)
def test_whatever_a_broker_answers_nothing_but_what_was_asked_for_is_sent(
    fields: dict[str, Any], splice: tuple[int, int, str]
) -> None:
    """A right answer with pieces of its URL and fields replaced: what is taken still is the request asked for."""
    told = answer(PUT)
    start, length, text = splice
    told["url"] = told["url"][:start] + text + told["url"][start + length :]
    with suppress(PresignerFault):
        grant = judge(PUT, {**told, **fields})
        assert grant.url.startswith("http://store:9000/test-bucket/scanner-1/a%20b.txt?X-Amz-Algorithm=")
        assert (grant.method, grant.headers) == ("PUT", bound_headers(PUT))
        assert grant.expires_at <= NOW + timedelta(seconds=3600)
