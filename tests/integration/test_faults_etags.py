"""Whatever ETags a store returns: each file once, under its own key, no other object changed, all bytes verified."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from presignd.config import Config
from tests.faulty_etags import ETAGS, Etags, hex_name, md5
from tests.faulty_s3 import BUCKET, FOREVER, FaultyS3, Object
from tests.integration.test_faults_parts import (
    BODY_OF_AN_ERROR,
    COMPLETE,
    CONTENT,
    OTHER,
    Matrix,
    in_parts,
    none_left,
    parts_sent,
)
from tests.integration.test_faults_parts import ONCE as ONCE_IN_PARTS
from tests.running import Running, running, watch
from tests.stores import Store

THIRD = random.Random(3).randbytes(len(CONTENT))
SIZES = {"whole": slice(7), "in parts": slice(None)}

quirks = pytest.mark.parametrize("quirk", list(ETAGS))
sizes = pytest.mark.parametrize("cut", list(SIZES.values()), ids=list(SIZES))
conditions = pytest.mark.parametrize("conditional", [True, False], ids=["conditions", "no conditions"])


def stored(store: FaultyS3) -> dict[str, bytes]:
    return {key: found.body for (_, key), found in store.objects.items() if not key.startswith(".")}


def times_stored(store: FaultyS3) -> int:
    """Return how often an object came to be under the key "a"."""
    puts = [seen for seen in store.seen("PUT", "a") if "partNumber" not in seen.query]
    completes = [seen for seen in store.seen("POST", "a") if "uploadId" in seen.query]
    return sum(seen.status == 200 for seen in (*puts, *completes))


async def settled(daemon: Running, count: int) -> list[str]:
    """Wait for so many versions to be through; return their keys."""
    await daemon.done(count)
    assert daemon.events("upload.retry", "file.quarantined", "watch.blocked", "store.unreachable") == []
    return [event["key"] for event in daemon.events("file.done")]


@quirks
@sizes
@conditions
async def test_a_file_changed_twice_and_touched_keeps_its_key_and_is_sent_three_times(
    faulty_s3: FaultyS3, tmp_path: Path, quirk: str, cut: slice, *, conditional: bool
) -> None:
    """A path's newer version replaces its own object; the same content again is not sent again."""
    faulty_s3.etags, faulty_s3.conditions = ETAGS[quirk], conditional
    async with running(in_parts(tmp_path, faulty_s3)) as daemon:
        for count, content in enumerate((CONTENT, OTHER, THIRD), start=1):
            path = daemon.drop("a", content[cut])
            await settled(daemon, count)
        path.unlink()
        path.write_bytes(THIRD[cut])
        os.utime(path, (1, 1))
        assert set(await settled(daemon, 4)) == {"a"}
        await none_left(daemon, faulty_s3)
    assert stored(faulty_s3) == {"a": THIRD[cut]}
    assert times_stored(faulty_s3) == 3


@quirks
@sizes
async def test_a_lost_ledger_adopts_what_is_there(faulty_s3: FaultyS3, tmp_path: Path, quirk: str, cut: slice) -> None:
    faulty_s3.etags = ETAGS[quirk]
    configured = in_parts(tmp_path, faulty_s3)
    async with running(configured) as daemon:
        daemon.drop("a", CONTENT[cut])
        await daemon.done()
    shutil.rmtree(tmp_path / "state")
    before = len(faulty_s3.seen("PUT", "a"))
    async with running(configured) as daemon:
        [done] = await daemon.done()
        assert (done["key"], done["status"]) == ("a", "adopted")
    assert stored(faulty_s3) == {"a": CONTENT[cut]}
    assert len(faulty_s3.seen("PUT", "a")) - before <= 1, "at most the one that found the key taken"


