"""A daemon on stores that honour some conditions, none, or refuse them: no other writer's object is overwritten."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from tests.faulty_s3 import BUCKET, FOREVER, FaultyS3, Object
from tests.running import config, running, watch
from tests.stores import Store

PARTS = {"multipart_threshold": 5 << 20, "part_size": 5 << 20, "part_concurrency": 1}
LARGE = os.urandom(11 << 20)
CONDITIONS = {"if-none-match", "if-match"}


def sent_with_conditions(store: FaultyS3) -> list[str]:
    """Return the keys of the files' requests that carried a condition."""
    files = [seen for seen in store.requests if not seen.key.endswith(".presignd-check")]
    return [seen.key for seen in files if CONDITIONS & set(seen.headers)]


async def test_a_store_that_refuses_conditions_is_sent_none(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    """Swift: every upload ended in quarantine, as if the store had failed inside."""
    faulty_s3.refuses_conditions = True
    async with running(config(tmp_path, faulty_s3, upload=PARTS)) as daemon:
        daemon.drop("a", b"first")
        daemon.drop("large", LARGE)
        await daemon.done(2)
        daemon.drop("a", b"second, longer")
        await daemon.done(3)
        assert daemon.events("upload.retry", "file.quarantined", "store.unreachable", "watch.blocked") == []
    assert faulty_s3.objects[BUCKET, "a"].body == b"second, longer"
    assert faulty_s3.objects[BUCKET, "large"].body == LARGE
    assert set(faulty_s3.objects) == {(BUCKET, "a"), (BUCKET, "large")}
    assert sent_with_conditions(faulty_s3) == []


async def test_conditions_of_uploads_in_parts_are_proven_only_for_a_file_that_needs_it(
    faulty_s3: FaultyS3, tmp_path: Path
) -> None:
    async with running(config(tmp_path, faulty_s3, upload={**PARTS, "checksum": "md5"})) as daemon:
        daemon.drop("a")
        await daemon.done()
        assert faulty_s3.seen("POST") == []
        for number in range(2):
            daemon.drop(f"large-{number}", LARGE)
        await daemon.done(3)
    created = [seen for seen in faulty_s3.seen("POST", ".presignd-check") if "uploads" in seen.query]
    assert len(created) == 4
    assert faulty_s3.uploads.under_way == {}
    assert "large-0" in sent_with_conditions(faulty_s3)


def writes_meanwhile(store: FaultyS3, key: str, body: bytes) -> None:
    """Let another client write ``key`` when the daemon sends a part of it."""

    def stranger(method: str, of: str) -> bool:
        if (method, of) == ("PUT", key):
            store.objects[BUCKET, key] = Object(body, '"a-strangers"', {}, store.now())
        return False

    store.fault(when=stranger, times=FOREVER)


@pytest.mark.parametrize("conditions", [True, False], ids=["of a PUT alone", "none"])
async def test_what_a_stranger_writes_while_parts_are_sent_stays(
    faulty_s3: FaultyS3, tmp_path: Path, *, conditions: bool
) -> None:
    faulty_s3.conditions, faulty_s3.conditions_at_the_end = conditions, False
    writes_meanwhile(faulty_s3, "large", b"a stranger's")
    async with running(config(tmp_path, faulty_s3, upload=PARTS)) as daemon:
        daemon.drop("large", LARGE)
        [done] = await daemon.done()
        assert (done["status"], done["key"]) == ("linked", "large~2")
    assert faulty_s3.objects[BUCKET, "large"].body == b"a stranger's"
    assert faulty_s3.objects[BUCKET, "large~2"].body == LARGE
    assert faulty_s3.uploads.under_way == {}


async def test_our_own_object_that_a_stranger_replaced_while_parts_are_sent_stays_replaced(
    faulty_s3: FaultyS3, tmp_path: Path
) -> None:
    faulty_s3.conditions_at_the_end = False
    async with running(config(tmp_path, faulty_s3, upload=PARTS)) as daemon:
        daemon.drop("large", LARGE)
        await daemon.done()
        writes_meanwhile(faulty_s3, "large", b"a stranger's")
        daemon.drop("large", LARGE[::-1])
        _, done = await daemon.done(2)
        assert done["key"] == "large~2"
    assert faulty_s3.objects[BUCKET, "large"].body == b"a stranger's"


# --- Ceph, which honours conditions of a PUT alone -------------------------------------------------


async def test_on_ceph_files_go_whole_and_in_parts_and_replace_their_own(ceph: Store, tmp_path: Path) -> None:
    bucket = ceph.new_bucket()
    first, second = os.urandom(11 << 20), os.urandom(12 << 20)
    async with running(config(tmp_path, ceph, watch(tmp_path, bucket=bucket), upload=PARTS)) as daemon:
        daemon.drop("small", b"first")
        daemon.drop("large", first)
        await daemon.done(2)
        assert (ceph.read(bucket, "small"), ceph.read(bucket, "large")) == (b"first", first)
        daemon.drop("small", b"second")
        daemon.drop("large", second)
        await daemon.done(4)
        assert daemon.events("upload.retry", "file.quarantined") == []
    assert (ceph.read(bucket, "small"), ceph.read(bucket, "large")) == (b"second", second)
    assert ceph.list(bucket) == ["large", "small"]
    assert ceph.client.list_multipart_uploads(Bucket=bucket).get("Uploads") is None


async def test_on_ceph_what_is_there_already_is_adopted(ceph: Store, tmp_path: Path) -> None:
    bucket = ceph.new_bucket()
    for name in ("one", "another"):
        (tmp_path / name).mkdir()
        at = tmp_path / name
        async with running(config(at, ceph, watch(at, bucket=bucket), upload=PARTS)) as daemon:
            daemon.drop("small", b"content")
            daemon.drop("large", LARGE)
            ended = await daemon.done(2)
    assert [done["status"] for done in ended] == ["adopted", "adopted"]
    assert ceph.list(bucket) == ["large", "small"]


async def test_on_ceph_what_a_stranger_writes_while_parts_are_sent_stays(ceph: Store, tmp_path: Path) -> None:
    bucket = ceph.new_bucket()
    slow = {**PARTS, "max_rate": 4 << 20}
    async with running(config(tmp_path, ceph, watch(tmp_path, bucket=bucket), upload=slow)) as daemon:
        daemon.drop("large", LARGE)
        await daemon.until(lambda: any(each.sent for each in daemon.work.dispatcher.at_work.values()), "a part sent")
        await asyncio.to_thread(ceph.write, bucket, "large", b"a stranger's")
        [done] = await daemon.done()
        assert (done["status"], done["key"]) == ("linked", "large~2")
    assert ceph.read(bucket, "large") == b"a stranger's"
    assert ceph.read(bucket, "large~2") == LARGE
