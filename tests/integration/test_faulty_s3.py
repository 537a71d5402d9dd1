"""FaultyS3 is a correct S3 until a fault is ordered, and then fails exactly as ordered."""

from __future__ import annotations

import base64
import hashlib
import http.client
import socket
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import pytest
from minio import Minio

from tests.faulty_s3 import FOREVER

if TYPE_CHECKING:
    from tests.faulty_s3 import FaultyS3

Send = Callable[..., tuple[int, dict[str, str], bytes]]


def presigned(key: str, bucket: str = "test-bucket", *, age: int = 0, signed: str = "host", **query: str) -> str:
    date = (datetime.now(UTC) - timedelta(seconds=age)).strftime("%Y%m%dT%H%M%SZ")
    given = {"X-Amz-Date": date, "X-Amz-Expires": "60", "X-Amz-SignedHeaders": signed, **query}
    text = "&".join(f"{name}={quote(value, safe='')}" for name, value in given.items())
    return f"/{bucket}/{quote(key)}?{text}&X-Amz-Signature={'ab' * 32}"


@pytest.fixture
def send(faulty_s3: FaultyS3) -> Send:
    """Send one request over a connection of its own."""

    def send(method: str, target: str, body: bytes | None = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(urlsplit(faulty_s3.endpoint).netloc, timeout=5)
        try:
            connection.request(method, target, body, {k.replace("_", "-"): v for k, v in headers.items()})
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    return send


def md5(body: bytes) -> str:
    return base64.b64encode(hashlib.md5(body).digest()).decode()


def test_an_object_comes_back_as_it_was_put(faulty_s3: FaultyS3, send: Send) -> None:
    status, headers, _ = send("PUT", presigned("a/ü b"), b"hello", Content_Type="text/x", Content_MD5=md5(b"hello"))
    assert (status, headers["etag"]) == (200, '"5d41402abc4b2a76b9719d911017c592"')
    assert faulty_s3.objects["test-bucket", "a/ü b"].body == b"hello"
    status, headers, body = send("GET", presigned("a/ü b"))
    assert (status, body, headers["content-type"]) == (200, b"hello", "text/x")
    status, headers, body = send("HEAD", presigned("a/ü b"))
    assert (status, body, headers["content-length"]) == (200, b"", "5")
    assert send("DELETE", presigned("a/ü b"))[0] == 204
    assert send("GET", presigned("a/ü b"))[0] == 404


def test_every_request_is_remembered(faulty_s3: FaultyS3, send: Send) -> None:
    send("PUT", presigned("k", partNumber="1"), b"body", X_Test="yes")
    (seen,) = faulty_s3.seen("PUT", "k")
    assert (seen.bucket, seen.body, seen.status) == ("test-bucket", b"body", 200)
    assert seen.query["partNumber"] == "1"
    assert seen.headers["x-test"] == "yes"


@pytest.mark.parametrize(
    ("request_for", "headers", "code"),
    [
        ({"age": 61}, {}, b"Request has expired"),
        ({"age": -1000}, {}, b"RequestTimeTooSkewed"),
        ({"bucket": "other"}, {}, b"NoSuchBucket"),
        ({}, {"Content_MD5": md5(b"else")}, b"BadDigest"),
        ({}, {"x_amz_meta_a": "unsigned"}, b"SignatureDoesNotMatch"),
        ({"signed": "host;x-amz-meta-a"}, {}, b"SignatureDoesNotMatch"),
    ],
)
def test_what_s3_refuses_is_refused(
    faulty_s3: FaultyS3, send: Send, request_for: dict[str, Any], headers: dict[str, str], code: bytes
) -> None:
    status, _, body = send("PUT", presigned("k", **request_for), b"body", **headers)
    assert status >= 400
    assert code in body
    assert not faulty_s3.objects


def test_a_request_without_a_signature_is_refused(faulty_s3: FaultyS3, send: Send) -> None:
    status, _, body = send("PUT", "/test-bucket/k", b"body")
    assert (status, b"AccessDenied" in body, faulty_s3.objects) == (403, True, {})


def test_conditions_are_honoured_unless_switched_off(faulty_s3: FaultyS3, send: Send) -> None:
    _, headers, _ = send("PUT", presigned("k"), b"one", If_None_Match="*")
    assert send("PUT", presigned("k"), b"two", If_None_Match="*")[0] == 412
    assert send("PUT", presigned("k"), b"two", If_Match='"else"')[0] == 412
    assert send("PUT", presigned("k"), b"two", If_Match=headers["etag"])[0] == 200
    faulty_s3.conditions = False
    assert send("PUT", presigned("k"), b"three", If_None_Match="*")[0] == 200


def test_a_status_is_answered_as_often_as_ordered_then_all_is_well(faulty_s3: FaultyS3, send: Send) -> None:
    faulty_s3.fault(method="PUT", key="k", times=2, status=503, code="SlowDown", headers={"Retry-After": "7"})
    for _ in range(2):
        status, headers, body = send("PUT", presigned("k"), b"x")
        assert (status, headers["retry-after"]) == (503, "7")
        assert b"<Code>SlowDown</Code>" in body
    assert send("PUT", presigned("k"), b"x")[0] == 200


def test_a_fault_meets_only_what_it_was_ordered_for(faulty_s3: FaultyS3, send: Send) -> None:
    faulty_s3.fault(method="PUT", key="bad", times=FOREVER, status=500, code="InternalError")
    faulty_s3.fault(when=lambda method, key: method == "GET" and key.startswith("x"), status=404, code="NoSuchKey")
    assert send("PUT", presigned("good"), b"x")[0] == 200
    assert [send("PUT", presigned("bad"), b"x")[0] for _ in range(3)] == [500] * 3
    assert send("GET", presigned("x1"))[0] == 404
    faulty_s3.heal()
    assert send("PUT", presigned("bad"), b"x")[0] == 200


@pytest.mark.parametrize(("moment", "kept"), [("before", False), ("during", False), ("after", True)])
def test_a_reset_cuts_the_connection_at_its_moment(faulty_s3: FaultyS3, send: Send, moment: Any, kept: bool) -> None:
    faulty_s3.fault(method="PUT", reset=moment)
    with pytest.raises(OSError, match=r"reset|closed|Broken"):
        send("PUT", presigned("k"), bytes(5_000_000))
    assert (("test-bucket", "k") in faulty_s3.objects) is kept
    (seen,) = faulty_s3.seen("PUT")
    assert seen.status == 0
    assert {"before": 0, "after": 5_000_000}.get(moment, len(seen.body)) == len(seen.body)


def test_an_answer_that_never_comes(faulty_s3: FaultyS3) -> None:
    faulty_s3.fault(hang="after")
    with socket.create_connection(("127.0.0.1", urlsplit(faulty_s3.endpoint).port or 0), timeout=0.3) as client:
        client.sendall(f"GET {presigned('k')} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
        with pytest.raises(TimeoutError):
            client.recv(1)


def test_a_body_of_any_size_or_without_an_end(faulty_s3: FaultyS3, send: Send) -> None:
    faulty_s3.fault(status=500, body_size=10_000_000)
    assert len(send("GET", presigned("k"))[2]) == 10_000_000
    faulty_s3.fault(status=200, body_size=FOREVER)
    connection = http.client.HTTPConnection(urlsplit(faulty_s3.endpoint).netloc, timeout=5)
    connection.request("GET", presigned("k"))
    with connection.getresponse() as answer:
        assert len(answer.read(20_000_000)) == 20_000_000
    connection.close()


def test_an_answer_can_come_before_the_body_was_read(faulty_s3: FaultyS3, send: Send) -> None:
    faulty_s3.fault(method="PUT", status=403, code="AccessDenied", early=True)
    assert send("PUT", presigned("k"), b"small")[0] == 403
    assert faulty_s3.seen("PUT")[0].body == b""


def test_a_wrong_etag_and_an_object_that_gets_lost(faulty_s3: FaultyS3, send: Send) -> None:
    faulty_s3.fault(method="PUT", key="wrong", etag='"00000000000000000000000000000000"')
    faulty_s3.fault(method="PUT", key="lost", lose=True)
    assert send("PUT", presigned("wrong"), b"x")[1]["etag"] == '"00000000000000000000000000000000"'
    assert send("PUT", presigned("lost"), b"x")[0] == 200
    assert send("HEAD", presigned("lost"))[0] == 404


def test_a_redirect_and_xml_that_is_none(faulty_s3: FaultyS3, send: Send) -> None:
    faulty_s3.fault(status=307, headers={"Location": "http://elsewhere.invalid/"}, body=b"")
    faulty_s3.fault(status=500, body=b"<Error><Code>")
    assert send("PUT", presigned("k"), b"x")[1]["location"] == "http://elsewhere.invalid/"
    assert send("PUT", presigned("k"), b"x")[2] == b"<Error><Code>"


def test_its_clock_can_be_off(faulty_s3: FaultyS3, send: Send) -> None:
    faulty_s3.clock_skew = timedelta(hours=1)
    status, headers, body = send("GET", presigned("k"))
    assert (status, b"expired" in body) == (403, True)
    assert parsedate_to_datetime(headers["date"]) > datetime.now(UTC) + timedelta(minutes=59)


def test_stopped_it_refuses_connections_and_started_again_it_has_its_objects(faulty_s3: FaultyS3, send: Send) -> None:
    send("PUT", presigned("k"), b"kept")
    endpoint = faulty_s3.endpoint
    faulty_s3.stop()
    with pytest.raises(ConnectionRefusedError):
        send("GET", presigned("k"))
    faulty_s3.start()
    assert faulty_s3.endpoint == endpoint
    assert send("GET", presigned("k"))[2] == b"kept"


def test_a_client_that_asks_for_the_region_is_told(faulty_s3: FaultyS3) -> None:
    faulty_s3.region = "eu-west-7"
    host = urlsplit(faulty_s3.endpoint).netloc
    client = Minio(host, access_key=faulty_s3.access_key, secret_key=faulty_s3.secret_key, secure=False)
    assert "eu-west-7" in client.presigned_get_object("test-bucket", "k")
    client._http.clear()
