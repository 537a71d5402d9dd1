"""The fault matrix for multipart uploads: each file once, never torn, and no upload left behind."""

from __future__ import annotations

import base64
import hashlib
import os
import random
from pathlib import Path
from typing import Any

import pytest

from presignd.config import Config, WatchConfig
from presignd.model import FileVersion
from presignd.pipeline.upload.multipart import InParts, Sweeper
from tests.faulty_s3 import BUCKET, FOREVER, FaultyS3, Object
from tests.running import Running, config, watch
from tests.running import running_in_debug as running

PART = 1 << 20
"""The least that ``part_size_for`` gives; smaller than a configuration may say, and quick."""

CONTENT = random.Random(1).randbytes(3 * PART + 5)
OTHER = random.Random(2).randbytes(3 * PART + 5)


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def etag_in_parts(content: bytes, size: int = PART) -> str:
    digests = [hashlib.md5(content[at : at + size]).digest() for at in range(0, len(content), size)]
    return f'"{md5(b"".join(digests))}-{len(digests)}"'


def in_parts(folder: Path, store: FaultyS3, *watches: WatchConfig, **upload: Any) -> Config:
    made = config(folder, store, *watches)
    limits = {"multipart_threshold": PART, "part_size": PART, "part_concurrency": 2, **upload}
    return made.model_copy(update={"upload": made.upload.model_copy(update=limits)})


def parts_sent(store: FaultyS3) -> list[int]:
    """Return the numbers of all parts but the probe's."""
    parts = [seen for seen in store.seen("PUT") if "partNumber" in seen.query and not seen.key.startswith(".")]
    return [int(seen.query["partNumber"]) for seen in parts]


def stored(store: FaultyS3) -> dict[str, bytes]:
    return {key: found.body for (_, key), found in store.objects.items()}


async def none_left(daemon: Running, store: FaultyS3) -> None:
    await daemon.until(lambda: not store.uploads.under_way, "end of every upload")


Matrix = dict[str, tuple[dict[str, Any], str]]
CREATE = {"method": "POST", "asks": "uploads", "key": "a"}
ONE_PART = {"method": "PUT", "asks": "partNumber", "key": "a"}
COMPLETE = {"method": "POST", "asks": "uploadId", "key": "a"}
BODY_OF_AN_ERROR = b"<Error><Code>InternalError</Code></Error>"

ONCE: Matrix = {
    "a create that fails": ({**CREATE, "status": 500, "code": "InternalError"}, "server_error"),
    "a create without an id": ({**CREATE, "status": 200, "body": b"<html>Welcome</html>"}, "bad_response"),
    "a part that fails": ({**ONE_PART, "status": 500, "code": "InternalError"}, "server_error"),
    "a part of another ETag": ({**ONE_PART, "etag": f'"{"0" * 32}"'}, "bad_digest"),
    "a part of a lost upload": ({**ONE_PART, "status": 404, "code": "NoSuchUpload"}, "upload_lost"),
    "a part of a lost bucket": ({**ONE_PART, "status": 404, "code": "NoSuchBucket"}, "no_such_bucket"),
    "a complete that fails": ({**COMPLETE, "status": 500, "code": "InternalError"}, "server_error"),
    "a complete that is 200 and fails": ({**COMPLETE, "status": 200, "body": BODY_OF_AN_ERROR}, "server_error"),
    "a complete of a lost upload": ({**COMPLETE, "status": 404, "code": "NoSuchUpload"}, "upload_lost"),
}
"""What one request of an upload meets, and its code."""

TORN: dict[str, dict[str, Any]] = {
    "nothing is stored": {"lose": True},
    "other parts are stored": {"etag": f'"{"0" * 32}-4"'},
    "other bytes are stored": {"etag": f'"{"0" * 32}"'},
}
"""How a complete may go wrong without a word."""

