"""CRCs in place of MD5: proven for each bucket, compared at every step, and no proof of another's object."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from presignd.config import Config, PresignConfig
from presignd.ledger import Selection
from presignd.pipeline.upload.bucket import Bucket
from presignd.s3.checksums import checksum_of, header_of
from presignd.store.support import Support
from tests.fake_broker import TOKEN, FakeBroker, Grants, fake_broker
from tests.faulty_etags import ETAGS, Etags
from tests.faulty_s3 import BUCKET, FOREVER, FaultyS3, Object
from tests.forged import forged
from tests.integration.test_faults_etags import THIRD, UNCLEAR_COMPLETES, settled, stored, times_stored
from tests.integration.test_faults_parts import COMPLETE, CONTENT, ONE_PART, OTHER, in_parts, none_left, parts_sent
from tests.integration.test_verify import verified
from tests.running import config, running, watch
from tests.stores import Store

pytest.importorskip("awscrt", reason="CRCs need awscrt")

QUIRKS = {"s3": Etags(), "of any form": ETAGS["of any form"], "kms": ETAGS["kms"]}
quirks = pytest.mark.parametrize("etags", QUIRKS.values(), ids=list(QUIRKS))
sizes = pytest.mark.parametrize("cut", [slice(100), slice(None)], ids=["whole", "in parts"])


def crc(store: FaultyS3, folder: Path, algorithm: str = "crc64nvme", etags: Etags | None = None, **more: Any) -> Config:
    """Configure a daemon on a store that knows CRCs."""
    store.checksums = {"sha256", "crc64nvme", "crc32c"}
    store.etags = etags or Etags()
    return in_parts(folder, store, checksum=algorithm, **more)


def put_there(store: FaultyS3, body: bytes) -> None:
    """Store an object of another's under the key, with its checksum."""
    etags, told = store.etags, dict([header_of(checksum_of(body, "crc64nvme"))])
    etag = etags.whole and f'"{etags.whole(body)}"'
    store.objects[BUCKET, "a"] = Object(body, etag, etags.headers, store.now(), told)


# --- proof ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["crc64nvme", "crc32c", "sha256"])
@pytest.mark.parametrize("in_parts", [False, True], ids=["whole", "in parts"])
async def test_a_real_store_that_checks_and_tells_is_seen_to(
    seaweedfs: Store, tmp_path: Path, algorithm: str, *, in_parts: bool
) -> None:
    seen = await support_of(seaweedfs, tmp_path, algorithm, in_parts=in_parts)
    expected = ("md5", False) if in_parts and algorithm == "sha256" else (algorithm, True)
    assert (seen.checksum, seen.proven) == expected


@pytest.mark.parametrize("name", ["juicefs", "juicefs_plain", "rclone", "rclone_plain", "ceph"])
@pytest.mark.parametrize("in_parts", [False, True], ids=["whole", "in parts"])
async def test_a_real_store_that_takes_a_wrong_crc_gets_the_md5(
    request: pytest.FixtureRequest, tmp_path: Path, name: str, *, in_parts: bool
) -> None:
    seen = await support_of(request.getfixturevalue(name), tmp_path, "crc64nvme", in_parts=in_parts)
    assert "md5" in seen.algorithms
    assert not seen.proven


async def support_of(store: Store, folder: Path, algorithm: str, *, in_parts: bool) -> Support:
    configured = config_of(store, folder, algorithm)
    async with running(configured) as daemon:
        bucket: Bucket = daemon.work.buckets["drop"]
        return await bucket.support(in_parts=in_parts)


def config_of(store: Store, folder: Path, algorithm: str) -> Config:
    limits = {"checksum": algorithm, "multipart_threshold": 5 << 20, "part_size": 5 << 20}
    return config(folder, store, watch(folder, bucket=store.new_bucket()), upload=limits)