@quirks
@sizes
@conditions
async def test_an_object_of_another_that_is_as_large_stays_as_it_is(
    faulty_s3: FaultyS3, tmp_path: Path, quirk: str, cut: slice, *, conditional: bool
) -> None:
    faulty_s3.etags, faulty_s3.conditions = ETAGS[quirk], conditional
    name = ETAGS[quirk].whole
    theirs = Object(OTHER[cut], name and f'"{name(OTHER[cut])}"', ETAGS[quirk].headers, faulty_s3.now())
    faulty_s3.objects[BUCKET, "a"] = theirs
    async with running(in_parts(tmp_path, faulty_s3)) as daemon:
        daemon.drop("a", CONTENT[cut])
        assert await settled(daemon, 1) == ["a~2"]
    assert stored(faulty_s3) == {"a": OTHER[cut], "a~2": CONTENT[cut]}


DONE_ALL_THE_SAME: dict[str, Any] = {"status": 500, "code": "InternalError", "late": True}

UNCLEAR_COMPLETES: dict[str, dict[str, Any]] = {
    "no answer": {"reset": "after"},
    "500 though it was done": DONE_ALL_THE_SAME,
    "404 as it was done before": {"status": 404, "code": "NoSuchUpload", "late": True},
    "200 and an error though it was done": {"status": 200, "body": BODY_OF_AN_ERROR, "late": True},
}


@quirks
@conditions
async def test_an_unclear_put_is_settled_by_what_is_there(
    faulty_s3: FaultyS3, tmp_path: Path, quirk: str, *, conditional: bool
) -> None:
    faulty_s3.etags, faulty_s3.conditions = ETAGS[quirk], conditional
    faulty_s3.fault(method="PUT", key="a", **DONE_ALL_THE_SAME)
    async with running(in_parts(tmp_path, faulty_s3)) as daemon:
        daemon.drop("a", b"content")
        [done] = await daemon.done()
        assert (done["key"], done["attempt"]) == ("a", 2)
    assert stored(faulty_s3) == {"a": b"content"}
    assert len(faulty_s3.seen("PUT", "a")) == 1


@quirks
@pytest.mark.parametrize("how", list(UNCLEAR_COMPLETES.values()), ids=list(UNCLEAR_COMPLETES))
async def test_an_unclear_complete_is_settled_by_what_is_there(
    faulty_s3: FaultyS3, tmp_path: Path, quirk: str, how: dict[str, Any]
) -> None:
    faulty_s3.etags = ETAGS[quirk]
    faulty_s3.fault(**COMPLETE, **how)
    async with running(in_parts(tmp_path, faulty_s3)) as daemon:
        daemon.drop("a", CONTENT)
        [done] = await daemon.done()
        assert (done["key"], done["attempt"]) == ("a", 1)
    assert stored(faulty_s3) == {"a": CONTENT}
    assert sorted(parts_sent(faulty_s3)) == [1, 2, 3, 4]


@quirks
@conditions
async def test_what_an_unclear_put_left_there_is_known_for_its_paths_own_by_newer_content(
    faulty_s3: FaultyS3, tmp_path: Path, quirk: str, *, conditional: bool
) -> None:
    faulty_s3.etags, faulty_s3.conditions = ETAGS[quirk], conditional
    faulty_s3.fault(method="PUT", key="a", **DONE_ALL_THE_SAME)
    faulty_s3.fault(times=FOREVER, status=503, code="SlowDown", when=lambda *_: bool(faulty_s3.seen("PUT", "a")))
    async with running(in_parts(tmp_path, faulty_s3)) as daemon:
        daemon.drop("a", b"first")
        await daemon.said_by_now("store.unreachable")
        daemon.drop("a", b"newer")
        await daemon.said_by_now("file.done")
        faulty_s3.heal()
        await daemon.done()
    assert stored(faulty_s3) == {"a": b"newer"}


OF_ETAGS = ("a part of another ETag", "a part of a lost bucket")
FEW = ["r2", "that look like an md5", "none"]
ONCE: Matrix = {name: row for name, row in ONCE_IN_PARTS.items() if name not in OF_ETAGS}