UNCLEAR: dict[str, dict[str, Any]] = {
    "the ETag is that of the whole": {"etag": f'"{md5(CONTENT)}"'},
    "the ETag tells nothing": {"etag": '"0-0"', "headers": {"x-amz-server-side-encryption": "aws:kms"}},
    "no answer": {"reset": "after"},
    "500 though it was done": {"status": 500, "code": "InternalError", "late": True},
    "404 as it was done before": {"status": 404, "code": "NoSuchUpload", "late": True},
    "200 and an error though it was done": {"status": 200, "body": BODY_OF_AN_ERROR, "late": True},
}
"""How a complete may be answered that went through."""


@pytest.mark.parametrize(("how", "code"), list(ONCE.values()), ids=list(ONCE))
async def test_one_fault_is_one_retry(faulty_s3: FaultyS3, tmp_path: Path, how: dict[str, Any], code: str) -> None:
    faulty_s3.fault(**how)
    async with running(in_parts(tmp_path, faulty_s3, watch(tmp_path, collision="overwrite"))) as daemon:
        daemon.drop("a", CONTENT)
        [done] = await daemon.done()
        assert (done["key"], done["attempt"]) == ("a", 2)
        assert daemon.codes("upload.retry") == [code]
        assert daemon.events("file.quarantined", "watch.blocked", "store.unreachable") == []
        assert daemon.links() == ["a"]
    assert stored(faulty_s3) == {"a": CONTENT}


async def test_a_large_file_that_waits_leaves_room_for_small_ones_whatever_the_concurrency(
    faulty_s3: FaultyS3, tmp_path: Path
) -> None:
    hangs = faulty_s3.fault(**CREATE, hang="before")
    async with running(in_parts(tmp_path, faulty_s3, concurrency=1)) as daemon:
        daemon.drop("a", CONTENT)
        await daemon.until(lambda: not hangs.times, "the large file at the store")
        daemon.drop("small")
        await daemon.done()
        assert daemon.links() == ["small"]


@pytest.mark.parametrize("how", list(TORN.values()), ids=list(TORN))
async def test_a_complete_is_not_believed_before_its_object_was_seen(
    faulty_s3: FaultyS3, tmp_path: Path, how: dict[str, Any]
) -> None:
    """The store knows the upload no more then: all of it goes again, by the very next attempt."""
    faulty_s3.fault(**COMPLETE, **how)
    async with running(in_parts(tmp_path, faulty_s3, watch(tmp_path, collision="overwrite"))) as daemon:
        daemon.drop("a", CONTENT)
        await daemon.done()
        assert daemon.codes("upload.retry") == ["bad_digest"]
        assert daemon.links() == ["a"]
    assert stored(faulty_s3) == {"a": CONTENT}


@pytest.mark.parametrize("how", list(UNCLEAR.values()), ids=list(UNCLEAR))
async def test_an_unclear_complete_is_settled_by_what_is_there(
    faulty_s3: FaultyS3, tmp_path: Path, how: dict[str, Any]
) -> None:
    faulty_s3.fault(**COMPLETE, **how)
    async with running(in_parts(tmp_path, faulty_s3)) as daemon:
        daemon.drop("a", CONTENT)
        [done] = await daemon.done()
        assert (done["attempt"], done["checksum"]) == (1, "md5:" + etag_in_parts(CONTENT).strip('"'))
    assert stored(faulty_s3) == {"a": CONTENT}
    assert sorted(parts_sent(faulty_s3)) == [1, 2, 3, 4]


async def test_under_a_customers_key_each_part_and_each_look_at_the_object_carries_it(
    faulty_s3: FaultyS3, tmp_path: Path
) -> None:
    """SSE-C: S3 refuses parts and HEADs without the key; the object's ETag is no MD5, and proves nothing."""
    key = b"k" * 32
    sse_c = "x-amz-server-side-encryption-customer-"
    headers = {
        f"{sse_c}algorithm": "AES256",
        f"{sse_c}key": base64.b64encode(key).decode(),
        f"{sse_c}key-MD5": base64.b64encode(hashlib.md5(key).digest()).decode(),
    }
    async with running(in_parts(tmp_path, faulty_s3, watch(tmp_path, headers=headers))) as daemon:
        daemon.drop("a", CONTENT)
        [done] = await daemon.done()
        assert (done["attempt"], done["status"], daemon.links()) == (1, "linked", ["a"])
    assert stored(faulty_s3) == {"a": CONTENT}
    assert sorted(parts_sent(faulty_s3)) == [1, 2, 3, 4]


