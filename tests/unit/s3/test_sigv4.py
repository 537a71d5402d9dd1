"""SigV4 presigning, against AWS's published example and against botocore."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import botocore.auth
import pytest
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from presignd.s3.sigv4 import Keys, choose_addressing, presign

KEYS = Keys("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
DATE = datetime(2013, 5, 24, tzinfo=UTC)

utf8 = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)
visible = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=30)
names = st.from_regex(r"x-amz-meta-[a-zA-Z0-9._-]{1,12}", fullmatch=True) | st.sampled_from(
    ["Content-Length", "Content-MD5", "Content-Type", "If-None-Match", "x-amz-checksum-sha256"]
)
# A value's inner white space is collapsed when signed; control characters never get this far.
values = st.lists(visible, min_size=1, max_size=4).map("  ".join) | utf8.filter(str.isprintable)
headers = st.dictionaries(names, values, max_size=6).filter(
    lambda found: len({name.lower() for name in found}) == len(found)
)
queries = st.dictionaries(
    st.sampled_from(["uploads", "uploadId", "partNumber", "part-number-marker", "Zed", "A"]), utf8, max_size=3
)
dates = st.datetimes(datetime(2013, 1, 1), datetime(2040, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - hypothesis adds the zone


def signature(url: str) -> str:
    return parse_qs(urlsplit(url).query)["X-Amz-Signature"][0]


def signed_by_botocore(
    method: str,
    url: str,
    *,
    date: datetime = DATE,
    expires: int = 60,
    headers: dict[str, str] | None = None,
    query: dict[str, str] | None = None,
    keys: Keys = KEYS,
) -> str:
    """Sign with the oracle; its clock is the one function of botocore.auth that tells the time."""
    parts = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in (query or {}).items())
    request: Any = AWSRequest(method, url + (f"?{parts}" if parts else ""), headers=headers or {})
    oracle = botocore.auth.S3SigV4QueryAuth(
        Credentials(keys.access_key, keys.secret_key, keys.session_token or None), "s3", "eu-west-1", expires=expires
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(botocore.auth, "get_current_datetime", lambda: date)
        oracle.add_auth(request)
    return str(request.url)


def test_the_example_in_aws_documentation_has_aws_signature() -> None:
    url = presign(
        "GET",
        "https://s3.amazonaws.com",
        "examplebucket",
        "test.txt",
        keys=KEYS,
        region="us-east-1",
        date=DATE,
        expires=86400,
        addressing="virtual",
    )
    assert url == (
        "https://examplebucket.s3.amazonaws.com/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256"
        "&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request"
        "&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host"
        "&X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
    )


@given(
    method=st.sampled_from(["GET", "PUT", "HEAD", "DELETE", "POST"]),
    key=utf8,
    headers=headers,
    query=queries,
    date=dates,
    expires=st.integers(1, 604800),
    token=st.just("") | visible,
    virtual=st.booleans(),
)
def test_every_signature_equals_that_of_botocore(
    *,
    method: str,
    key: str,
    headers: dict[str, str],
    query: dict[str, str],
    date: datetime,
    expires: int,
    token: str,
    virtual: bool,
) -> None:
    keys = Keys("access/+key", "sec ret/+ü", token)
    ours = presign(
        method,
        "http://store.example:9000",
        "a-bucket",
        key,
        keys=keys,
        region="eu-west-1",
        date=date,
        expires=expires,
        query=query,
        headers=headers,
        addressing="virtual" if virtual else "path",
    )
    root = "http://a-bucket.store.example:9000/" if virtual else "http://store.example:9000/a-bucket/"
    theirs = signed_by_botocore(
        method, root + quote(key), date=date, expires=expires, headers=headers, query=query, keys=keys
    )
    assert signature(ours) == signature(theirs)
    assert parse_qs(urlsplit(ours).query, keep_blank_values=True) == parse_qs(
        urlsplit(theirs).query, keep_blank_values=True
    )


@given(key=utf8)
def test_a_key_stands_in_the_path_byte_for_byte_and_encoded_once(key: str) -> None:
    """S3 signs the path as sent: dot segments, double slashes and ``%41`` must not be tidied up."""
    path = urlsplit(sign(key)).path
    assert unquote(path.removeprefix("/bucket/"), errors="strict") == key
    assert set(path) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~/%")


def sign(key: str = "k", *, endpoint: str = "http://127.0.0.1:9000", keys: Keys = KEYS, **more: Any) -> str:
    return presign("PUT", endpoint, "bucket", key, keys=keys, region="us-east-1", date=DATE, expires=60, **more)


@pytest.mark.parametrize(
    ("endpoint", "host"),
    [
        ("http://store.example:80", "store.example"),
        ("https://store.example:443", "store.example"),
        ("http://store.example:443", "store.example:443"),
        ("https://Store.Example:9000", "store.example:9000"),
        ("http://[::1]:9000", "[::1]:9000"),
        ("http://[::1]:80", "[::1]"),
    ],
)
def test_the_signed_host_is_the_one_an_http_client_sends(endpoint: str, host: str) -> None:
    """A default port is left out of Host by every client; signed with it, nothing would match."""
    url = sign(endpoint=endpoint)
    assert urlsplit(url).netloc == host
    theirs = signed_by_botocore("PUT", f"{endpoint}/bucket/k")
    ours = presign("PUT", endpoint, "bucket", "k", keys=KEYS, region="eu-west-1", date=DATE, expires=60)
    assert signature(ours) == signature(theirs)


def test_the_bucket_itself_is_signed_without_a_slash_behind_it() -> None:
    assert urlsplit(sign("")).path == "/bucket"
    assert urlsplit(sign("", addressing="virtual")).path == "/"


def test_another_secret_day_region_or_header_gives_another_signature() -> None:
    """The day's signing key is remembered: never for other keys, nor over midnight."""
    args: dict[str, Any] = {"keys": KEYS, "region": "us-east-1", "date": DATE, "expires": 60}
    variations: list[dict[str, Any]] = [
        {},
        {"keys": Keys(KEYS.access_key, "other")},
        {"region": "eu-west-1"},
        {"date": datetime(2013, 5, 25, tzinfo=UTC)},
        {"headers": {"Content-Length": "5"}},
        {"headers": {"Content-Length": "6"}},
        {"expires": 61},
        {"query": {"uploads": ""}},
    ]
    found = [presign("PUT", "http://h", "b", "k", **{**args, **change}) for change in variations]
    assert len({signature(url) for url in found}) == len(variations)