@pytest.mark.parametrize("quirk", FEW)
@pytest.mark.parametrize(("how", "code"), list(ONCE.values()), ids=list(ONCE))
async def test_one_fault_is_one_retry(
    faulty_s3: FaultyS3, tmp_path: Path, quirk: str, how: dict[str, Any], code: str
) -> None:
    faulty_s3.etags = ETAGS[quirk]
    faulty_s3.fault(**how)
    async with running(in_parts(tmp_path, faulty_s3)) as daemon:
        daemon.drop("a", CONTENT)
        [done] = await daemon.done()
        assert (done["key"], done["attempt"]) == ("a", 2)
        assert daemon.codes("upload.retry") == [code]
    assert stored(faulty_s3) == {"a": CONTENT}


@quirks
@sizes
async def test_what_was_answered_is_never_read_back(
    faulty_s3: FaultyS3, tmp_path: Path, quirk: str, cut: slice
) -> None:
    faulty_s3.etags = ETAGS[quirk]
    async with running(in_parts(tmp_path, faulty_s3)) as daemon:
        daemon.drop("a", CONTENT[cut])
        [done] = await daemon.done()
        assert (done["attempt"], done["status"]) == (1, "linked")
    assert faulty_s3.seen("GET", "a") == []


UNPROVEN = ["of any form", "that look like an md5", "none", "kms"]


@pytest.mark.parametrize("quirk", UNPROVEN)
@sizes
async def test_where_neither_etag_nor_checksum_proves_anything_uploads_are_read_back(
    faulty_s3: FaultyS3, tmp_path: Path, quirk: str, cut: slice
) -> None:
    """What was changed on the way is never called done."""
    faulty_s3.etags, faulty_s3.digests = ETAGS[quirk], False
    change = faulty_s3.fault(method="GET", key="a", when=lambda *_: change_first(faulty_s3))
    async with running(in_parts(tmp_path, faulty_s3)) as daemon:
        daemon.drop("a", CONTENT[cut])
        [done] = await daemon.done()
        assert daemon.codes("upload.retry") == ["bad_digest"]
    assert change.times == 0, "nothing was read back"
    assert stored(faulty_s3)[done["key"]] == CONTENT[cut]


def change_first(store: FaultyS3) -> bool:
    """Make the object what a broken connection or proxy left of it; the order itself asks for nothing."""
    there = store.objects[BUCKET, "a"]
    store.objects[BUCKET, "a"] = Object(bytes(len(there.body)), there.etag, there.headers, there.modified)
    return True


@pytest.mark.parametrize("quirk", UNPROVEN)
@sizes
async def test_what_can_neither_be_proven_nor_read_is_sent_once(
    faulty_s3: FaultyS3, tmp_path: Path, quirk: str, cut: slice
) -> None:
    faulty_s3.etags, faulty_s3.digests = ETAGS[quirk], False
    faulty_s3.fault(method="GET", status=403, code="AccessDenied", times=FOREVER)
    async with running(in_parts(tmp_path, faulty_s3)) as daemon:
        daemon.drop("a", CONTENT[cut])
        assert await settled(daemon, 1) == ["a"]
    assert stored(faulty_s3) == {"a": CONTENT[cut]}


@pytest.mark.parametrize("quirk", ["of any form", "that look like an md5", "none", "kms"])
@sizes
async def test_a_store_that_is_set_up_anew_while_it_runs_costs_a_retry_at_most(
    faulty_s3: FaultyS3, tmp_path: Path, quirk: str, cut: slice
) -> None:
    """A gateway started again with other options: ETags that were MD5s are none any more."""
    async with running(in_parts(tmp_path, faulty_s3)) as daemon:
        daemon.drop("a", CONTENT[cut])
        await settled(daemon, 1)
        faulty_s3.etags = ETAGS[quirk]
        for count, content in enumerate((OTHER, THIRD), start=2):
            daemon.drop("a", content[cut])
            await daemon.done(count)
        assert daemon.events("file.quarantined", "watch.blocked", "store.unreachable") == []
        assert len(daemon.events("upload.retry")) <= 1
        assert {event["key"] for event in daemon.events("file.done")} == {"a"}
    assert stored(faulty_s3) == {"a": THIRD[cut]}
    assert times_stored(faulty_s3) <= 4


