"""The local presigner's decisions without a store."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from presignd.config import PresignConfig
from presignd.errors import Fault, FileFault, PresignerFault, StoreFault, fault
from presignd.presign import Grant, GrantRequest, Operation
from presignd.presign.credentials import Credentials, CredentialSource
from presignd.presign.local import LocalPresigner, bound_headers, real_lifetime
from presignd.s3.sigv4 import Keys

NOW = datetime(2026, 1, 1, 12, 0, 0, 987_654, tzinfo=UTC)
WHOLE = NOW.replace(microsecond=0)
GET = GrantRequest(Operation.GET, "bucket", "a/key", 900)


async def us_east(bucket: str) -> str:
    return "us-east-1"


def presigner(*, ends: datetime | None = None, region_of: Any = us_east, **config: Any) -> LocalPresigner:
    settings = PresignConfig(access_key="a", secret_key=SecretStr("s"), **config)
    found = Credentials(Keys("a", "s"), "test", ends)
    credentials = CredentialSource(settings, clock=lambda: NOW, find=lambda: found)
    return LocalPresigner(settings, region_of=region_of, credentials=credentials, clock=lambda: NOW)


async def one(signer: LocalPresigner, request: GrantRequest) -> Grant:
    (answer,) = await signer.grant([request])
    assert isinstance(answer, Grant)
    return answer


# --- expiry ---------------------------------------------------------------------------------------------


async def test_a_grant_tells_the_second_it_was_signed_and_the_second_it_dies() -> None:
    """SigV4 dates are whole seconds: half a second more than the truth would be a lie."""
    grant = await one(presigner(), GET)
    assert (grant.signer_date, grant.expires_at) == (WHOLE, WHOLE + timedelta(seconds=900))


async def test_a_grant_dies_with_the_credential_that_signed_it() -> None:
    ends = WHOLE + timedelta(seconds=400, milliseconds=700)
    grant = await one(presigner(ends=ends), GET)
    assert grant.expires_at == WHOLE + timedelta(seconds=400)
    assert "X-Amz-Expires=400&" in grant.url


async def test_the_end_of_the_credential_is_told() -> None:
    ends = NOW + timedelta(hours=1)
    assert await presigner(ends=ends).credential_expiry() == ends
    assert await presigner().credential_expiry() is None


async def test_nothing_is_signed_without_valid_credentials() -> None:
    with pytest.raises(PresignerFault):
        await presigner(ends=NOW).grant([GET])


@given(asked=st.integers(1, 10**9), left=st.none() | st.integers(1, 10**9))
def test_an_expiry_is_the_least_of_asked_seven_days_and_the_credentials_end(asked: int, left: int | None) -> None:
    ends = None if left is None else WHOLE + timedelta(seconds=left)
    assert real_lifetime(asked, WHOLE, ends) == min(asked, 604_800, left or asked)


def test_a_credential_that_ends_within_the_second_signs_nothing() -> None:
    with pytest.raises(PresignerFault):
        real_lifetime(60, WHOLE, WHOLE + timedelta(milliseconds=999))


@pytest.mark.parametrize(
    "date", [NOW.replace(tzinfo=None), NOW.astimezone(timezone(timedelta(hours=2)))], ids=["naive", "not UTC"]
)
async def test_a_date_that_is_not_utc_is_refused(date: datetime) -> None:
    """Signed as it stands, it would be hours off."""
    (answer,) = await presigner().grant([replace(GET, date=date)])
    assert isinstance(answer, FileFault)


# --- names ----------------------------------------------------------------------------------------------


async def test_links_are_signed_for_the_public_name_and_uploads_for_the_endpoint() -> None:
    signer = presigner(endpoint="http://10.0.0.1:9000", public_endpoint="https://files.example")
    assert (await one(signer, GET)).url.startswith("http://10.0.0.1:9000/bucket/a/key?")
    assert (await one(signer, replace(GET, public=True))).url.startswith("https://files.example/bucket/a/key?")


async def test_without_a_public_name_links_are_signed_for_the_endpoint() -> None:
    grant = await one(presigner(endpoint="http://10.0.0.1:9000"), replace(GET, public=True))
    assert urlsplit(grant.url).netloc == "10.0.0.1:9000"


async def test_at_aws_the_bucket_is_in_the_host() -> None:
    grant = await one(presigner(endpoint="https://s3.eu-west-1.amazonaws.com"), GET)
    assert grant.url.startswith("https://bucket.s3.eu-west-1.amazonaws.com/a/key?")


async def test_the_question_for_a_region_needs_no_region() -> None:
    async def unasked(bucket: str) -> str:
        raise AssertionError(bucket)

    grant = await presigner(region_of=unasked).location_grant("bucket")
    assert grant.method == "GET"
    assert urlsplit(grant.url).path == "/bucket"
    assert "%2Fus-east-1%2Fs3%2F" in grant.url
    assert grant.url.split("X-Amz-SignedHeaders=host&location=&")[1].startswith("X-Amz-Signature=")


async def test_a_bucket_whose_region_is_unknown_refuses_its_own_requests_only() -> None:
    async def of_one(bucket: str) -> str:
        if bucket == "bucket":
            raise fault("connection_refused")
        return "us-east-1"

    answers = await presigner(region_of=of_one).grant([GET, replace(GET, bucket="other"), GET])
    assert [type(answer) for answer in answers] == [StoreFault, Grant, StoreFault]


async def test_a_key_that_is_no_utf8_is_refused_alone() -> None:
    answers = await presigner().grant([replace(GET, key="a\udcff"), GET])
    assert isinstance(answers[0], Fault)
    assert answers[0].code == "key_refused"
    assert isinstance(answers[1], Grant)


# --- headers --------------------------------------------------------------------------------------------


def test_everything_that_is_bound_is_sent() -> None:
    request = GrantRequest(
        Operation.PUT,
        "b",
        "k",
        60,
        size=5,
        content_type="text/plain",
        checksum="md5:" + "00" * 16,
        headers={"x-amz-meta-a": " spaced  out "},
        if_none_match=True,
        if_match='"etag"',
    )
    assert bound_headers(request) == {
        "Content-Length": "5",
        "Content-Type": "text/plain",
        "Content-MD5": "AAAAAAAAAAAAAAAAAAAAAA==",
        "If-None-Match": "*",
        "If-Match": '"etag"',
        "x-amz-meta-a": "spaced  out",
    }


def test_a_crc_and_what_s3_asks_about_checksums_are_bound() -> None:
    put = GrantRequest(Operation.PUT, "b", "k", 60, checksum="crc64nvme:ae8b14860a799888")
    assert bound_headers(put) == {"x-amz-checksum-crc64nvme": "rosUhgp5mIg="}
    of_whole = {"checksum_algorithm": "CRC64NVME", "checksum_type": "FULL_OBJECT"}
    assert bound_headers(GrantRequest(Operation.MULTIPART_CREATE, "b", "k", 60, **of_whole)) == {  # type: ignore[arg-type] # by name
        "x-amz-checksum-algorithm": "CRC64NVME",
        "x-amz-checksum-type": "FULL_OBJECT",
    }
    head = GrantRequest(Operation.HEAD, "b", "k", 60, checksum_mode="ENABLED")
    assert bound_headers(head) == {"x-amz-checksum-mode": "ENABLED"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"headers": {"Content-MD5": "x", "content-md5": "y"}},
        {"headers": {"content-type": "text/html"}, "content_type": "text/plain"},
        {"headers": {"AUTHORIZATION": "x"}},
        {"headers": {"X-Amz-Content-SHA256": "x"}},
        {"headers": {"": "x"}},
        {"headers": {"a b": "x"}},
        {"headers": {"x-amz-meta-a": "a\nb"}},
        {"headers": {"x-amz-meta-a": "a\x00b"}},
        {"content_type": "text/plain\r\nx: y"},
        {"if_match": "a\r\nb"},
        {"checksum": "md5:" + "AB" * 16},
        {"checksum": "md5:" + "ab" * 16 + "-2"},
        {"checksum": "crc32:00000000"},
        {"checksum": "crc64nvme:" + "ab" * 4},
        {"checksum_mode": "ENABLED"},
        {"checksum_algorithm": "CRC64NVME"},
        {"operation": Operation.HEAD, "checksum_mode": "enabled"},
        {"operation": Operation.MULTIPART_CREATE, "checksum_type": "FULL"},
        {"size": -1},
    ],
    ids=repr,
)
def test_a_header_that_could_be_read_in_two_ways_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(FileFault) as caught:
        bound_headers(replace(GrantRequest(Operation.PUT, "b", "k", 60), **wrong))
    assert caught.value.code == "grant_refused"
