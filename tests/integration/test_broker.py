"""The broker as a process, over HTTP, with a real store: its answers, and who gets them."""

from __future__ import annotations

import hashlib
import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import pytest

from presignd.broker.tokens import new_token
from tests.brokers import Broker, broker_for, get
from tests.stores import Store

BODY = b"what was sent\n"
MD5 = "md5:" + hashlib.md5(BODY).hexdigest()


@pytest.fixture(scope="module")
def bucket(seaweedfs: Store) -> str:
    return seaweedfs.new_bucket()


@pytest.fixture(scope="module")
def broker(seaweedfs: Store, bucket: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with broker_for(tmp_path_factory.mktemp("broker"), seaweedfs) as broker:
        yield broker


@pytest.fixture(scope="module")
def token(broker: Broker, bucket: str) -> str:
    return broker.token("one", bucket, max_size="1MiB", rate="", max_put_expires="1h", headers=["x-amz-meta-*"])


def put(bucket: str, key: str, **more: Any) -> dict[str, Any]:
    asked = {"operation": "put", "bucket": bucket, "key": key, "size": len(BODY), "checksum": MD5, "expires": 600}
    return {**asked, **more}


def send(grant: dict[str, Any], body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    request = urllib.request.Request(
        grant["url"], data=body, method=grant["method"], headers={**grant["headers"], **headers}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, refused.read()


# --- grants ---------------------------------------------------------------------------------------------


def test_a_token_uploads_and_fetches_without_a_key(broker: Broker, token: str, bucket: str) -> None:
    upload, link = broker.grants(
        token, put(bucket, "one/a b.txt", content_type="text/plain"), get(bucket, "one/a b.txt")
    )
    assert send(upload, BODY) == (200, b"")
    assert send(link) == (200, BODY)
    ends = datetime.fromisoformat(link["expires_at"])
    assert timedelta(seconds=590) < ends - datetime.now(UTC) <= timedelta(seconds=600)


def test_a_grant_is_for_its_own_bytes_alone(broker: Broker, token: str, bucket: str) -> None:
    (grant,) = broker.grants(token, put(bucket, "one/bound"))
    assert send(grant, BODY[::-1])[0] == 400
    assert send(grant, BODY + b"more", **{"Content-Length": str(len(BODY) + 4)})[0] == 403
    assert send({**grant, "url": grant["url"].replace("/one/bound", "/one/other")}, BODY)[0] == 403
    assert send(grant, BODY)[0] == 200


def test_answers_stand_in_the_order_asked_and_a_refusal_stops_no_other(broker: Broker, token: str, bucket: str) -> None:
    found = broker.grants(
        token,
        get(bucket, "one/a"),
        get(bucket, "two/a"),
        get("other-bucket", "one/a"),
        put(bucket, "one/a", size=(1 << 20) + 1),
        put(bucket, "one/a", headers={"x-amz-tagging": "a=b"}),
        put(bucket, "one/a", headers={"x-amz-meta-a": "b"}),
        get(bucket, "one/a", expires=0),
        {"operation": "delete", "bucket": bucket, "key": "one/a", "expires": 60},
    )
    codes = [answer["error"]["code"] if "error" in answer else answer["method"] for answer in found]
    assert codes == [
        *("GET", "outside_prefix", "outside_bucket", "too_large", "header_refused", "PUT", "grant_refused"),
        "operation_refused",
    ]


def test_nothing_tells_whether_an_object_exists(broker: Broker, token: str, bucket: str, seaweedfs: Store) -> None:
    """The broker never asks the store for one: what is outside is refused alike, there or not."""
    seaweedfs.write(bucket, "two/there", b"secret")
    there, not_there = broker.grants(token, get(bucket, "two/there"), get(bucket, "two/not-there"))
    assert there == not_there
    seaweedfs.write(bucket, "one/there", b"its own")
    inside, nothing = broker.grants(token, get(bucket, "one/there"), get(bucket, "one/not-there"))
    assert set(inside) == set(nothing)
    assert inside["url"].partition("?")[0].replace("/there", "/not-there") == nothing["url"].partition("?")[0]


def test_expiries_are_cut_and_what_is_told_is_the_truth(broker: Broker, token: str, bucket: str) -> None:
    (grant,) = broker.grants(token, put(bucket, "one/long", expires=7 * 86400))
    assert "X-Amz-Expires=3600&" in grant["url"]
    lives = datetime.fromisoformat(grant["expires_at"]) - datetime.fromisoformat(grant["signer_date"])
    assert lives == timedelta(hours=1)


def test_me_tells_a_token_what_it_may_have(broker: Broker, token: str, bucket: str) -> None:
    status, me, headers = broker.call("/v1/me", token)
    assert status == 200
    assert me == {
        "name": "one",
        "bucket": bucket,
        "prefix": "one/",
        "operations": ["put", "multipart", "head", "get"],
        "headers": ["x-amz-meta-*"],
        "max_size": 1 << 20,
        "max_put_expires": 3600,
        "max_link_expires": 604_800,
        "max_stable_link": None,
        "links_url": None,
        "max_grants": 1000,
        "versions": True,
        "checksums": ["md5", "sha256", "crc64nvme", "crc32c"],
        "rate": None,
        "valid_until": None,
        "credential_expires_at": None,
    }
    assert abs(parsedate_to_datetime(headers["date"]) - datetime.now(UTC)) < timedelta(seconds=30)
    assert headers["cache-control"] == "no-store"


# --- refusals of a whole call ---------------------------------------------------------------------------


def raw(broker: Broker, *lines: str, body: bytes = b"") -> bytes:
    """Send a request as it stands, and read all of the answer."""
    with socket.create_connection(("127.0.0.1", broker.port), timeout=30) as sock:
        sock.sendall("".join(f"{line}\r\n" for line in (*lines, "Connection: close", "")).encode() + body)
        answer = b""
        while chunk := sock.recv(65536):
            answer += chunk
    return answer


@pytest.mark.parametrize(
    "headers",
    [
        [],
        ["Authorization: Bearer "],
        ["Authorization: Bearer psd_" + "x" * 43],
        ["Authorization: Basic {token}"],
        ["Authorization: {token}"],
        ["Authorization: Bearer {token}x"],
        ["Authorization: Bearer {token}", "Authorization: Bearer {token}"],
        ["Authorization: Bearer " + "x" * 5000],
        ["X-Authorization: Bearer {token}"],
        ["Cookie: token={token}"],
    ],
)
@pytest.mark.parametrize("call", ["GET /v1/me", "POST /v1/grants"])
def test_without_a_valid_token_nothing_is_answered_but_401(
    broker: Broker, token: str, headers: list[str], call: str
) -> None:
    given = [line.format(token=token) for line in headers]
    answer = raw(broker, f"{call} HTTP/1.1", "Host: x", "Content-Length: 0", *given)
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"WWW-Authenticate: Bearer" in answer
    assert b'"code": "unauthorized"' in answer
    assert b"as a bearer token" in answer, "it says how to send one"


def test_a_stranger_cannot_have_a_body_read(broker: Broker) -> None:
    """Who it is is known by the headers: the answer comes before a byte of the body."""
    assert raw(broker, "POST /v1/grants HTTP/1.1", "Host: x", "Content-Length: 1000000").startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "Invalid JSON"),
        (b"[]", "object"),
        (b'{"grants": 5}', "grants"),
        (b'{"grants": [], "more": 1}', "more"),
        (b'{"grants": [{"operation": "copy", "bucket": "b", "key": "k", "expires": 1}]}', "grants.0.operation"),
        (b'{"grants": [{"operation": "put", "bucket": "b", "key": "k", "expires": "1"}]}', "grants.0.expires"),
        (b"[" * 100_000, "recursion"),
        (b"\xff\xfe", "Invalid JSON"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_is_no_batch_is_a_bad_request_that_names_the_field(
    broker: Broker, token: str, body: bytes, message: str
) -> None:
    status, answer, _ = broker.call("/v1/grants", token, body)
    assert (status, answer["error"]["code"]) == (400, "bad_request")
    assert message in answer["error"]["message"]


def test_a_request_with_a_field_that_the_broker_does_not_know_is_refused_alone(
    broker: Broker, token: str, bucket: str
) -> None:
    known = get(bucket, "one/a")
    first, refused, last = broker.grants(token, known, {**known, "checksum_moods": "ENABLED"}, known)
    assert refused == {"error": {"code": "unknown_field", "message": "checksum_moods: no such field"}}
    assert first["url"].startswith("http")
    assert last["url"] == first["url"]


def test_more_than_a_thousand_grants_and_a_larger_body_are_too_much(broker: Broker, token: str, bucket: str) -> None:
    assert len(broker.grants(token, *[get(bucket, f"one/{n}") for n in range(1000)])) == 1000
    status, answer, _ = broker.call("/v1/grants", token, {"grants": [get(bucket, "one/a")] * 1001})
    assert (status, answer["error"]["code"]) == (413, "too_many_grants")
    status, answer, _ = broker.call("/v1/grants", token, b" " * (5 << 20))
    assert (status, answer["error"]["code"]) == (413, "body_too_large")


def test_other_paths_methods_and_types_have_their_own_status(broker: Broker, token: str) -> None:
    assert broker.call("/v2/grants", token)[0] == 404
    status, answer, _ = broker.call("/v1/grants", token)
    assert (status, answer["error"]["code"]) == (405, "method_not_allowed")
    assert broker.call("/v1/grants", token, b"{}", Content_Type="text/plain")[0] == 415
    assert broker.call("/v1/grants", token, b"{}", Content_Encoding="gzip")[0] == 400


def test_a_rate_is_answered_with_when_to_ask_again(broker: Broker, bucket: str) -> None:
    slow = broker.token("slow", bucket, rate="10/m")
    assert len(broker.grants(slow, *[get(bucket, "slow/a")] * 10)) == 10
    status, answer, headers = broker.call("/v1/grants", slow, {"grants": [get(bucket, "slow/a")]})
    assert (status, answer["error"]["code"]) == (429, "rate_limited")
    assert 1 <= int(headers["retry-after"]) <= 60


# --- tokens ---------------------------------------------------------------------------------------------


def test_a_revoked_token_is_refused_at_once_on_a_connection_that_is_open(broker: Broker, bucket: str) -> None:
    secret = broker.token("gone", bucket)
    with socket.create_connection(("127.0.0.1", broker.port), timeout=30) as sock:
        asked = f"GET /v1/me HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secret}\r\n\r\n".encode()
        sock.sendall(asked)
        assert sock.recv(65536).startswith(b"HTTP/1.1 200 ")
        broker.revoke("gone")
        sock.sendall(asked)
        assert sock.recv(65536).startswith(b"HTTP/1.1 401 ")


def test_a_token_revoked_while_its_body_comes_gets_nothing(broker: Broker, bucket: str) -> None:
    secret = broker.token("slow-body", bucket)
    body = json.dumps({"grants": [get(bucket, "slow-body/a")]}).encode()
    head = f"POST /v1/grants HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secret}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", broker.port), timeout=30) as sock:
        sock.sendall(head.encode() + body[:-1])
        broker.until(lambda: "in_flight 1.0" in broker.metrics(), "a request in flight")
        broker.revoke("slow-body")
        sock.sendall(body[-1:])
        assert sock.recv(65536).startswith(b"HTTP/1.1 401 ")


def test_a_token_that_has_ended_is_refused(broker: Broker, bucket: str) -> None:
    ended = broker.token("ended", bucket, valid_until="2020-01-01")
    status, answer, _ = broker.call("/v1/me", ended)
    assert (status, answer["error"]["code"]) == (401, "token_expired")


# --- log and metrics ------------------------------------------------------------------------------------


def test_the_audit_log_tells_who_asked_for_what_and_what_came_of_it(broker: Broker, token: str, bucket: str) -> None:
    part = {"operation": "multipart.part", "upload_id": "u", "size": 5, "checksum": MD5, "expires": 60}
    parts = [{**part, "bucket": bucket, "key": "one/audited", "part_number": number} for number in range(1, 101)]
    broker.grants(token, put(bucket, "one/audited"), get(bucket, "two/audited"), *parts)
    broker.until(lambda: any(event.get("count") == 100 for event in broker.events("grant.issued")), "the last line")
    issued = [event for event in broker.events("grant.issued") if event["key"] == "one/audited"]
    assert [(e["by"], e["operation"], e["bucket"], e.get("count", 1)) for e in issued] == [
        ("one", "put", bucket, 1),
        ("one", "multipart.part", bucket, 100),
    ]
    refused = broker.told("grant.refused", key="two/audited")
    assert (refused["by"], refused["error_code"], refused["level"]) == ("one", "outside_prefix", "warning")


def test_metrics_hold_no_key_path_or_secret(broker: Broker, token: str, bucket: str) -> None:
    broker.grants(token, put(bucket, "one/a-path-nobody-shall-see"))
    shown = broker.metrics()
    assert 'presignd_broker_grants_total{operation="put",result="granted",token="one"}' in shown
    assert "a-path-nobody-shall-see" not in shown
    assert token not in shown


def test_health_and_readiness_are_told_to_anybody(broker: Broker) -> None:
    assert broker.call("/healthz")[:2] == (200, {"status": "ok"})
    assert broker.call("/readyz")[:2] == (200, {"status": "ok"})


# --- guesses ------------------------------------------------------------------------------


def test_an_unknown_token_costs_no_look_at_every_file(broker: Broker) -> None:
    """Guessing is answered alike, again and again."""
    assert {broker.call("/v1/me", new_token())[0] for _ in range(50)} == {401}
