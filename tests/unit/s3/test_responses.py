"""Responses: which fault a refusal is, and that no input breaks the parser."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from presignd.errors import CODES, BucketFault, Fault, FileFault, RetryFault, StoreFault, WatchFault
from presignd.s3.responses import LONGEST_RETRY_AFTER, S3_CODES, STATUSES, Response, fault_of

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
DATE = "Fri, 02 Jan 2026 03:04:05 GMT"


def xml(code: str = "", message: str = "", more: str = "") -> bytes:
    return f"<Error><Code>{code}</Code><Message>{message}</Message>{more}</Error>".encode()


def read(
    status: int,
    body: bytes = b"",
    headers: dict[str, str] | None = None,
    *,
    left: float = 3600,
    offset: float | None = 0.0,
) -> Fault:
    """Read a refusal of a grant that has ``left`` seconds to live, from a store ``offset`` seconds ahead."""
    answer = Response(status, headers or {}, body)
    return fault_of(answer, expires_at=NOW + timedelta(seconds=left), now=NOW, clock_offset=offset)


def test_every_code_there_is_has_a_row_in_the_one_table() -> None:
    assert {*S3_CODES.values(), *STATUSES.values()} <= set(CODES)


@pytest.mark.parametrize(
    ("status", "s3_code", "ours", "kind"),
    [
        (403, "AccessDenied", "access_denied", WatchFault),
        (403, "SignatureDoesNotMatch", "signature_mismatch", WatchFault),
        (403, "InvalidAccessKeyId", "invalid_access_key", WatchFault),
        (403, "RequestTimeTooSkewed", "clock_skew", WatchFault),
        (400, "ExpiredToken", "expired_credentials", WatchFault),
        (403, "InvalidToken", "expired_credentials", WatchFault),
        (404, "NoSuchBucket", "no_such_bucket", WatchFault),
        (403, "", "access_denied", WatchFault),
        (404, "", "no_such_bucket", WatchFault),
        (401, "", "access_denied", WatchFault),
        (407, "", "proxy", StoreFault),
        (408, "", "timeout", StoreFault),
        (429, "", "slow_down", StoreFault),
        (503, "SlowDown", "slow_down", StoreFault),
        (503, "", "server_error", StoreFault),
        (500, "InternalError", "server_error", StoreFault),
        (599, "", "server_error", StoreFault),
        (507, "", "store_full", BucketFault),
        (507, "XMinioStorageFull", "store_full", BucketFault),
        (400, "XMinioAdminBucketQuotaExceeded", "store_full", BucketFault),
        (403, "QuotaExceeded", "store_full", BucketFault),
        (501, "", "not_implemented", BucketFault),
        (501, "NotImplemented", "not_implemented", BucketFault),
        (503, "SlowDownWrite", "slow_down", StoreFault),
        (503, "XMinioServerNotInitialized", "slow_down", StoreFault),
        (503, "ErrRequestBytesExceed", "slow_down", StoreFault),
        (429, "ErrTooManyRequest", "slow_down", StoreFault),
        (400, "ThrottlingException", "slow_down", StoreFault),
        (403, "InvalidTokenId", "expired_credentials", WatchFault),
        (403, "InvalidSecurity", "invalid_access_key", WatchFault),
        (400, "EntityTooLarge", "too_large", FileFault),
        (413, "EntityTooLarge", "too_large", FileFault),
        (413, "", "body_limit", FileFault),
        (403, "UserSuspended", "account_suspended", WatchFault),
        (403, "AccountProblem", "account_suspended", WatchFault),
        (400, "KeyTooLong", "key_refused", FileFault),
        (409, "XMinioObjectExistsAsDirectory", "key_refused", FileFault),
        (400, "XMinioParentIsObject", "key_refused", FileFault),
        (409, "ExistingObjectIsFile", "key_refused", FileFault),
        (400, "IncompleteBody", "bad_digest", RetryFault),
        (400, "BadDigest", "bad_digest", RetryFault),
        (400, "XAmzContentSHA256Mismatch", "bad_digest", RetryFault),
        (409, "ConditionalRequestConflict", "precondition_failed", RetryFault),
        (409, "OperationAborted", "precondition_failed", RetryFault),
        (412, "", "precondition_failed", RetryFault),
        (411, "MissingContentLength", "rejected", RetryFault),
        (405, "", "rejected", RetryFault),
        (400, "SomethingNew", "rejected", RetryFault),
        (301, "PermanentRedirect", "redirected", WatchFault),
        (307, "", "redirected", WatchFault),
    ],
)
def test_each_refusal_has_its_code(status: int, s3_code: str, ours: str, kind: type[Fault]) -> None:
    problem = read(status, xml(s3_code) if s3_code else b"")
    assert problem.code == ours
    assert isinstance(problem, kind)
    assert str(status) in problem.message


@pytest.mark.parametrize(
    ("status", "s3_code", "message"),
    [
        (400, "EntityTooLarge", "Upload exceeds quota."),
        (413, "EntityTooLarge", "Upload exceeds quota."),
        (403, "AccessDenied", "Cannot upload files, storage cap exceeded. See the Caps & Alerts page"),
        (403, "SomethingOfTheirOwn", "Bucket quota exceeded"),
        (403, "AccessDenied", "You have exceeded the storage quota of this bucket"),
    ],
)
def test_a_store_without_room_is_that_whatever_code_it_has_for_it(status: int, s3_code: str, message: str) -> None:
    """Swift says so under the code for an object that is too large, Backblaze under that for a lack of rights."""
    assert read(status, xml(s3_code, message)).code == "store_full"


def test_a_name_with_the_word_quota_in_a_refusal_is_no_want_of_room() -> None:
    """AWS names the object that access was denied to."""
    told = "not authorized to perform: s3:PutObject on resource: arn:aws:s3:::quota-reports/quota/a.pdf because no"
    assert read(403, xml("AccessDenied", told)).code == "access_denied"


def test_the_header_that_a_store_does_not_implement_is_named() -> None:
    told = "A header you provided implies functionality that is not implemented"
    problem = read(501, xml("NotImplemented", told, "<Header>If-None-Match</Header>"))
    assert "501 NotImplemented If-None-Match" in problem.message


def test_a_proxys_page_for_a_body_that_is_too_large_names_the_proxys_limit() -> None:
    problem = read(413, b"<html><title>413 Request Entity Too Large</title><center>nginx</center></html>")
    assert "a proxy before the store" in problem.message
    assert "client_max_body_size" in problem.fix


@pytest.mark.parametrize(
    ("status", "s3_code", "message"),
    [
        (400, "AuthorizationQueryParametersError", "Error parsing the X-Amz-Credential; the region 'a' is wrong"),
        (400, "AuthorizationHeaderMalformed", "the region 'us-east-1' is wrong"),
        (301, "PermanentRedirect", ""),
    ],
)
def test_the_region_that_the_answer_names_is_told(status: int, s3_code: str, message: str) -> None:
    problem = read(status, xml(s3_code, message, "<Region>eu-central-1</Region>"))
    assert problem.code == "wrong_region"
    assert "it names the region eu-central-1" in problem.message
    assert "X-Amz" not in read(301, xml("PermanentRedirect", "", "<Region>a?X-Amz=b</Region>")).message


def test_a_region_named_in_a_header_is_told_too() -> None:
    assert "eu-west-3" in read(301, headers={"x-amz-bucket-region": "eu-west-3"}).message


def test_a_wrong_signature_names_both_keys() -> None:
    """Swift answers SignatureDoesNotMatch to an access key that it doesn't know."""
    fix = read(403, xml("SignatureDoesNotMatch")).fix
    assert "access_key" in fix
    assert "secret_key" in fix


