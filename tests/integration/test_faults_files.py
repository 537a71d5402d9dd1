"""The fault matrix, second half: a fault of one file stops only that file.

`test_faults_waiting` has the first half, `test_store` what goes wrong below S3.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from presignd.errors import fault
from presignd.ledger import Selection
from presignd.model import State
from presignd.pipeline.files import folder
from presignd.pipeline.upload import transfer
from presignd.store.signed import SignedStore
from tests.faulty_s3 import BUCKET, FOREVER, FaultyS3
from tests.running import Running, config, watch
from tests.running import running_in_debug as running

OTHERS = [f"other-{number}" for number in range(20)]
HELD_UP = ("store.unreachable", "watch.blocked", "presigner.unreachable")

Matrix = dict[str, tuple[dict[str, Any], str]]

ONCE: Matrix = {
    "500": ({"status": 500, "code": "InternalError"}, "server_error"),
    "503": ({"status": 503, "code": "SlowDown"}, "slow_down"),
    "429": ({"status": 429, "body": b""}, "slow_down"),
    "507": ({"status": 507, "body": b""}, "store_full"),
    "501": ({"status": 501, "code": "NotImplemented"}, "not_implemented"),
    "400 BadDigest": ({"status": 400, "code": "BadDigest"}, "bad_digest"),
    "411": ({"status": 411, "code": "MissingContentLength"}, "rejected"),
    "409 conflict": ({"status": 409, "code": "ConditionalRequestConflict"}, "precondition_failed"),
    "400 RequestTimeout": ({"status": 400, "code": "RequestTimeout"}, "timeout"),
    "403": ({"status": 403, "code": "AccessDenied"}, "access_denied"),
    "404 without a body": ({"status": 404, "body": b""}, "no_such_bucket"),
    "invalid XML": ({"status": 400, "body": b"<Error><Code>Bad<"}, "rejected"),
    "an error body of 100 MB": ({"status": 400, "body_size": 100 << 20}, "rejected"),
    "a body without end": ({"status": 500, "body_size": FOREVER}, "server_error"),
    "no answer": ({"hang": "before"}, "timeout"),
    "a wrong ETag, nothing stored": ({"etag": '"00000000000000000000000000000000"', "lose": True}, "bad_digest"),
    "no ETag, nothing stored": ({"etag": None, "lose": True}, "missing_object"),
    "another ETag, nothing stored": ({"etag": '"an-etag-of-another-make"', "lose": True}, "missing_object"),
    "200 and a website": ({"status": 200, "body": b"<html>Welcome</html>"}, "missing_object"),
}
"""What one request meets that leaves no object, and its code."""

UNCLEAR: Matrix = {
    "reset after": ({"reset": "after"}, "connection_reset"),
    "no answer": ({"hang": "after"}, "timeout"),
    "a wrong ETag": ({"etag": '"00000000000000000000000000000000"'}, "bad_digest"),
}
"""What leaves the object there all the same."""


def patience(how: dict[str, Any]) -> dict[str, float]:
    """Wait shortly for what never comes, and long for a machine that is only busy."""
    return {"timeout": 2.0 if "hang" in how else 20.0}


def rows(matrix: Matrix) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("how", "code"), list(matrix.values()), ids=list(matrix))


@rows(ONCE)
@pytest.mark.parametrize("size", [5, 3 << 20], ids=["small", "streamed"])
async def test_one_fault_is_one_retry(
    faulty_s3: FaultyS3, tmp_path: Path, how: dict[str, Any], code: str, size: int
) -> None:
    faulty_s3.fault(method="PUT", key="a", **how)
    content = os.urandom(size)
    async with running(config(tmp_path, faulty_s3, upload=patience(how))) as daemon:
        daemon.drop("a", content)
        [done] = await daemon.done()
        assert (done["key"], done["attempt"]) == ("a", 2)
        assert daemon.codes("upload.retry") == [code]
        assert daemon.events("file.quarantined", *HELD_UP) == []
        assert daemon.links() == ["a"]
    assert faulty_s3.objects[BUCKET, "a"].body == content


@rows(UNCLEAR)
async def test_an_unclear_answer_is_settled_by_what_is_there(
    faulty_s3: FaultyS3, tmp_path: Path, how: dict[str, Any], code: str
) -> None:
    """Even if each PUT of that key ended so: the object is ours by its bytes, and is never sent twice."""
    async with running(config(tmp_path, faulty_s3, upload=patience(how))) as daemon:
        faulty_s3.fault(method="PUT", key="a", times=FOREVER, **how)
        daemon.drop("a", bytes(3 << 20))
        await daemon.done()
        assert set(daemon.codes("upload.retry")) <= {code}
        assert daemon.events("file.quarantined", *HELD_UP) == []
        assert daemon.links() == ["a"]
    # aiohttp sends once more by itself where a kept connection breaks.
    assert len(faulty_s3.seen("PUT", "a")) <= 2


@pytest.mark.parametrize("moment", ["before", "during"])
async def test_a_connection_that_breaks_twice_is_tried_again(faulty_s3: FaultyS3, tmp_path: Path, moment: str) -> None:
    faulty_s3.fault(method="PUT", key="a", times=2, reset=moment)
    async with running(config(tmp_path, faulty_s3)) as daemon:
        daemon.drop("a", bytes(3 << 20))
        await daemon.done()
        assert set(daemon.codes("upload.retry")) == {"connection_reset"}
        assert daemon.events("file.quarantined", *HELD_UP) == []
    assert faulty_s3.objects[BUCKET, "a"].body == bytes(3 << 20)


@rows({name: row for name, row in ONCE.items() if row[1] not in ("slow_down", "store_full")})
async def test_one_key_that_always_fails_is_quarantined_alone(
    faulty_s3: FaultyS3, tmp_path: Path, how: dict[str, Any], code: str
) -> None:
    faulty_s3.fault(method="PUT", key="bad", times=FOREVER, **how)
    async with running(config(tmp_path, faulty_s3, upload={**patience(how), "attempts": 3})) as daemon:
        for name in ("bad", *OTHERS):
            daemon.drop(name)
        [stopped] = await daemon.said_by_now("file.quarantined")
        await daemon.done(len(OTHERS))
        assert (stopped["key"], stopped["error_code"], stopped["attempt"]) == ("bad", code, 3)
        assert stopped["fix"]
        assert daemon.codes("upload.retry") == [code] * 2
        assert daemon.events(*HELD_UP) == []
        assert sorted(daemon.links()) == sorted(OTHERS)
        faulty_s3.heal()
        await daemon.view.requeue(Selection(error_code=code))
        await daemon.done(len(OTHERS) + 1)


@pytest.mark.parametrize("status", [503, 507])
async def test_a_store_that_is_busy_or_full_for_one_key_is_asked_again_for_ever(
    faulty_s3: FaultyS3, tmp_path: Path, status: int
) -> None:
    """What lets the small probe through may still have no room for a large file: that is no fault of the file."""
    faulty_s3.fault(method="PUT", key="large", times=10, status=status, code="SlowDown" if status == 503 else "")
    async with running(config(tmp_path, faulty_s3, upload={"attempts": 2})) as daemon:
        for name in ("large", *OTHERS):
            daemon.drop(name)
        await daemon.done(len(OTHERS) + 1)
        assert len(daemon.events("upload.retry")) == 10
        assert daemon.events("file.quarantined", *HELD_UP) == []


async def test_retry_after_on_one_key_for_ever_holds_up_the_others_once(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    faulty_s3.fault(method="PUT", key="bad", times=FOREVER, status=503, code="SlowDown", headers={"Retry-After": "1"})
    async with running(config(tmp_path, faulty_s3)) as daemon:
        daemon.drop("bad")
        await daemon.said_by_now("store.back")
        for name in OTHERS:
            daemon.drop(name)
        await daemon.done(len(OTHERS))
        await daemon.said_by_now("upload.retry", 2)
        assert len(daemon.events("store.unreachable", "store.back")) == 2
        assert daemon.events("file.quarantined") == []


async def test_a_file_that_cannot_be_opened_as_too_many_are_is_tried_again_for_ever(
    faulty_s3: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Far more often than ``upload.attempts``: the limit is the machine's, and no fault of the file."""
    real, left = transfer.open_to_send, 10

    def refused(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def short(*args: Any) -> int:
        nonlocal left
        left -= 1
        with pytest.MonkeyPatch.context() as patched:
            if left >= 0:
                patched.setattr(folder, "_open_regular", refused)
            return real(*args)

    monkeypatch.setattr(transfer, "open_to_send", short)
    async with running(config(tmp_path, faulty_s3, upload={"attempts": 2})) as daemon:
        daemon.drop("a")
        await daemon.done()
        assert daemon.codes("upload.retry") == ["too_many_files"] * 10
        assert daemon.events("file.quarantined", "store.unreachable", "watch.blocked") == []


async def test_what_can_not_be_read_counts_against_a_file_only_while_its_folder_is_there(
    faulty_s3: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole daemon under it: ``test_a_disk_whose_server_dies_under_an_upload_is_waited_for``."""
    async with running(config(tmp_path, faulty_s3)) as daemon:
        daemon.drop("a")
        await daemon.done()
        [version] = await daemon.ledger.in_state(State.FINISHED)
        counts = daemon.work.faults._counts
        assert await counts(version, fault("read_error"))
        with monkeypatch.context() as away:
            away.setattr(folder.Folder, "still_there", lambda _: False)
            assert not await counts(version, fault("read_error"))


async def test_a_store_without_etags_is_believed_by_its_head(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    faulty_s3.fault(times=FOREVER, etag=None)
    async with running(config(tmp_path, faulty_s3)) as daemon:
        daemon.drop("a", b"content")
        [done] = await daemon.done()
        assert done["attempt"] == 1
    assert len(faulty_s3.seen("HEAD", "a")) == 1


async def test_an_etag_that_is_our_md5_costs_no_second_request(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    async with running(config(tmp_path, faulty_s3)) as daemon:
        daemon.drop("a", b"content")
        await daemon.done()
    assert [seen.method for seen in faulty_s3.requests if seen.key == "a"] == ["PUT"]


async def test_a_store_that_keeps_nothing_is_no_store(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    """Each PUT answered 200 with the right ETag, and nothing there: found before the first file is called done."""
    faulty_s3.fault(method="PUT", times=FOREVER, lose=True)
    async with running(config(tmp_path, faulty_s3, upload={"attempts": 2})) as daemon:
        for name in OTHERS:
            daemon.drop(name)
        [blocked] = await daemon.said_by_now("watch.blocked")
        assert blocked["error_code"] == "missing_object"
        await asyncio.sleep(0.1)
        assert daemon.events("file.done", "file.quarantined", "link.created") == []
        faulty_s3.heal()
        await daemon.done(len(OTHERS))


async def test_a_dead_store_seen_by_many_files_is_asked_by_one(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    """Sixteen uploads that wait for the first proof of a hanging store fail together, not one after the other."""
    faulty_s3.fault(times=FOREVER, hang="after")
    for name in OTHERS:
        watched = tmp_path / "drop"
        watched.mkdir(exist_ok=True)
        (watched / name).write_bytes(b"content")
    async with running(config(tmp_path, faulty_s3, upload={"timeout": 0.5}), debug=False) as daemon:
        await daemon.said_by_now("store.unreachable")
        await daemon.until(lambda: not daemon.work.dispatcher.at_work, "an end of all in flight", 5)
        faulty_s3.heal()
        await daemon.done(len(OTHERS))


# --- files that change --------------------------------------------------------------------------------


async def test_a_file_that_changes_during_its_upload_goes_again(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    async with running(config(tmp_path, faulty_s3, upload={"timeout": 1})) as daemon:
        daemon.drop("first")
        await daemon.done()
        held = faulty_s3.fault(method="PUT", key="a", hang="before")
        path = daemon.drop("a", b"1" * (3 << 20))
        await daemon.until(lambda: held.times == 0, "the upload under way")
        path.write_bytes(b"2" * (3 << 20))
        await daemon.done(2)
        ended = [(event["key"], event["status"]) for event in daemon.events("file.done")]
        assert ended == [("first", "linked"), ("a", "superseded"), ("a", "linked")]
        assert daemon.links() == ["first", "a"]
    assert faulty_s3.objects[BUCKET, "a"].body == b"2" * (3 << 20)


async def test_a_file_that_changes_while_it_waits_is_settled_again_before_it_goes(
    faulty_s3: FaultyS3, tmp_path: Path
) -> None:
    """Of the same size even, and before any event tells: what was never seen quiet may be half of something."""
    faulty_s3.stop()
    path = tmp_path / "drop" / "a"
    unwatched = watch(tmp_path, polling="always")
    path.write_bytes(b"first")
    async with running(config(tmp_path, faulty_s3, unwatched)) as daemon:
        await daemon.said_by_now("store.unreachable")
        path.write_bytes(b"other")
        faulty_s3.start()
        await daemon.done()
        assert [event["status"] for event in daemon.events("file.done")] == ["superseded", "linked"]
    assert faulty_s3.objects[BUCKET, "a"].body == b"other"


@pytest.mark.parametrize("size", [100, 3 << 20], ids=["small", "streamed"])
@pytest.mark.parametrize("times", [1, 6], ids=["once", "again and again"])
async def test_a_file_that_changed_after_the_store_took_it_keeps_its_key(
    faulty_s3: FaultyS3, tmp_path: Path, size: int, times: int
) -> None:
    """The older content under the key is this path's own: it is replaced, not evaded, and was never linked."""
    async with running(config(tmp_path, faulty_s3)) as daemon:
        real, path = SignedStore.send, daemon.folder / "drop" / "a"
        left = times

        async def send(self: SignedStore, request: Any, *args: Any, **more: Any) -> Any:
            nonlocal left
            answer = await real(self, request, *args, **more)
            if request.operation == "put" and request.key == "a" and answer.status == 200 and left:
                left -= 1
                path.write_bytes(b"%d" % left * size)
            return answer

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(SignedStore, "send", send)
            path.write_bytes(b"x" * size)
            await daemon.done()
        assert [event["status"] for event in daemon.events("file.done")] == [*["superseded"] * times, "linked"]
        assert daemon.links() == ["a"]
    stored = {key: found.body for (_, key), found in faulty_s3.objects.items() if not key.startswith(".")}
    assert stored == {"a": b"0" * size}


async def test_a_file_that_never_stops_changing_is_never_linked_torn(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    """Each content is one letter throughout: any mixture is a torn object."""
    contents = {hashlib.md5(bytes([65 + turn]) * (1 << 20)).hexdigest() for turn in range(26)}
    async with running(config(tmp_path, faulty_s3)) as daemon:
        path = daemon.folder / "drop" / "a"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.close(fd)

        def rewrite() -> None:
            for turn in range(150):
                path.write_bytes(bytes([65 + turn % 26]) * (1 << 20))

        await asyncio.to_thread(rewrite)
        path.write_bytes(b"Z" * (1 << 20))
        end = hashlib.md5(b"Z" * (1 << 20)).hexdigest()

        def last() -> bool:
            done = [event for event in daemon.events("file.done") if event["status"] in ("linked", "adopted")]
            return bool(done) and done[-1]["etag"] == end

        await daemon.until(last, "the last content linked")
        linked = [event for event in daemon.events("file.done") if event["status"] in ("linked", "adopted")]
        assert {event["etag"] for event in linked} <= {*contents, end, hashlib.md5(b"").hexdigest()}
    assert faulty_s3.objects[BUCKET, "a"].body == b"Z" * (1 << 20)


# --- limits ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("concurrency", [1, 4])
async def test_no_more_than_so_many_files_go_at_a_time(faulty_s3: FaultyS3, tmp_path: Path, concurrency: int) -> None:
    (tmp_path / "drop").mkdir()
    for number in range(60):
        (tmp_path / "drop" / f"{number}").write_bytes(bytes(200_000))
    async with running(config(tmp_path, faulty_s3, upload={"concurrency": concurrency}), debug=False) as daemon:
        await daemon.done(60)
    assert faulty_s3.busiest <= concurrency


async def test_retries_and_their_faults_survive_a_restart(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    faulty_s3.fault(method="PUT", key="a", status=400, code="BadDigest", times=FOREVER)
    configured = config(tmp_path, faulty_s3, upload={"attempts": 4})
    async with running(configured, quick=False) as daemon:
        daemon.drop("a")
        await daemon.said_by_now("upload.retry", 2)
    async with running(configured, quick=False) as daemon:
        [waiting] = await daemon.ledger.in_state(State.QUEUED)
        assert waiting.faults >= 2
        assert waiting.not_before is not None
        assert waiting.error_code == "bad_digest"
        [stopped] = await daemon.said_by_now("file.quarantined")
        assert stopped["error_code"] == "bad_digest"
        assert len(daemon.events("upload.retry")) <= 1


async def test_content_renamed_over_with_the_same_size_and_mtime_while_it_waits_replaces_its_own_object(
    faulty_s3: FaultyS3, tmp_path: Path
) -> None:
    """What was sent and never answered stays known for this path's own, however often it is tried again.

    The harness of power loss found it taken for a stranger's object, and the newer content put beside it.
    """
    faulty_s3.fault(method="PUT", key="a", reset="after")
    faulty_s3.fault(times=FOREVER, status=503, code="SlowDown", when=lambda *_: bool(faulty_s3.seen("PUT", "a")))
    async with running(config(tmp_path, faulty_s3)) as daemon:
        file, other = daemon.drop("a", b"first"), tmp_path / "other"
        await daemon.until(lambda: daemon.events("store.unreachable"), "an unclear end")
        other.write_bytes(b"other")
        os.utime(other, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
        ino = other.stat().st_ino
        other.replace(file)
        async with asyncio.timeout(20):
            while not await is_known_as(daemon, ino):  # noqa: ASYNC110 - the daemon tells nobody
                await asyncio.sleep(0.01)
        faulty_s3.heal()
        faulty_s3.fault(method="PUT", key="a", status=500, code="InternalError")
        await daemon.done()
    assert {key: found.body for (_, key), found in faulty_s3.objects.items() if "check" not in key} == {"a": b"other"}


async def is_known_as(daemon: Running, ino: int) -> bool:
    """Return whether the ledger has the current fingerprint of the file."""
    version = await daemon.ledger.by_path("drop", b"a")
    return version is not None and version.fingerprint.ino == ino