async def test_what_another_writes_over_ours_while_parts_are_sent_stays_though_no_etag_tells(
    faulty_s3: FaultyS3, tmp_path: Path
) -> None:
    """JuiceFS as its manual starts it: without conditions, without an ETag in a HEAD."""
    faulty_s3.etags, faulty_s3.conditions = ETAGS["none when looked for"], False
    theirs = Object(b"theirs", None, {}, faulty_s3.now())

    def overwrite(*_: str) -> bool:
        faulty_s3.objects[BUCKET, "a"] = theirs
        return True

    async with running(in_parts(tmp_path, faulty_s3)) as daemon:
        daemon.drop("a", CONTENT)
        await settled(daemon, 1)
        faulty_s3.fault(method="PUT", key="a", asks="partNumber", when=overwrite)
        daemon.drop("a", OTHER)
        await daemon.done(2)
    assert stored(faulty_s3) == {"a": b"theirs", "a~2": OTHER}


async def test_a_probe_that_fails_leaves_no_version(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    """Each probe of a store that takes a PUT and answers no HEAD would leave one, four a minute."""
    faulty_s3.fault(method="PUT", key=".presignd-check", times=FOREVER, headers={"x-amz-version-id": "v"})
    faulty_s3.fault(method="HEAD", key=".presignd-check", times=FOREVER, status=500, code="InternalError")
    async with running(in_parts(tmp_path, faulty_s3)) as daemon:
        daemon.drop("a", b"content")
        await daemon.said_by_now("store.unreachable")
        faulty_s3.heal()
        await daemon.done()
    check = [seen for seen in faulty_s3.requests if seen.key == ".presignd-check"]
    first = next(at for at, seen in enumerate(check) if seen.method == "HEAD")
    after = [seen for seen in check[first:] if seen.method in ("PUT", "DELETE")]
    assert (after[0].method, after[0].query.get("versionId")) == ("DELETE", "v")


async def test_a_name_of_32_digits_of_an_object_in_parts_is_no_md5(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    """Where a PUT is answered with its MD5, and an object in parts with a name that looks like one."""
    faulty_s3.etags = Etags(in_parts=lambda _: hex_name())
    faulty_s3.fault(**COMPLETE, reset="after")
    configured = in_parts(tmp_path, faulty_s3)
    async with running(configured) as daemon:
        daemon.drop("a", CONTENT)
        [done] = await daemon.done()
        assert (done["key"], done["attempt"]) == ("a", 1)
    shutil.rmtree(tmp_path / "state")
    async with running(configured) as daemon:
        [done] = await daemon.done()
        assert (done["key"], done["status"]) == ("a", "adopted")
    assert stored(faulty_s3) == {"a": CONTENT}


@quirks
@sizes
async def test_what_may_not_be_read_is_taken_for_anothers(
    faulty_s3: FaultyS3, tmp_path: Path, quirk: str, cut: slice
) -> None:
    """One object too many stays, once; what is nobody else's could only be overwritten by guessing."""
    faulty_s3.etags = ETAGS[quirk]
    faulty_s3.fault(method="GET", status=403, code="AccessDenied", times=FOREVER)
    configured = in_parts(tmp_path, faulty_s3)
    async with running(configured) as daemon:
        daemon.drop("a", CONTENT[cut])
        await daemon.done()
    shutil.rmtree(tmp_path / "state")
    async with running(configured) as daemon:
        await daemon.done()
        assert daemon.events("watch.blocked", "file.quarantined", "upload.retry") == []
    assert stored(faulty_s3) in ({"a": CONTENT[cut]}, {"a": CONTENT[cut], "a~2": CONTENT[cut]})


@pytest.mark.parametrize("quirk", ["r2", "oss", "of any form", "that look like an md5"])
async def test_a_newer_version_names_its_predecessor_by_the_stores_own_word(
    faulty_s3: FaultyS3, tmp_path: Path, quirk: str
) -> None:
    """Whatever its form, letter by letter, and without quotes, as Ceph's gateway wants it."""
    faulty_s3.etags = ETAGS[quirk]
    async with running(in_parts(tmp_path, faulty_s3)) as daemon:
        daemon.drop("a", b"first")
        await daemon.done()
        was = (faulty_s3.objects[BUCKET, "a"].etag or "").strip('"')
        daemon.drop("a", b"second")
        await daemon.done(2)
    assert faulty_s3.seen("PUT", "a")[-1].headers["if-match"] == was


@conditions
@pytest.mark.parametrize("kept", [0, 3, 7])
@pytest.mark.parametrize("ours", [True, False], ids=["ours", "another's"])
async def test_what_is_left_of_a_put_that_broke_off_is_known_where_stores_leave_such_things(
    faulty_s3: FaultyS3, tmp_path: Path, kept: int, *, ours: bool, conditional: bool
) -> None:
    """s3rver keeps what came of it. A store with conditional writes leaves nothing: what is there is another's."""
    faulty_s3.conditions = conditional
    left = b"content"[:kept] if ours else b"another"[: kept or 1]

    def break_off(*_: str) -> bool:
        faulty_s3.objects[BUCKET, "a"] = Object(left, f'"{md5(left)}"', {}, faulty_s3.now())
        return True

    faulty_s3.fault(method="PUT", key="a", when=break_off, status=500, code="InternalError")
    async with running(in_parts(tmp_path, faulty_s3)) as daemon:
        daemon.drop("a", b"content")
        await daemon.done()
    known = ours and (not conditional or kept == len(b"content"))
    assert stored(faulty_s3) == ({"a": b"content"} if known else {"a": left, "a~2": b"content"})


# --- real servers that tell none -----------------------------------------------------------------------------


@pytest.fixture(params=["juicefs", "juicefs_plain", "rclone", "rclone_plain", "ceph"])
def real(request: pytest.FixtureRequest) -> Store:
    server: Store = request.getfixturevalue(request.param)
    return server


def on(folder: Path, store: Store, bucket: str) -> Config:
    of: Any = store
    return in_parts(folder, of, watch(folder, bucket=bucket), part_size=5 << 20, multipart_threshold=5 << 20)


LARGE = random.Random(4).randbytes(11 << 20)


@pytest.mark.parametrize("size", [100, len(LARGE)], ids=["whole", "in parts"])
async def test_on_real_servers_each_file_is_one_object(real: Store, tmp_path: Path, size: int) -> None:
    bucket = real.new_bucket()
    configured = on(tmp_path, real, bucket)
    first, second = LARGE[:size], LARGE[::-1][:size]
    async with running(configured) as daemon:
        daemon.drop("a", first)
        await settled(daemon, 1)
        path = daemon.drop("a", second)
        await settled(daemon, 2)
        os.utime(path, (1, 1))
        path.rename(path.with_name("b"))
        path.with_name("b").rename(path)
        await daemon.rescan()
    assert [key for key in real.list(bucket) if not key.startswith(".")] == ["a"]
    assert real.read(bucket, "a") == second
    shutil.rmtree(tmp_path / "state")
    async with running(configured) as daemon:
        [done] = await daemon.done()
        assert (done["key"], done["status"]) == ("a", "adopted")
    assert [key for key in real.list(bucket) if not key.startswith(".")] == ["a"]
