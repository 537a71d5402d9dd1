"""What becomes of an object in two parts: what the daemon and ``check`` learn of a store's ETags by it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from presignd.checks.parts import InTwo, check_parts, store_in_two
from presignd.pipeline.upload.bucket import Bucket
from presignd.store.signed import signer_and_store
from tests.faulty_etags import ETAGS, Etags
from tests.faulty_s3 import FaultyS3
from tests.running import config, watch
from tests.stores import Store


@asynccontextmanager
async def bucket_on(folder: Path, store: Any, bucket: str) -> AsyncIterator[Bucket]:
    configured = config(folder, store, watch(folder, bucket=bucket))
    presigner, client = signer_and_store(configured, clock=lambda: datetime.now(UTC))
    try:
        yield Bucket(configured.watches[0], configured.presign, configured.upload, presigner, client)
    finally:
        await client.close()


SEEN = {
    "r2": (InTwo(tells=False, etag=True), "tells nothing"),
    "oss": (InTwo(tells=False, etag=True), "tells nothing"),
    "of any form": (InTwo(tells=False, etag=True), "tells nothing"),
    "that look like an md5": (InTwo(tells=False, etag=True), "tells nothing"),
    "none": (InTwo(tells=False, etag=False), "has no ETag"),
    "none when looked for": (InTwo(tells=False, etag=False), "has no ETag"),
    "kms": (InTwo(tells=False, etag=True), "tells nothing"),
    "s3": (InTwo(tells=True, etag=True), "made of MD5s"),
}


@pytest.mark.parametrize("quirk", list(SEEN))
async def test_what_an_etag_tells_is_seen_and_said(faulty_s3: FaultyS3, tmp_path: Path, quirk: str) -> None:
    faulty_s3.etags = ETAGS.get(quirk, Etags())
    seen, said = SEEN[quirk]
    async with bucket_on(tmp_path, faulty_s3, faulty_s3.bucket) as bucket:
        probe = await bucket.proving()
        result = await check_parts(faulty_s3.bucket, probe)
        assert await store_in_two(probe) == seen
        await probe.forget()
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
        result = await check_parts(faulty_s3.bucket, await bucket.proving())
    assert result.outcome == "warn"
    assert "multipart_threshold" in result.detail
    assert faulty_s3.uploads.under_way == {}


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        ("seaweedfs", InTwo(tells=True, etag=True)),
        ("juicefs", InTwo(tells=True, etag=True)),
        ("juicefs_plain", InTwo(tells=False, etag=False)),
        ("rclone", InTwo(tells=True, etag=True)),
        ("rclone_plain", InTwo(tells=False, etag=False)),
        ("ceph", InTwo(tells=True, etag=True)),
    ],
)
async def test_what_real_servers_tell(request: pytest.FixtureRequest, tmp_path: Path, name: str, seen: InTwo) -> None:
    store: Store = request.getfixturevalue(name)
    async with bucket_on(tmp_path, store, store.new_bucket()) as bucket:
        probe = await bucket.proving()
        assert await store_in_two(probe) == seen
        await probe.forget()
        honours = await bucket.support(in_parts=True)
        assert honours.proves
        assert honours.md5_etags or not seen.tells
