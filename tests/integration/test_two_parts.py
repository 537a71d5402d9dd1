"""An object in two parts: what the daemon and ``check`` learn from it about a store's ETags."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from presignd.checks.buckets import check_parts
from presignd.pipeline.upload.bucket import Bucket
from presignd.store.signed import signed_store
from presignd.store.support import EtagKind
from tests.faulty_etags import ETAGS, Etags
from tests.faulty_s3 import FaultyS3
from tests.running import config, watch
from tests.stores import Store


@asynccontextmanager
async def bucket_on(folder: Path, store: Any, bucket: str) -> AsyncIterator[Bucket]:
    configured = config(folder, store, watch(folder, bucket=bucket))
    signed = signed_store(configured.presign, configured.upload, clock=lambda: datetime.now(UTC))
    try:
        yield Bucket(configured.watches[0], configured.presign, configured.upload, signed)
    finally:
        await signed.close()


SEEN = {
    "r2": (EtagKind.OPAQUE, "does not show its content"),
    "oss": (EtagKind.OPAQUE, "does not show its content"),
    "of any form": (EtagKind.OPAQUE, "does not show its content"),
    "that look like an md5": (EtagKind.OPAQUE, "does not show its content"),
    "none": (EtagKind.MISSING, "has no ETag"),
    "none when looked for": (EtagKind.MISSING, "has no ETag"),
    "kms": (EtagKind.OPAQUE, "does not show its content"),
    "s3": (EtagKind.MD5, "made of MD5s"),
}


@pytest.mark.parametrize("quirk", list(SEEN))
async def test_what_an_etag_tells_is_seen_and_said(faulty_s3: FaultyS3, tmp_path: Path, quirk: str) -> None:
    faulty_s3.etags = ETAGS.get(quirk, Etags())
    seen, said = SEEN[quirk]
    async with bucket_on(tmp_path, faulty_s3, faulty_s3.bucket) as bucket:
        probe = await bucket.new_probe()
        result = await check_parts(faulty_s3.bucket, probe)
        assert await probe.two_part_etag() == seen
        await probe.remove()
        assert (await bucket.support(in_parts=True)).md5_etags == (quirk in ("s3", "none when looked for"))
    assert (result.outcome, said in result.detail) == ("ok", True)
    assert faulty_s3.objects == {}
    assert faulty_s3.uploads.under_way == {}


@pytest.mark.parametrize(
    "how",
    [
        {"method": "POST", "asks": "uploads", "status": 501, "code": "NotImplemented"},
        {"method": "PUT", "asks": "partNumber", "status": 403, "code": "AccessDenied"},
        {"method": "POST", "asks": "uploadId", "status": 200, "body": b"<Error><Code>InternalError</Code></Error>"},
    ],
)
async def test_where_parts_do_not_go_through_it_is_said_and_nothing_is_left(
    faulty_s3: FaultyS3, tmp_path: Path, how: dict[str, Any]
) -> None:
    faulty_s3.fault(**how)
    async with bucket_on(tmp_path, faulty_s3, faulty_s3.bucket) as bucket:
        result = await check_parts(faulty_s3.bucket, await bucket.new_probe())
    assert result.outcome == "warn"
    assert "multipart_threshold" in result.detail
    assert faulty_s3.uploads.under_way == {}


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        ("seaweedfs", EtagKind.MD5),
        ("juicefs", EtagKind.MD5),
        ("juicefs_plain", EtagKind.MISSING),
        ("rclone", EtagKind.MD5),
        ("rclone_plain", EtagKind.MISSING),
        ("ceph", EtagKind.MD5),
    ],
)
async def test_what_real_servers_tell(
    request: pytest.FixtureRequest, tmp_path: Path, name: str, seen: EtagKind
) -> None:
    store: Store = request.getfixturevalue(name)
    async with bucket_on(tmp_path, store, store.new_bucket()) as bucket:
        probe = await bucket.new_probe()
        assert await probe.two_part_etag() == seen
        await probe.remove()
        support = await bucket.support(in_parts=True)
        assert support.proves
        assert support.md5_etags or seen is not EtagKind.MD5