@pytest.mark.parametrize("algorithm", ["crc64nvme", "crc32c"])
async def test_a_real_store_takes_a_file_and_one_in_parts_by_their_crc(
    seaweedfs: Store, tmp_path: Path, algorithm: str
) -> None:
    configured = config_of(seaweedfs, tmp_path, algorithm)
    large = os.urandom((11 << 20) + 3)
    async with running(configured) as daemon:
        for name, content in (("small", b"content"), ("large", large), ("empty", b"")):
            daemon.drop(name, content)
        done = {event["key"]: event["checksum"] for event in await daemon.done(3)}
        assert daemon.events("upload.retry") == []
    assert done == {
        "small": checksum_of(b"content", algorithm),
        "large": checksum_of(large, algorithm),
        "empty": checksum_of(b"", algorithm),
    }
    bucket = configured.watches[0].bucket
    assert seaweedfs.read(bucket, "large") == large
    assert seaweedfs.read(bucket, "small") == b"content"


REFUSALS: dict[str, dict[str, Any]] = {
    "a header that is not implemented": {"status": 501, "code": "NotImplemented"},
    "a proxy that drops the header": {"status": 403, "code": "SignatureDoesNotMatch"},
    "an invalid request": {"status": 400, "code": "InvalidRequest"},
}


@pytest.mark.parametrize("how", REFUSALS.values(), ids=list(REFUSALS))
@pytest.mark.parametrize("in_parts", [False, True], ids=["whole", "in parts"])
async def test_a_store_that_refuses_the_right_crc_is_no_fault(
    faulty_s3: FaultyS3, tmp_path: Path, how: dict[str, Any], *, in_parts: bool
) -> None:
    async with running(crc(faulty_s3, tmp_path)) as daemon:
        probe = await daemon.work.buckets["drop"].new_probe()
        await probe.write()
        if in_parts:
            faulty_s3.fault(method="POST", asks="uploads", **how)
        else:
            faulty_s3.fault(method="PUT", **how)
        assert await probe.choose("crc64nvme", in_parts=in_parts) == ("md5" if in_parts else "crc64nvme", False)
        await probe.remove()
        assert daemon.events("watch.blocked", "store.unreachable") == []


# --- what is sent and compared ------------------------------------------------------------------------


@quirks
@sizes
async def test_a_file_is_hashed_once_sent_once_and_never_read_back(
    faulty_s3: FaultyS3, tmp_path: Path, cut: slice, etags: Etags
) -> None:
    async with running(crc(faulty_s3, tmp_path, etags=etags)) as daemon:
        for count, content in enumerate((CONTENT, OTHER, THIRD), start=1):
            path = daemon.drop("a", content[cut])
            await settled(daemon, count)
        path.unlink()
        path.write_bytes(THIRD[cut])
        os.utime(path, (1, 1))
        assert set(await settled(daemon, 4)) == {"a"}
        done = daemon.events("file.done")[-1]
        assert done["checksum"] == checksum_of(THIRD[cut], "crc64nvme")
        await none_left(daemon, faulty_s3)
    assert stored(faulty_s3) == {"a": THIRD[cut]}
    assert times_stored(faulty_s3) == 3
    assert faulty_s3.seen("GET", "a") == []
    assert all("content-md5" not in seen.headers for seen in faulty_s3.seen("PUT", "a"))


@sizes
async def test_a_wrong_crc_that_the_store_tells_is_a_corrupted_transfer(
    faulty_s3: FaultyS3, tmp_path: Path, cut: slice
) -> None:
    name, value = header_of(checksum_of(b"other", "crc64nvme"))
    async with running(crc(faulty_s3, tmp_path)) as daemon:
        faulty_s3.fault("PUT", "a", status=200, headers={name: value, "ETag": '"e"'}, body=b"")
        daemon.drop("a", CONTENT[cut])
        await daemon.done()
        assert daemon.codes("upload.retry") == ["bad_digest"]
    assert stored(faulty_s3) == {"a": CONTENT[cut]}


NAME, OTHER_CRC = header_of(checksum_of(OTHER, "crc64nvme"))
WRONG_COMPLETES: dict[str, dict[str, Any]] = {
    "the answer": {
        **COMPLETE,
        "late": True,
        "body": f"<C><ETag>e</ETag><ChecksumCRC64NVME>{OTHER_CRC}</ChecksumCRC64NVME></C>".encode(),
    },
    "the HEAD after it": {
        "method": "HEAD",
        "when": lambda _, key: key == "a",
        "headers": {NAME: OTHER_CRC, "Content-Length": str(len(CONTENT)), "ETag": '"e"'},
        "body": b"",
    },
}


