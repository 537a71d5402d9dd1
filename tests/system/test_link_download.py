"""Downloads of 2 GiB through stable links that break off in the middle: Chromium and wget resume them.

They resume at the redirect's target, which is why it lives for an hour (``[links] target_expires``).
"""

from __future__ import annotations

import asyncio
import random
import subprocess
from hashlib import file_digest, sha256
from pathlib import Path

import pytest

from tests.stores import Store
from tests.system.breaking import Breaking, How, broken_off
from tests.system.saving import saving_browser

pytestmark = [pytest.mark.series, pytest.mark.asyncio(loop_scope="module")]
KEY = "one/large.bin"
PART, PARTS = 64 << 20, 32
SIZE = PART * PARTS
"""2 GiB."""


@pytest.fixture(scope="module")
def large(store: Store) -> tuple[str, str]:
    """Return a bucket with a large object, and its SHA-256."""
    bucket, digest = store.new_bucket(), sha256()
    block = random.Random(1).randbytes(PART)
    upload = store.client.create_multipart_upload(Bucket=bucket, Key=KEY)["UploadId"]
    place = {"Bucket": bucket, "Key": KEY, "UploadId": upload}
    parts = []
    for number in range(1, PARTS + 1):
        body = block[number:] + block[:number]  # no two alike: a wrong offset shows
        digest.update(body)
        etag = store.client.upload_part(**place, PartNumber=number, Body=body)["ETag"]
        parts.append({"PartNumber": number, "ETag": etag})
    store.client.complete_multipart_upload(**place, MultipartUpload={"Parts": parts})
    return bucket, digest.hexdigest()


def hash_of(file: Path) -> str:
    with file.open("rb") as opened:
        return file_digest(opened, "sha256").hexdigest()


def went_on_in_the_middle(proxy: Breaking) -> bool:
    """Return whether it was resumed once; what was on its way at a reset is sent again."""
    (begin,) = proxy.resumed
    return SIZE // 4 < begin <= SIZE // 2


@pytest.mark.needs("chromium")
@pytest.mark.parametrize("how", ["close", "reset"])
async def test_chromium_resumes_by_itself_or_by_its_button(
    store: Store, large: tuple[str, str], tmp_path: Path, how: How
) -> None:
    with broken_off(store, large[0], KEY, tmp_path, how) as (link, proxy):
        async with saving_browser(tmp_path) as browser:
            await browser.save(link["url"])
            if how == "reset":  # "Network error": a person presses Resume
                await browser.resume()
            file = await browser.saved("large.bin")
        assert went_on_in_the_middle(proxy)
        assert await asyncio.to_thread(hash_of, file) == large[1]
    file.unlink()


@pytest.mark.needs("wget")
async def test_wget_resumes_by_itself(store: Store, large: tuple[str, str], tmp_path: Path) -> None:
    file = tmp_path / "w.bin"
    with broken_off(store, large[0], KEY, tmp_path, "reset") as (link, proxy):
        command = ["wget", "-nv", "-t", "5", "-O", file, link["url"]]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    assert went_on_in_the_middle(proxy)
    assert await asyncio.to_thread(hash_of, file) == large[1]
    file.unlink()