def test_a_website_is_told_from_a_missing_bucket() -> None:
    assert read(404, b"<html>Not here</html>").code == "bad_response"


# --- time -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 403])
@pytest.mark.parametrize("s3_code", ["AccessDenied", "RequestExpired", "SignatureDoesNotMatch", ""])
def test_a_refused_grant_that_has_ended_is_expired_whatever_words_the_server_has(status: int, s3_code: str) -> None:
    assert read(status, xml(s3_code), left=0.5).code == "expired_grant"
    assert read(status, xml(s3_code), left=60).code != "expired_grant"


@pytest.mark.parametrize("s3_code", ["BadDigest", "NoSuchBucket", "QuotaExceeded", "InvalidAccessKeyId"])
def test_what_names_another_cause_is_that_however_old_the_grant_and_whatever_the_clocks_say(s3_code: str) -> None:
    assert read(400, xml(s3_code), left=-10, offset=3600).code == S3_CODES[s3_code]


def test_clocks_that_differ_explain_a_refusal_that_names_no_other_cause() -> None:
    assert read(403, xml("AccessDenied"), offset=3600).code == "clock_skew"
    assert read(403, xml("AccessDenied"), offset=-3600).code == "clock_skew"
    assert read(403, xml("AccessDenied", "Request has expired"), offset=60).code == "clock_skew"
    assert read(403, xml("AccessDenied", "no such luck"), offset=60).code == "access_denied"
    assert read(403, xml("AccessDenied", "Request has expired"), offset=5).code == "access_denied"
    assert read(403, xml("AccessDenied", "Request has expired"), offset=None).code == "access_denied"


def test_a_wrong_secret_key_is_that_though_the_store_shows_another_time() -> None:
    assert read(403, xml("SignatureDoesNotMatch"), offset=3600).code == "signature_mismatch"


# --- elsewhere --------------------------------------------------------------------------------------