async def test_a_stop_in_the_middle_sends_only_what_is_missing_after_it(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    configured = in_parts(tmp_path, faulty_s3, part_concurrency=1)
    held = faulty_s3.fault(**ONE_PART, when=lambda *_: len(parts_sent(faulty_s3)) == 2, hang="before")
    async with running(configured) as daemon:
        daemon.drop("a", CONTENT)
        await daemon.until(lambda: held.times == 0, "the third part under way")
    async with running(configured) as daemon:
        await daemon.done()
        [resumed] = daemon.events("upload.resumed")
        assert resumed["parts"] == 2
    assert parts_sent(faulty_s3) == [1, 2, 3, 4], "the one that hung was never read"
    assert stored(faulty_s3) == {"a": CONTENT}


MIDWAY: Matrix = {
    "it reads no more": ({"hang": "during"}, "timeout"),
    "it answers early": ({"status": 500, "code": "InternalError", "early": True}, "server_error"),
}
"""What a store does in the middle of a part, and its code."""


@pytest.mark.parametrize(("how", "code"), list(MIDWAY.values()), ids=list(MIDWAY))
async def test_a_part_that_goes_by_sendfile_and_breaks_off_goes_once_more(
    faulty_s3: FaultyS3, tmp_path: Path, how: dict[str, Any], code: str
) -> None:
    """A part of 16 MiB fits in no buffer between us and the store."""
    large, content = 16 << 20, random.Random(3).randbytes(4 << 20) * 5
    faulty_s3.fault(**ONE_PART, **how)
    timeout = 2.0 if "hang" in how else 20.0
    configured = in_parts(tmp_path, faulty_s3, multipart_threshold=large, part_size=large, timeout=timeout)
    async with running(configured) as daemon:
        daemon.drop("a", content)
        [done] = await daemon.done()
        assert (done["attempt"], done["checksum"]) == (2, "md5:" + etag_in_parts(content, large).strip('"'))
        assert daemon.codes("upload.retry") == [code]
    assert stored(faulty_s3) == {"a": content}


@pytest.mark.parametrize("quote", ["&quot;", "&#34;", "&#x22;", '"', ""])
@pytest.mark.parametrize("there", ["ours", "another", "none"])
async def test_a_part_that_the_store_takes_no_second_time_is_looked_for(
    faulty_s3: FaultyS3, tmp_path: Path, there: str, quote: str
) -> None:
    """Some servers answer 501 then. The one that went through unseen counts; another one ends the upload."""
    kept = there == "ours"
    faulty_s3.uploads.quote = quote

    def second_time(*_: str) -> bool:
        if there == "another":
            for parts in faulty_s3.uploads.under_way.values():
                parts[2] = b"another"
        return len(parts_sent(faulty_s3)) == 2

    faulty_s3.fault(
        **ONE_PART, when=lambda *_: len(parts_sent(faulty_s3)) == 1, etag=f'"{"0" * 32}"', lose=there == "none"
    )
    faulty_s3.fault(**ONE_PART, when=second_time, status=501, code="NotImplemented")
    async with running(in_parts(tmp_path, faulty_s3, part_concurrency=1)) as daemon:
        daemon.drop("a", CONTENT)
        await daemon.done()
        assert daemon.codes("upload.retry") == ["bad_digest", *([] if kept else ["upload_lost"])]
    assert parts_sent(faulty_s3) == ([1, 2, 2, 3, 4] if kept else [1, 2, 2, 1, 2, 3, 4])
    assert stored(faulty_s3) == {"a": CONTENT}


async def test_an_upload_of_which_the_store_lost_a_part_begins_anew_and_leaves_nothing(
    faulty_s3: FaultyS3, tmp_path: Path
) -> None:
    """InvalidPart: the same Complete again would be told the same, and the parts that are left are nobody's."""

    def forget(*_: str) -> bool:
        if len(parts_sent(faulty_s3)) == 4:
            faulty_s3.uploads.forget(2)
        return False

    faulty_s3.fault(**COMPLETE, when=forget)
    async with running(in_parts(tmp_path, faulty_s3, part_concurrency=1)) as daemon:
        daemon.drop("a", CONTENT)
        [done] = await daemon.done()
        assert (done["key"], done["attempt"]) == ("a", 2)
        assert daemon.codes("upload.retry") == ["upload_lost"]
        await none_left(daemon, faulty_s3)
    assert stored(faulty_s3) == {"a": CONTENT}
    assert parts_sent(faulty_s3) == [1, 2, 3, 4] * 2


async def test_an_upload_that_was_aborted_at_the_store_begins_anew_whatever_a_complete_is_answered(
    faulty_s3: FaultyS3, tmp_path: Path
) -> None:
    """Ceph's gateway says 500 InternalError then, each time: its parts tell whether it is there."""

    def abort(*_: str) -> bool:
        if len(parts_sent(faulty_s3)) == 4:
            faulty_s3.uploads.under_way.clear()
        return len(parts_sent(faulty_s3)) == 4

    faulty_s3.fault(**COMPLETE, when=abort, times=FOREVER, status=500, code="InternalError")
    async with running(in_parts(tmp_path, faulty_s3, attempts=3)) as daemon:
        daemon.drop("a", CONTENT)
        [done] = await daemon.done()
        assert (done["key"], done["attempt"]) == ("a", 2)
        assert daemon.codes("upload.retry") == ["upload_lost"]
    assert stored(faulty_s3) == {"a": CONTENT}


def completes_asked(store: FaultyS3) -> bool:
    return any("uploadId" in seen.query and seen.key == "a" for seen in store.seen("POST"))


async def test_an_object_that_comes_between_two_looks_at_an_unclear_end_is_ours(
    faulty_s3: FaultyS3, tmp_path: Path
) -> None:
    """A store may still be at it while it is asked: no object yet, no upload any more, then the object."""
    faulty_s3.fault(**COMPLETE, status=500, code="InternalError", late=True)
    faulty_s3.fault(method="HEAD", key="a", when=lambda *_: completes_asked(faulty_s3), status=404)
    async with running(in_parts(tmp_path, faulty_s3)) as daemon:
        daemon.drop("a", CONTENT)
        [done] = await daemon.done()
        assert (done["status"], done["attempt"]) == ("linked", 1)
    assert sorted(parts_sent(faulty_s3)) == [1, 2, 3, 4]


async def test_another_s_object_at_the_key_of_an_unclear_end_is_never_taken_for_ours(
    faulty_s3: FaultyS3, tmp_path: Path
) -> None:
    def stranger(*_: str) -> bool:
        faulty_s3.objects[BUCKET, "a"] = Object(OTHER, f'"{md5(OTHER)}"', {}, faulty_s3.now())
        return True

    faulty_s3.fault(**COMPLETE, when=stranger, status=500, code="InternalError")
    async with running(in_parts(tmp_path, faulty_s3)) as daemon:
        daemon.drop("a", CONTENT)
        [done] = await daemon.done()
        assert (done["status"], done["key"]) == ("linked", "a~2")
    assert stored(faulty_s3) == {"a": OTHER, "a~2": CONTENT}


async def test_an_upload_is_not_given_up_where_its_parts_may_not_be_listed(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    """s3:ListMultipartUploadParts is a right of its own, and a refusal of it no reason to block the watch."""
    faulty_s3.fault(method="GET", key="a", times=FOREVER, status=403, code="AccessDenied")
    faulty_s3.fault(**COMPLETE, times=2, status=500, code="InternalError")
    async with running(in_parts(tmp_path, faulty_s3)) as daemon:
        daemon.drop("a", CONTENT)
        await daemon.done()
        assert daemon.codes("upload.retry") == ["server_error"] * 2
        assert daemon.events("watch.blocked") == []
    assert sorted(parts_sent(faulty_s3)) == [1, 2, 3, 4]


async def test_a_store_that_takes_a_thousand_parts_gets_larger_ones(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    """Swift, Scaleway. The last part is refused before any other was sent, and only once."""
    faulty_s3.uploads.most = 1000
    async with running(in_parts(tmp_path, faulty_s3, part_size=1 << 10, part_concurrency=1)) as daemon:
        for name in ("a", "b"):
            daemon.drop(name, CONTENT)
            await daemon.done(1 + (name == "b"))
        assert daemon.codes("upload.retry") == ["upload_lost"]
        await none_left(daemon, faulty_s3)
    assert stored(faulty_s3) == {"a": CONTENT, "b": CONTENT}
    assert parts_sent(faulty_s3) == [len(CONTENT) // 1024 + 1, *[1, 2, 3, 4] * 2]


FOUND: dict[str, tuple[bytes, str, bool]] = {
    "the same bytes in one PUT": (CONTENT, f'"{md5(CONTENT)}"', True),
    "the same bytes in the same parts": (CONTENT, etag_in_parts(CONTENT), True),
    "the same bytes in other parts": (CONTENT, etag_in_parts(CONTENT, 2 * PART), True),
    "other bytes in other parts": (OTHER, etag_in_parts(OTHER, 2 * PART), False),
    "other bytes in one PUT": (OTHER, f'"{md5(OTHER)}"', False),
    "other bytes in as many parts": (OTHER, etag_in_parts(OTHER), False),
    "another size": (b"short", f'"{md5(b"short")}"', False),
}


@pytest.mark.parametrize(("body", "etag", "ours"), list(FOUND.values()), ids=list(FOUND))
async def test_an_object_that_is_there_is_adopted_just_when_it_is_proven_to_be_the_same(
    faulty_s3: FaultyS3, tmp_path: Path, body: bytes, etag: str, *, ours: bool
) -> None:
    faulty_s3.objects[BUCKET, "a"] = Object(body, etag, {}, faulty_s3.now())
    async with running(in_parts(tmp_path, faulty_s3)) as daemon:
        daemon.drop("a", CONTENT)
        [done] = await daemon.done()
        assert (done["key"], done["status"]) == (("a", "adopted") if ours else ("a~2", "linked"))
    assert stored(faulty_s3) == {"a": body, **({} if ours else {"a~2": CONTENT})}
    assert parts_sent(faulty_s3) == [] if ours else sorted(parts_sent(faulty_s3)) == [1, 2, 3, 4]


async def test_a_key_that_somebody_takes_meanwhile_is_left_to_him(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    def take(*_: str) -> bool:
        faulty_s3.objects.setdefault((BUCKET, "a"), Object(b"theirs", f'"{md5(b"theirs")}"', {}, faulty_s3.now()))
        return False

    faulty_s3.fault(**COMPLETE, when=take)
    async with running(in_parts(tmp_path, faulty_s3)) as daemon:
        daemon.drop("a", CONTENT)
        await daemon.done()
        await none_left(daemon, faulty_s3)
        assert daemon.events("upload.retry", "file.quarantined") == [], "a 412 is no fault"
    assert stored(faulty_s3) == {"a": b"theirs", "a~2": CONTENT}


async def test_a_file_that_changes_between_its_parts_is_never_completed(
    faulty_s3: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the parts still to come are not sent for nothing."""
    real, path = faulty_s3.uploads.part, tmp_path / "drop" / "a"

    def kept(*args: Any, **more: Any) -> str | None:
        etag = real(*args, **more)
        if len(args[2]) == PART and path.read_bytes() == CONTENT:
            path.write_bytes(OTHER)
        return etag

    monkeypatch.setattr(faulty_s3.uploads, "part", kept)
    async with running(in_parts(tmp_path, faulty_s3, part_concurrency=1)) as daemon:
        daemon.drop("a", CONTENT)
        await daemon.done()
        await none_left(daemon, faulty_s3)
        assert [event["status"] for event in daemon.events("file.done")] == ["superseded", "linked"]
    assert stored(faulty_s3) == {"a": OTHER}
    assert parts_sent(faulty_s3) == [1, 1, 2, 3, 4]


async def test_a_key_made_of_the_content_is_known_before_the_first_part(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    async with running(in_parts(tmp_path, faulty_s3, watch(tmp_path, key="{sha256}"))) as daemon:
        daemon.drop("a", CONTENT)
        await daemon.done()
        assert daemon.links() == [hashlib.sha256(CONTENT).hexdigest()]


async def test_a_bug_in_one_part_quarantines_its_file_alone(
    faulty_s3: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> str:
        raise ZeroDivisionError

    monkeypatch.setattr(InParts, "_hash", broken)
    async with running(in_parts(tmp_path, faulty_s3)) as daemon:
        daemon.drop("a", CONTENT)
        daemon.drop("small")
        await daemon.said_by_now("file.quarantined")
        await daemon.done()
        assert daemon.codes("file.quarantined") == ["internal_error"]
        assert daemon.links() == ["small"]
        await none_left(daemon, faulty_s3)


async def test_what_a_quarantined_file_leaves_is_aborted_also_when_the_store_refuses_that_once(
    faulty_s3: FaultyS3, tmp_path: Path
) -> None:
    faulty_s3.fault(**ONE_PART, times=FOREVER, status=400, code="InvalidRequest")
    faulty_s3.fault(method="DELETE", key="a", asks="uploadId", status=500, code="InternalError")
    async with running(in_parts(tmp_path, faulty_s3, attempts=2)) as daemon:
        daemon.drop("a", CONTENT)
        await daemon.said_by_now("file.quarantined")
        await daemon.said_by_now("upload.abort_failed")
        daemon.work.sweeper.wake()
        await none_left(daemon, faulty_s3)
        assert len(daemon.events("upload.abort_failed")) == 1


async def test_uploads_of_a_watch_that_is_no_more_are_left_alone() -> None:
    """Its bucket is not known here; S3's lifecycle rule is for them."""

    class Left:
        asked = 0

        async def uploads_left(self) -> list[FileVersion]:
            self.asked += 1
            if self.asked == 2:
                raise EOFError
            return [version]

    version: Any = type("Version", (), {"watch": "another", "key": "a", "file_id": "id"})()
    ledger: Any = Left()
    sweeper = Sweeper(ledger, {}, pause=0.01)
    with pytest.raises(EOFError):
        await sweeper.run()


# --- what happens to the file meanwhile ---------------------------------------------------------------


def hidden(path: Path) -> None:
    """Change a byte and set the old times again."""
    before = path.stat()
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("size", [100, len(CONTENT)], ids=["whole", "in parts"])
@pytest.mark.parametrize("act", ["chmod", "hidden", "unlink", "replace"])
async def test_only_what_changes_the_content_of_the_path_sends_it_again(
    faulty_s3: FaultyS3, tmp_path: Path, size: int, act: str
) -> None:
    """A path that is gone was whole when it was read; one that holds another file gets that one's version."""
    content, acts = CONTENT[:size], [act]
    path, newer = tmp_path / "drop" / "a", tmp_path / "newer"
    newer.write_bytes(OTHER[:size])

    def meddle(*_: str) -> bool:
        if len(parts_sent(faulty_s3)) < (3 if size > PART else 0):
            return False  # all but the last one are sent: what changes now was read before
        match acts and acts.pop():
            case "chmod":
                path.chmod(0o600)
            case "hidden":
                hidden(path)
            case "unlink":
                path.unlink()
            case "replace":
                newer.replace(path)
        return False

    faulty_s3.fault(method="PUT", key="a", when=meddle)
    # Without events: one that tells of the unlink in time would end the version as vanished.
    unwatched = watch(tmp_path, polling="always")
    path.write_bytes(content)
    async with running(in_parts(tmp_path, faulty_s3, unwatched, part_concurrency=1)) as daemon:
        await daemon.done()
        statuses = [event["status"] for event in daemon.events("file.done")]
        assert statuses == (["linked"] if act in ("chmod", "unlink") else ["superseded", "linked"])
        assert faulty_s3.objects[BUCKET, "a"].body == (path.read_bytes() if path.exists() else content)
