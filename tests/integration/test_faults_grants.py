"""Faults of grants, credentials, clocks and policies, and the probe of a store."""

from __future__ import annotations

import asyncio
import hashlib
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from presignd.store.signed import LEAST_LEFT
from presignd.store.support import Support
from tests.faulty_s3 import BUCKET, FOREVER, FaultyS3
from tests.running import config, watch
from tests.running import running_in_debug as running

OTHERS = [f"other-{number}" for number in range(20)]
HELD_UP = ("store.unreachable", "watch.blocked", "presigner.unreachable")


async def test_a_grant_that_died_on_its_way_is_replaced_at_once(
    faulty_s3: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(config(tmp_path, faulty_s3)) as daemon:
        daemon.drop("first")
        await daemon.done()
        faulty_s3.fault(method="PUT", key="late", status=400, code="AccessDenied", message="Request has expired")
        ours = daemon.work.store._clock
        monkeypatch.setattr(daemon.work.store, "_clock", lambda: ours() + timedelta(hours=2))
        faulty_s3.clock_skew = timedelta(hours=2)
        daemon.drop("late")
        await daemon.said_by_now("upload.retry")
        monkeypatch.setattr(daemon.work.store, "_clock", ours)
        faulty_s3.clock_skew = timedelta()
        await daemon.done(2)
        assert daemon.codes("upload.retry")[0] == "expired_grant"
        assert daemon.events("file.quarantined", *HELD_UP) == []


async def test_a_grant_that_is_almost_dead_is_never_sent_and_waited_out(
    faulty_s3: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Credentials that end within seconds make such grants; no file is charged for that."""
    async with running(config(tmp_path, faulty_s3, upload={"attempts": 2})) as daemon:
        source = daemon.work.presigner.credentials  # type: ignore[attr-defined] # the local one
        held = await source.get()
        ends = datetime.now(UTC) + timedelta(seconds=LEAST_LEFT - 5)
        object.__setattr__(held, "expires_at", ends)
        for name in OTHERS:
            daemon.drop(name)
        [away] = await daemon.said_by_now("presigner.unreachable")
        assert away["error_code"] == "expired_grant"
        await asyncio.sleep(0.2)
        assert faulty_s3.requests == []
        object.__setattr__(held, "expires_at", None)
        await daemon.done(len(OTHERS))
        assert len(daemon.events("presigner.unreachable", "presigner.back")) == 2
        assert daemon.events("upload.retry", "file.quarantined") == []


async def test_an_expired_token_is_replaced_from_a_rewritten_shared_file(
    faulty_s3: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "credentials"

    def write(access_key: str) -> None:
        secret = "the-secret-of-" + access_key
        shared.write_text(f"[default]\naws_access_key_id = {access_key}\naws_secret_access_key = {secret}\n")

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "MINIO_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(shared))
    write("old")
    configured = config(tmp_path, faulty_s3, access_key="", secret_key=None)
    async with running(configured) as daemon:
        daemon.drop("first")
        await daemon.done()
        expired = faulty_s3.fault(status=400, code="ExpiredToken", times=FOREVER)
        daemon.drop("second")
        [blocked] = await daemon.said_by_now("watch.blocked")
        assert blocked["error_code"] == "expired_credentials"
        write("new")
        await daemon.until(
            lambda: faulty_s3.requests[-1].query.get("X-Amz-Credential", "").startswith("new/"), "the new key in use"
        )
        expired.times = 0
        await daemon.done(2)
        assert len(daemon.events("watch.blocked", "watch.unblocked")) == 2
        assert daemon.events("upload.retry", "file.quarantined") == []


async def test_keys_that_were_rotated_already_block_nothing(
    faulty_s3: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "credentials"
    text = "[default]\naws_access_key_id = {0}\naws_secret_access_key = the-secret-of-{0}\n"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(shared))
    shared.write_text(text.format("old"))
    async with running(config(tmp_path, faulty_s3, access_key="", secret_key=None)) as daemon:
        daemon.drop("first")
        await daemon.done()
        shared.write_text(text.format("new"))
        faulty_s3.fault(key="second", status=403, code="InvalidAccessKeyId")
        daemon.drop("second")
        await daemon.done(2)
        assert daemon.events(*HELD_UP) == []
    assert faulty_s3.requests[-1].query["X-Amz-Credential"].startswith("new/")


@pytest.mark.parametrize("hours", [1, -1])
async def test_a_date_an_hour_off_hinders_nothing_that_the_store_accepts(
    faulty_s3: FaultyS3, tmp_path: Path, hours: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, shown = faulty_s3.now, timedelta(hours=hours)
    monkeypatch.setattr(
        "tests.faulty_s3._Handler._common", lambda _: {"Date": (real() + shown).strftime("%a, %d %b %Y %H:%M:%S GMT")}
    )
    async with running(config(tmp_path, faulty_s3)) as daemon:
        daemon.drop("a")
        await daemon.done()
        assert daemon.events("upload.retry", *HELD_UP) == []


async def test_a_store_whose_clock_is_an_hour_off_is_named_as_that(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    faulty_s3.clock_skew = timedelta(hours=2)
    async with running(config(tmp_path, faulty_s3)) as daemon:
        daemon.drop("a")
        [blocked] = await daemon.said_by_now("watch.blocked")
        assert blocked["error_code"] == "clock_skew"
        assert re.search(r"[+](719[0-9]|7200) s", blocked["error"])
        faulty_s3.clock_skew = timedelta()
        await daemon.done()


async def test_a_policy_without_the_check_key_is_named_by_it(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    faulty_s3.fault(key=".presignd-check", status=403, code="AccessDenied", times=FOREVER)
    async with running(config(tmp_path, faulty_s3)) as daemon:
        daemon.drop("a")
        [blocked] = await daemon.said_by_now("watch.blocked")
        assert ": .presignd-check" in blocked["error"]


async def test_a_policy_for_one_folder_needs_only_its_own_check_key(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    faulty_s3.fault(when=lambda _, key: not key.startswith("incoming/"), status=403, code="AccessDenied", times=FOREVER)
    async with running(config(tmp_path, faulty_s3, watch(tmp_path, key="incoming/{path}"))) as daemon:
        faulty_s3.fault(method="PUT", key="incoming/a", status=500)
        daemon.drop("a")
        await daemon.done()
        assert daemon.events(*HELD_UP) == []


# --- what the store honours -------------------------------------------------------------------------------


@pytest.mark.parametrize("checksum", ["md5", "sha256"])
@pytest.mark.parametrize("conditions", [True, False])
@pytest.mark.parametrize("digests", [True, False])
async def test_what_a_store_honours_is_proven(
    faulty_s3: FaultyS3, tmp_path: Path, *, checksum: str, conditions: bool, digests: bool
) -> None:
    faulty_s3.conditions, faulty_s3.digests = conditions, digests
    async with running(config(tmp_path, faulty_s3, upload={"checksum": checksum})) as daemon:
        honours = await daemon.work.buckets["drop"].support()
        proven = digests and checksum == "sha256"
        assert honours == Support(if_none_match=conditions, if_match=conditions, checksum=checksum, proven=proven)
        daemon.drop("a")
        await daemon.done()
    [put] = faulty_s3.seen("PUT", "a")
    assert ("content-md5" in put.headers) == (checksum == "md5" or not digests)
    assert [seen.method for seen in faulty_s3.requests if seen.key == "a"] == (
        ["PUT"] if conditions else ["HEAD", "PUT"]
    )
    assert set(faulty_s3.objects) == {(BUCKET, "a")}, "the check object is left behind"


async def test_a_store_that_does_not_look_at_sha256_is_sent_the_md5_too(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    """JuiceFS, rclone and Ceph take any x-amz-checksum-sha256: the body must be checked all the same."""
    faulty_s3.digests = False
    async with running(config(tmp_path, faulty_s3, upload={"checksum": "sha256"})) as daemon:
        daemon.drop("a", b"content")
        [done] = await daemon.done()
        assert done["checksum"] == f"sha256:{hashlib.sha256(b'content').hexdigest()}"
    [put] = faulty_s3.seen("PUT", "a")
    assert {"content-md5", "x-amz-checksum-sha256"} <= set(put.headers)