@pytest.mark.parametrize(
    ("setting", "endpoint", "bucket", "expected"),
    [
        ("auto", "https://s3.amazonaws.com", "a-bucket", "virtual"),
        ("auto", "https://s3.cn-north-1.amazonaws.com.cn", "a-bucket", "virtual"),
        ("auto", "https://s3.amazonaws.com", "a.bucket", "path"),
        ("auto", "https://s3.amazonaws.com", "A_Bucket", "path"),
        ("auto", "https://amazonaws.com.example", "a-bucket", "path"),
        ("auto", "https://notamazonaws.com", "a-bucket", "path"),
        ("auto", "http://127.0.0.1:9000", "a-bucket", "path"),
        ("path", "https://s3.amazonaws.com", "a-bucket", "path"),
        ("virtual", "http://minio.lan:9000", "a-bucket", "virtual"),
    ],
)
def test_auto_names_the_bucket_in_the_host_at_aws_only(setting: Any, endpoint: str, bucket: str, expected: str) -> None:
    assert choose_addressing(setting, endpoint, bucket) == expected


def test_a_year_has_four_digits_always() -> None:
    """Else the year 999 would be signed as 9990, and the request would live for ever."""
    url = presign("GET", "http://h", "b", "k", keys=KEYS, region="r", date=datetime(999, 1, 2, tzinfo=UTC), expires=60)
    assert "&X-Amz-Date=09990102T000000Z&" in url


def test_keys_show_nothing_of_themselves() -> None:
    assert repr(Keys("the-access", "the-secret", "the-token")) == "Keys()"