def test_another_region_is_named() -> None:
    wrong = xml("AuthorizationHeaderMalformed", "the region 'us-east-1' is wrong", "<Region>eu-7</Region>")
    assert read(400, wrong).code == "wrong_region"
    assert read(301, xml("PermanentRedirect", "", "<Region>eu-7</Region>")).code == "wrong_region"


def test_a_region_that_stands_in_every_refusal_tells_nothing() -> None:
    """MinIO with a region set puts it into each error."""
    assert read(403, xml("AccessDenied", "Access Denied.", "<Region>eu-7</Region>")).code == "access_denied"
    assert read(400, xml("AuthorizationQueryParametersError", "Expires is too large")).code == "rejected"


# --- Retry-After and dates ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        (" 7 ", 7.0),
        ("0", 0.0),
        ("Fri, 02 Jan 2026 03:04:35 GMT", 30.0),
        ("Fri, 02 Jan 2026 03:04:35 -0000", 30.0),
        ("Fri, 02 Jan 2026 03:00:00 GMT", 0.0),
        ("3600", LONGEST_RETRY_AFTER),
        ("Sat, 03 Jan 2026 03:04:05 GMT", LONGEST_RETRY_AFTER),
        ("9" * 400, LONGEST_RETRY_AFTER),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("²", None),
        ("1.5", None),
        ("Fri, 02 Jan 99999999999999999999 03:04:35 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date_by_the_stores_own_clock(value: str, seconds: float | None) -> None:
    """Never more than a few minutes: a store that is back sooner is noticed by one small probe."""
    assert Response(503, {"retry-after": value, "date": DATE}).retry_after == seconds


def test_a_retry_after_date_without_a_date_to_compare_it_with_tells_nothing() -> None:
    assert Response(503, {"retry-after": DATE}).retry_after is None


def test_retry_after_goes_with_the_fault() -> None:
    assert read(503, xml("SlowDown"), {"retry-after": "7"}).retry_after == 7.0


def test_a_date_at_the_calendars_end_is_none() -> None:
    """A broker's clock goes on from its Date: a second later there would be no such time."""
    assert Response(200, {"date": "Fri, 31 Dec 9999 23:59:59 GMT"}).date is None


@pytest.mark.parametrize("zone", ["GMT", "+0000", "-0000", ""])
def test_a_date_is_utc_whatever_its_zone_is_called(zone: str) -> None:
    assert Response(200, {"date": f"Fri, 02 Jan 2026 03:04:05 {zone}"}).date == NOW


# --- hostile ----------------------------------------------------------------------------------------

_words = st.text(st.characters(max_codepoint=0x2FF), max_size=60) | st.from_regex(
    r"\A[A-Z][a-z]{2}, [0-9]{1,30} [A-Z][a-z]{2} [0-9]{1,30} [0-9]{1,9}:[0-9]{2}:[0-9]{2} ([-+][0-9]{1,9}|GMT)?\Z"
)


@given(
    status=st.integers(300, 599),
    headers=st.dictionaries(st.sampled_from(["date", "retry-after", "etag", "x-amz-server-side-encryption"]), _words),
    body=st.binary(max_size=200) | st.builds(xml, st.sampled_from(sorted(S3_CODES)), _words),
    offset=st.none() | st.floats(-1e9, 1e9),
)
def test_whatever_a_server_answers_is_read_as_a_fault(status: int, body: bytes, **rest: Any) -> None:
    problem = read(status, body, rest["headers"], offset=rest["offset"])
    assert problem.code in CODES
    assert problem.retry_after is None or 0 <= problem.retry_after <= LONGEST_RETRY_AFTER
    answer = Response(status, rest["headers"], body)
    assert answer.date is None or answer.date.utcoffset() == timedelta(0)


def test_an_error_message_that_holds_a_signed_query_is_not_told() -> None:
    told = read(403, xml("AccessDenied", "refused http://s/b/k?X-Amz-Signature=abc&amp;X-Amz-Date=1")).message
    assert "X-Amz" not in told
    assert "403 AccessDenied" in told


def test_an_answer_shows_its_body_to_nobody() -> None:
    assert "secret" not in repr(Response(403, {}, b"secret"))


@pytest.mark.parametrize("value", ['"abc"', 'W/"abc"', "abc"])
def test_an_etag_has_no_quotes(value: str) -> None:
    assert Response(200, {"etag": value}).etag == "abc"


def test_an_etag_under_kms_or_a_customers_key_is_opaque() -> None:
    assert Response(200, {"x-amz-server-side-encryption": "aws:kms"}).opaque_etag
    assert Response(200, {"x-amz-server-side-encryption-customer-algorithm": "AES256"}).opaque_etag
    assert not Response(200, {"x-amz-server-side-encryption": "AES256"}).opaque_etag