@pytest.mark.parametrize("how", WRONG_COMPLETES.values(), ids=list(WRONG_COMPLETES))
async def test_a_whole_of_another_crc_than_its_parts_make_is_not_believed(
    faulty_s3: FaultyS3, tmp_path: Path, how: dict[str, Any]
) -> None:
    async with running(crc(faulty_s3, tmp_path, etags=QUIRKS["kms"])) as daemon:
        await daemon.work.buckets["drop"].support(in_parts=True)
        if how["method"] == "HEAD":  # the first finds no object there
            faulty_s3.fault("HEAD", "a", status=404, code="NoSuchKey")
        faulty_s3.fault(**{"status": 200, **how})
        daemon.drop("a", CONTENT)
        [done] = await daemon.done()
        assert (done["key"], done["attempt"]) == ("a", 2)
        assert daemon.codes("upload.retry") == ["bad_digest"]
        await none_left(daemon, faulty_s3)
    assert stored(faulty_s3) == {"a": CONTENT}


async def test_an_answer_without_the_checksum_is_followed_by_a_head(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    async with running(crc(faulty_s3, tmp_path)) as daemon:
        faulty_s3.fault("PUT", "a", status=200, late=True, headers={"ETag": '"e"'}, body=b"")
        daemon.drop("a", b"content")
        assert await settled(daemon, 1) == ["a"]
    assert [seen.method for seen in faulty_s3.requests if seen.key == "a"] == ["PUT", "HEAD"]


async def test_another_object_that_comes_while_parts_are_sent_is_not_ours(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    def write_theirs(*_: str) -> bool:
        put_there(faulty_s3, OTHER)
        return True

    async with running(crc(faulty_s3, tmp_path, etags=QUIRKS["kms"])) as daemon:
        faulty_s3.fault(**COMPLETE, status=500, code="InternalError", when=write_theirs)
        daemon.drop("a", CONTENT)
        [done] = await daemon.done()
        assert (done["key"], done["attempt"]) == ("a~2", 2)
    assert stored(faulty_s3) == {"a": OTHER, "a~2": CONTENT}


@sizes
async def test_a_store_that_comes_back_as_one_that_knows_no_crc_costs_a_retry(
    faulty_s3: FaultyS3, tmp_path: Path, cut: slice
) -> None:
    async with running(crc(faulty_s3, tmp_path)) as daemon:
        daemon.drop("a", CONTENT[cut])
        await settled(daemon, 1)
        faulty_s3.checksums = set()
        daemon.drop("a", OTHER[cut])
        await daemon.done(2)
        daemon.drop("b", OTHER[cut])
        await daemon.done(3)
        assert daemon.codes("upload.retry") == ["bad_digest"]
    assert stored(faulty_s3) == {"a": OTHER[cut], "b": OTHER[cut]}
    assert all("content-md5" in seen.headers for seen in faulty_s3.seen("PUT", "b"))


# --- crash windows and unclear ends -------------------------------------------------------------------


@quirks
@pytest.mark.parametrize("conditional", [True, False], ids=["conditions", "no conditions"])
async def test_an_unclear_put_is_settled_by_what_is_there(
    faulty_s3: FaultyS3, tmp_path: Path, etags: Etags, *, conditional: bool
) -> None:
    faulty_s3.conditions = conditional
    faulty_s3.fault(method="PUT", key="a", status=500, code="InternalError", late=True)
    async with running(crc(faulty_s3, tmp_path, etags=etags)) as daemon:
        daemon.drop("a", CONTENT[:100])
        [done] = await daemon.done()
        assert (done["key"], done["attempt"]) == ("a", 2)
    assert stored(faulty_s3) == {"a": CONTENT[:100]}
    assert len(faulty_s3.seen("PUT", "a")) == 1
    assert faulty_s3.seen("GET", "a") == []


@quirks
@pytest.mark.parametrize("how", list(UNCLEAR_COMPLETES.values()), ids=list(UNCLEAR_COMPLETES))
async def test_an_unclear_complete_is_settled_by_what_is_there(
    faulty_s3: FaultyS3, tmp_path: Path, etags: Etags, how: dict[str, Any]
) -> None:
    faulty_s3.fault(**COMPLETE, **how)
    async with running(crc(faulty_s3, tmp_path, etags=etags)) as daemon:
        daemon.drop("a", CONTENT)
        [done] = await daemon.done()
        assert (done["key"], done["attempt"]) == ("a", 1)
        assert done["checksum"] == checksum_of(CONTENT, "crc64nvme")
    assert stored(faulty_s3) == {"a": CONTENT}
    assert sorted(parts_sent(faulty_s3)) == [1, 2, 3, 4]
    assert faulty_s3.seen("GET", "a") == []


@quirks
@sizes
async def test_what_an_unclear_put_left_there_is_known_for_its_paths_own_by_newer_content(
    faulty_s3: FaultyS3, tmp_path: Path, cut: slice, etags: Etags
) -> None:
    method = "PUT" if cut.stop else "POST"
    last = {} if cut.stop else {"asks": "uploadId"}
    faulty_s3.fault(method=method, key="a", status=500, code="InternalError", late=True, **last)
    faulty_s3.fault(times=FOREVER, status=503, code="SlowDown", when=lambda *_: (BUCKET, "a") in faulty_s3.objects)
    async with running(crc(faulty_s3, tmp_path, etags=etags)) as daemon:
        daemon.drop("a", CONTENT[cut])
        await daemon.said_by_now("store.unreachable")
        daemon.drop("a", OTHER[cut])
        await daemon.said_by_now("file.done")
        faulty_s3.heal()
        await daemon.done()
    assert stored(faulty_s3) == {"a": OTHER[cut]}


async def test_an_upload_goes_on_with_the_algorithm_it_was_created_with(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    faulty_s3.fault(**ONE_PART, times=FOREVER, hang="before", when=lambda *_: len(parts_sent(faulty_s3)) >= 2)
    async with running(crc(faulty_s3, tmp_path)) as daemon:
        daemon.drop("a", CONTENT)
        await daemon.until(lambda: len(parts_sent(faulty_s3)) >= 2, "two parts")
    faulty_s3.heal()
    async with running(crc(faulty_s3, tmp_path, "md5")) as daemon:
        [done] = await daemon.done()
        assert done["checksum"] == checksum_of(CONTENT, "crc64nvme")
        assert daemon.events("upload.retry") == []
    assert len([seen for seen in faulty_s3.seen("POST", "a") if "uploads" in seen.query]) == 1
    assert stored(faulty_s3) == {"a": CONTENT}


async def test_an_upload_without_a_part_goes_on_with_its_algorithm_too(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    faulty_s3.fault(**ONE_PART, times=FOREVER, hang="before")
    async with running(crc(faulty_s3, tmp_path, "md5")) as daemon:
        daemon.drop("a", CONTENT)
        await daemon.until(lambda: faulty_s3.busy, "a part under way")
    faulty_s3.heal()
    async with running(crc(faulty_s3, tmp_path)) as daemon:
        [done] = await daemon.done()
        assert done["checksum"].startswith("md5:")
    assert stored(faulty_s3) == {"a": CONTENT}


async def test_after_a_retry_by_hand_its_own_object_is_known_by_what_was_committed(
    faulty_s3: FaultyS3, tmp_path: Path
) -> None:
    faulty_s3.fault(method="PUT", key="a", status=500, code="InternalError", late=True)
    configured = crc(faulty_s3, tmp_path, etags=QUIRKS["kms"], attempts=1)
    async with running(configured) as daemon:
        daemon.drop("a", b"content")
        await daemon.said_by_now("file.quarantined")
        await daemon.view.requeue(Selection())
        assert (await daemon.done())[0]["key"] == "a"
    assert stored(faulty_s3) == {"a": b"content"}
    assert faulty_s3.seen("GET", "a") == []


# --- another's objects --------------------------------------------------------------------------------


@quirks
@sizes
@pytest.mark.parametrize("conditional", [True, False], ids=["conditions", "no conditions"])
async def test_another_object_of_the_same_crc_is_not_adopted(
    faulty_s3: FaultyS3, tmp_path: Path, cut: slice, etags: Etags, *, conditional: bool
) -> None:
    """Anybody can make one. Not even the intent that was committed just before the 412 makes it ours."""
    faulty_s3.conditions = conditional
    configured = crc(faulty_s3, tmp_path, etags=etags)
    theirs = forged(CONTENT[cut])
    put_there(faulty_s3, theirs)
    async with running(configured) as daemon:
        daemon.drop("a", CONTENT[cut])
        assert await settled(daemon, 1) == ["a~2"]
    assert stored(faulty_s3) == {"a": theirs, "a~2": CONTENT[cut]}


@quirks
@sizes
async def test_another_object_of_the_same_crc_in_place_of_ours_is_not_ours(
    faulty_s3: FaultyS3, tmp_path: Path, cut: slice, etags: Etags
) -> None:
    """The receipt has the ETag, and that differs."""
    configured = crc(faulty_s3, tmp_path, etags=etags)
    async with running(configured) as daemon:
        path = daemon.drop("a", CONTENT[cut])
        await settled(daemon, 1)
        theirs = forged(CONTENT[cut])
        put_there(faulty_s3, theirs)
        path.unlink()
        path.write_bytes(CONTENT[cut])
        os.utime(path, (1, 1))
        assert (await settled(daemon, 2))[-1] == "a~2"
    assert stored(faulty_s3) == {"a": theirs, "a~2": CONTENT[cut]}


@quirks
@sizes
async def test_a_lost_ledger_adopts_the_same_bytes_by_their_md5(
    faulty_s3: FaultyS3, tmp_path: Path, cut: slice, etags: Etags
) -> None:
    configured = crc(faulty_s3, tmp_path, etags=etags)
    async with running(configured) as daemon:
        daemon.drop("a", CONTENT[cut])
        await daemon.done()
    shutil.rmtree(tmp_path / "state")
    async with running(configured) as daemon:
        [done] = await daemon.done()
        assert (done["key"], done["status"]) == ("a", "adopted")
    assert stored(faulty_s3) == {"a": CONTENT[cut]}


@quirks
@sizes
async def test_what_md5_stored_is_not_sent_again_with_a_crc(
    faulty_s3: FaultyS3, tmp_path: Path, cut: slice, etags: Etags
) -> None:
    """An update of presignd: the receipts have MD5s, and the same content comes again."""
    async with running(crc(faulty_s3, tmp_path, "md5", etags=etags)) as daemon:
        path = daemon.drop("a", CONTENT[cut])
        await settled(daemon, 1)
    path.unlink()
    path.write_bytes(CONTENT[cut])
    os.utime(path, (1, 1))
    async with running(crc(faulty_s3, tmp_path, etags=etags)) as daemon:
        assert await settled(daemon, 1) == ["a"]
    assert times_stored(faulty_s3) == 1


# --- auto, and brokers --------------------------------------------------------------------------------


@sizes
@pytest.mark.parametrize("known", [True, False], ids=["a store that knows it", "another"])
async def test_auto_is_crc64nvme_where_the_store_checks_it_and_md5_elsewhere(
    faulty_s3: FaultyS3, tmp_path: Path, cut: slice, *, known: bool
) -> None:
    configured = crc(faulty_s3, tmp_path, "auto")
    faulty_s3.checksums = {"crc64nvme"} if known else set()
    async with running(configured) as daemon:
        daemon.drop("a", CONTENT[cut])
        [done] = await daemon.done()
        assert done["checksum"].startswith("crc64nvme:" if known else "md5:")
    sent = [seen.headers for seen in faulty_s3.seen("PUT", "a")]
    assert all(("content-md5" in headers) != known for headers in sent)
    assert all(("x-amz-checksum-crc64nvme" in headers) == known for headers in sent)


async def test_after_an_outage_a_store_is_asked_again_what_it_checks(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    configured = crc(faulty_s3, tmp_path, "auto")
    faulty_s3.checksums = set()
    async with running(configured) as daemon:
        daemon.drop("a")
        await daemon.done()
        faulty_s3.stop()
        daemon.drop("b")
        await daemon.said_by_now("store.unreachable")
        faulty_s3.checksums = {"crc64nvme"}
        faulty_s3.start()
        done = {event["key"]: event["checksum"].partition(":")[0] for event in await daemon.done(2)}
    assert done == {"a": "md5", "b": "crc64nvme"}


@pytest.fixture
def broker(faulty_s3: FaultyS3) -> Iterator[FakeBroker]:
    with fake_broker(faulty_s3) as fake:
        yield fake


def by_broker(configured: Config, broker: FakeBroker) -> Config:
    presign = PresignConfig(kind="broker", url=broker.url, token=SecretStr(TOKEN), endpoint=configured.presign.endpoint)
    return configured.model_copy(update={"presign": presign})


def newer_fields(broker: FakeBroker) -> set[str]:
    """Return what was asked of the broker that an older one doesn't know."""
    asked = [grant for post in broker.posts() for grant in post.grants]
    values = {grant["checksum"].partition(":")[0] for grant in asked if "checksum" in grant} - {"md5", "sha256"}
    return values | {name for grant in asked for name in grant if name.startswith("checksum_")}


@sizes
@pytest.mark.parametrize("algorithm", ["auto", "sha256", "crc64nvme"])
async def test_an_older_broker_is_asked_for_nothing_that_it_does_not_know(
    faulty_s3: FaultyS3, broker: FakeBroker, tmp_path: Path, cut: slice, algorithm: str
) -> None:
    async with running(by_broker(crc(faulty_s3, tmp_path, algorithm), broker)) as daemon:
        daemon.drop("a", CONTENT[cut])
        await daemon.done()
    assert newer_fields(broker) == set()
    assert all("content-md5" in seen.headers for seen in faulty_s3.seen("PUT", "a"))


@sizes
async def test_a_broker_that_signs_crcs_is_asked_for_them(
    faulty_s3: FaultyS3, broker: FakeBroker, tmp_path: Path, cut: slice
) -> None:
    broker.me["checksums"] = ["md5", "sha256", "crc64nvme", "crc32c", "blake3"]
    async with running(by_broker(crc(faulty_s3, tmp_path, "auto"), broker)) as daemon:
        daemon.drop("a", CONTENT[cut])
        [done] = await daemon.done()
        assert done["checksum"] == checksum_of(CONTENT[cut], "crc64nvme")


@sizes
async def test_an_older_broker_in_place_of_one_that_signs_crcs_costs_retries_only(
    faulty_s3: FaultyS3, broker: FakeBroker, tmp_path: Path, cut: slice
) -> None:
    """Several brokers at one address, of which some were not updated yet."""
    broker.me["checksums"] = ["md5", "sha256", "crc64nvme"]

    def refuse(answers: Grants) -> Grants:
        refused = {"error": {"code": "grant_refused", "message": "the checksum is neither md5 nor sha256"}}
        return [refused if "x-amz-checksum-crc64nvme" in each.get("headers", {}) else each for each in answers]

    async with running(by_broker(crc(faulty_s3, tmp_path, "auto"), broker)) as daemon:
        daemon.drop("a", CONTENT[cut])
        await daemon.done()
        broker.fault(times=FOREVER, change=refuse)
        del broker.me["checksums"]
        daemon.drop("b", CONTENT[cut])
        done = (await daemon.done(2))[-1]
        assert done["checksum"].startswith("md5:")
        assert daemon.events("file.quarantined") == []
        assert (await verified(daemon, "a"))["a"]["outcome"] == "equal"
    assert stored(faulty_s3) == {"a": CONTENT[cut], "b": CONTENT[cut]}
    assert faulty_s3.uploads.under_way == {}
