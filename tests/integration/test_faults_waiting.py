"""The fault matrix, first half: the daemon waits for a store or a watch that fails as a whole.

Each is told once with a code of its own, and once when it is over; no file is charged for it, none is
quarantined, all arrive. `test_faults_files` has the other half: what is one file's own.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from presignd.model import State
from tests.faulty_s3 import BUCKET, FOREVER, FaultyS3
from tests.running import Running, config, watch
from tests.running import running_in_debug as running

FILES = {"a": b"", "b": b"some bytes", "c": bytes(3 << 20)}

Matrix = dict[str, tuple[dict[str, Any], str]]

UNAVAILABLE: Matrix = {
    "503 SlowDown": ({"status": 503, "code": "SlowDown"}, "slow_down"),
    "503 without a code": ({"status": 503, "body": b""}, "server_error"),
    "503 with Retry-After": ({"status": 503, "body": b"", "headers": {"Retry-After": "1"}}, "slow_down"),
    "429": ({"status": 429, "body": b""}, "slow_down"),
    "429 with Retry-After": ({"status": 429, "code": "TooManyRequests", "headers": {"Retry-After": "1"}}, "slow_down"),
    "500": ({"status": 500, "code": "InternalError"}, "server_error"),
    "502 in HTML": ({"status": 502, "body": b"<html><h1>Bad gateway</h1></html>"}, "server_error"),
    "invalid XML": ({"status": 500, "body": b"<Error><Code>Intern"}, "server_error"),
    "reset before the body": ({"reset": "before"}, "connection_reset"),
    "reset during the body": ({"reset": "during"}, "connection_reset"),
    "reset after the body": ({"reset": "after"}, "connection_reset"),
    "no answer": ({"hang": "after"}, "timeout"),
    "no taking of the body": ({"hang": "before"}, "timeout"),
    "a website": ({"status": 404, "body": b"<html>not found</html>"}, "bad_response"),
}
"""What a store that does not serve answers to everything, and its code."""

REFUSED: Matrix = {
    "403 AccessDenied": ({"status": 403, "code": "AccessDenied"}, "access_denied"),
    "403 SignatureDoesNotMatch": ({"status": 403, "code": "SignatureDoesNotMatch"}, "signature_mismatch"),
    "403 InvalidAccessKeyId": ({"status": 403, "code": "InvalidAccessKeyId"}, "invalid_access_key"),
    "403 without a body": ({"status": 403, "body": b""}, "access_denied"),
    "403 RequestTimeTooSkewed": ({"status": 403, "code": "RequestTimeTooSkewed"}, "clock_skew"),
    "403 ExpiredToken": ({"status": 403, "code": "ExpiredToken"}, "expired_credentials"),
    "400 ExpiredToken": ({"status": 400, "code": "ExpiredToken"}, "expired_credentials"),
    "404 NoSuchBucket": ({"status": 404, "code": "NoSuchBucket"}, "no_such_bucket"),
    "301 PermanentRedirect": ({"status": 301, "code": "PermanentRedirect"}, "redirected"),
    "307 TemporaryRedirect": ({"status": 307, "code": "TemporaryRedirect"}, "redirected"),
    "400 another region": (
        {"status": 400, "body": b"<Error><Code>AuthorizationQueryParametersError</Code><Message>the region 'us-east-1'"
         b" is wrong; expecting 'eu-7'</Message><Region>eu-7</Region></Error>"},
        "wrong_region",
    ),
    "507": ({"status": 507, "body": b""}, "store_full"),
    "XMinioStorageFull": ({"status": 507, "code": "XMinioStorageFull"}, "store_full"),
    "QuotaExceeded": ({"status": 403, "code": "QuotaExceeded"}, "store_full"),
    "501": ({"status": 501, "code": "NotImplemented"}, "not_implemented"),
    "411": ({"status": 411, "code": "MissingContentLength"}, "rejected"),
    "400 BadDigest": ({"status": 400, "code": "BadDigest"}, "bad_digest"),
}  # fmt: skip
"""What a store answers that refuses everything of one watch, and its code."""


def rows(matrix: Matrix) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("how", "code"), list(matrix.values()), ids=list(matrix))


def drop_all(daemon: Running) -> None:
    for name, content in FILES.items():
        daemon.drop(name, content)


async def idle(daemon: Running) -> None:
    """Wait until nothing is in flight: all that was begun has met the fault."""
    await daemon.said_by_now("file.queued")
    await daemon.until(lambda: not daemon.work.dispatcher.at_work, "an end of what was in flight")
    await asyncio.sleep(0.1)


async def assert_waited_for(daemon: Running, store: FaultyS3, away: str, back: str, code: str) -> None:
    """After healing: all there, nobody charged, one event each way."""
    await daemon.done(len(FILES))
    assert daemon.codes(away) == [code]
    assert len(daemon.events(back)) == 1
    assert daemon.events("file.quarantined", "upload.retry") == []
    assert {key: store.objects[BUCKET, key].body for key in FILES} == FILES
    assert sorted(daemon.links()) == sorted(FILES)
    finished = await daemon.ledger.in_state(State.FINISHED)
    assert [version.faults for version in finished] == [0] * len(FILES)


@rows(UNAVAILABLE)
async def test_a_store_that_does_not_serve_is_waited_for(
    faulty_s3: FaultyS3, tmp_path: Path, how: dict[str, Any], code: str
) -> None:
    faulty_s3.fault(times=FOREVER, **how)
    timeout = 2.0 if "hang" in how else 20.0
    async with running(config(tmp_path, faulty_s3, upload={"timeout": timeout})) as daemon:
        drop_all(daemon)
        await daemon.said_by_now("store.unreachable")
        await idle(daemon)
        assert daemon.events("file.done") == []
        faulty_s3.heal()
        await assert_waited_for(daemon, faulty_s3, "store.unreachable", "store.back", code)


@rows(REFUSED)
async def test_a_watch_that_is_refused_is_blocked_until_it_no_longer_is(
    faulty_s3: FaultyS3, tmp_path: Path, how: dict[str, Any], code: str
) -> None:
    faulty_s3.fault(times=FOREVER, **how)
    async with running(config(tmp_path, faulty_s3)) as daemon:
        drop_all(daemon)
        [blocked] = await daemon.said_by_now("watch.blocked")
        assert (blocked["watch"], blocked["bucket"]) == ("drop", BUCKET)
        await idle(daemon)
        assert daemon.events("file.done", "store.unreachable") == []
        faulty_s3.heal()
        await assert_waited_for(daemon, faulty_s3, "watch.blocked", "watch.unblocked", code)


async def test_a_refused_connection_is_waited_for(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    faulty_s3.stop()
    async with running(config(tmp_path, faulty_s3)) as daemon:
        drop_all(daemon)
        await daemon.said_by_now("store.unreachable")
        faulty_s3.start()
        await assert_waited_for(daemon, faulty_s3, "store.unreachable", "store.back", "connection_refused")


@pytest.mark.parametrize(
    ("endpoint", "code"),
    [
        ("http://store.invalid:9000", "dns"),
        ("https://127.0.0.1:{port}", "tls"),
        ("http://127.0.0.1:{ssh}", "bad_response"),
    ],
    ids=["a name that is none", "https to a plain port", "not HTTP"],
)
async def test_an_endpoint_that_is_none_is_told_once_and_waited_for(
    faulty_s3: FaultyS3, tmp_path: Path, endpoint: str, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")
        writer.close()

    ssh = await asyncio.start_server(greet, "127.0.0.1", 0)
    ports = {"port": faulty_s3.endpoint.rpartition(":")[2], "ssh": ssh.sockets[0].getsockname()[1]}
    async with running(config(tmp_path, faulty_s3, endpoint=endpoint.format(**ports))) as daemon:
        drop_all(daemon)
        await daemon.said_by_now("store.unreachable")
        await asyncio.sleep(0.3)
        assert daemon.codes("store.unreachable") == [code]
        assert daemon.events("store.back", "file.quarantined", "upload.retry", "file.done") == []
        [blocked] = daemon.view.blocked()
        assert blocked.code == code
    ssh.close()


@pytest.mark.parametrize("how", [{"status": 500}, {"status": 403, "code": "AccessDenied"}, {"reset": "during"}])
async def test_hundreds_of_files_meet_an_absent_store_with_one_event_each_way(
    faulty_s3: FaultyS3, tmp_path: Path, how: dict[str, Any]
) -> None:
    faulty_s3.fault(times=FOREVER, **how)
    async with running(config(tmp_path, faulty_s3), debug=False) as daemon:
        daemon.drop("first")
        await daemon.until(daemon.view.blocked, "a shut gate")
        await idle(daemon)
        for number in range(500):
            daemon.drop(f"{number:04}")
        await daemon.said_by_now("file.queued", 501)
        faulty_s3.heal()
        await daemon.done(501)
        told = daemon.events("store.unreachable", "store.back", "watch.blocked", "watch.unblocked")
        assert len(told) == 2
        assert daemon.events("upload.retry", "file.quarantined") == []


async def test_of_two_watches_only_the_refused_one_waits(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    faulty_s3.buckets.add("good")
    faulty_s3.fault(bucket=BUCKET, status=403, code="AccessDenied", times=FOREVER)
    both = watch(tmp_path), watch(tmp_path, "other", bucket="good")
    async with running(config(tmp_path, faulty_s3, *both)) as daemon:
        daemon.drop("bad")
        await daemon.said_by_now("watch.blocked")
        for number in range(20):
            daemon.drop(f"{number}", watch="other")
        await daemon.done(20)
        assert [(view.watch, view.code) for view in daemon.view.blocked()] == [("drop", "access_denied")]
        faulty_s3.heal()
        await daemon.done(21)
        assert daemon.events("store.unreachable", "upload.retry") == []


async def test_a_bucket_that_fails_inside_blocks_its_own_watch_alone(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    """500 for everything in one bucket: the store serves others, so neither store nor files are at fault."""
    faulty_s3.buckets.add("good")
    faulty_s3.fault(bucket=BUCKET, status=500, code="InternalError", times=FOREVER)
    both = watch(tmp_path), watch(tmp_path, "other", bucket="good")
    async with running(config(tmp_path, faulty_s3, *both, upload={"attempts": 2})) as daemon:
        daemon.drop("bad")
        [blocked] = await daemon.said_by_now("watch.blocked")
        assert (blocked["watch"], blocked["error_code"]) == ("drop", "server_error")
        daemon.drop("fine", watch="other")
        await daemon.done(1)
        faulty_s3.heal()
        await daemon.done(2)
        assert daemon.events("store.unreachable", "upload.retry", "file.quarantined") == []
        assert len(daemon.events("watch.blocked", "watch.unblocked")) == 2


async def test_a_bucket_without_room_for_a_large_file_says_nothing_about_the_store(
    faulty_s3: FaultyS3, tmp_path: Path
) -> None:
    """The other bucket takes nothing at all: asked by it alone, the store would go away and come back for ever."""
    faulty_s3.buckets.add("full")
    faulty_s3.fault("PUT", "large", status=403, code="QuotaExceeded", times=FOREVER)
    faulty_s3.fault("PUT", bucket="full", status=403, code="QuotaExceeded", times=FOREVER)
    both = watch(tmp_path), watch(tmp_path, "other", bucket="full")
    async with running(config(tmp_path, faulty_s3, *both)) as daemon:
        daemon.drop("large", bytes(3 << 20))
        await daemon.said_by_now("upload.retry", 5)
        daemon.drop("small")
        await daemon.done()
        assert set(daemon.codes("upload.retry")) == {"store_full"}
        assert daemon.events("store.unreachable", "watch.blocked", "file.quarantined") == []
        faulty_s3.heal()
        await daemon.done(2)


@pytest.mark.parametrize(("status", "code"), [(501, "not_implemented"), (500, "server_error")])
@pytest.mark.parametrize("order", [1, -1])
async def test_a_header_that_the_store_does_not_know_blocks_its_watch_alone_and_once(
    faulty_s3: FaultyS3, tmp_path: Path, status: int, code: str, order: int
) -> None:
    """Another watch of the same bucket goes on, and shows that the store is there."""
    faulty_s3.fault(when=lambda _, key: key.startswith("cold/"), status=status, times=FOREVER)
    cold = watch(tmp_path, "cold", key="cold/{path}", headers={"x-amz-storage-class": "GLACIER"})
    both = (cold, watch(tmp_path))[::order]
    async with running(config(tmp_path, faulty_s3, *both)) as daemon:
        daemon.drop("bad", watch="cold")
        await daemon.said_by_now("watch.blocked")
        daemon.drop("fine")
        await daemon.done()
        await daemon.until(lambda: len(faulty_s3.seen("PUT", "cold/.presignd-check")) > 20, "many probes")
        assert daemon.codes("watch.blocked") == [code]
        assert daemon.events("store.unreachable", "watch.unblocked", "upload.retry", "file.quarantined") == []


async def test_a_store_that_dies_while_the_keys_change_tells_each_once(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    async with running(config(tmp_path, faulty_s3)) as daemon:
        faulty_s3.stop()
        drop_all(daemon)
        await daemon.said_by_now("store.unreachable")
        faulty_s3.fault(status=403, code="InvalidAccessKeyId", times=FOREVER)
        faulty_s3.start()
        await daemon.said_by_now("watch.blocked")
        await idle(daemon)
        faulty_s3.stop()
        await asyncio.sleep(0.2)
        faulty_s3.heal()
        faulty_s3.start()
        await daemon.done(len(FILES))
        told = [event["event"] for event in daemon.events() if event["event"].startswith(("store.", "watch."))]
        # A request on its way as the store came back may be refused before the next probe tells of the store.
        assert sorted(told[2:4]) == ["store.back", "watch.blocked"]
        assert [told[1], *told[4:]] == ["store.unreachable", "watch.unblocked"]
        assert daemon.events("upload.retry", "file.quarantined") == []


@pytest.mark.parametrize("form", ["seconds", "date"])
async def test_retry_after_is_waited_out_before_anything_is_sent(
    faulty_s3: FaultyS3, tmp_path: Path, form: str
) -> None:
    async with running(config(tmp_path, faulty_s3)) as daemon:
        daemon.drop("first")
        await daemon.done()
        at = format_datetime(faulty_s3.now() + timedelta(seconds=3), usegmt=True)
        value = "2" if form == "seconds" else at
        faulty_s3.fault(method="PUT", status=503, code="SlowDown", headers={"Retry-After": value})
        daemon.drop("second")
        await daemon.done(2)
    refused = next(seen for seen in faulty_s3.requests if seen.status == 503)
    after = [seen.at - refused.at for seen in faulty_s3.requests if seen.at > refused.at]
    assert min(after) >= timedelta(seconds=1.9 if form == "seconds" else 0.9)
    assert min(after) < timedelta(seconds=4)
