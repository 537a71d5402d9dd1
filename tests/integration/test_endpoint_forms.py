"""However an endpoint is written, the signature matches what clients send: ours, and those that open a link."""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
import urllib.request
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from presignd.config import PresignConfig, UploadConfig
from presignd.presign import Grant, GrantRequest, Operation
from presignd.presign.local import local_presigner
from presignd.store.client import StoreClient

if TYPE_CHECKING:
    from tests.stores import Store

BODY = b"hello"


@pytest.mark.needs("curl")
@pytest.mark.parametrize(
    "written",
    ["http://127.0.0.1.:{}", "http://LOCALHOST.:{}/", "http://127.1:{}", "http://0x7F.0.0.1:{}", "HTTP://localhost:{}"],
)
async def test_an_upload_and_its_link_go_through_however_the_endpoint_is_written(
    seaweedfs: Store, written: str
) -> None:
    endpoint = written.format(seaweedfs.endpoint.rpartition(":")[2])
    config = PresignConfig.model_validate(
        {"endpoint": endpoint, "access_key": seaweedfs.access_key, "secret_key": seaweedfs.secret_key, "region": "r"}
    )
    client = StoreClient(config, UploadConfig())
    presigner = local_presigner(config, send=client.send, clock=lambda: datetime.now(UTC))
    checksum = f"md5:{hashlib.md5(BODY).hexdigest()}"
    put, get = await presigner.grant(
        [
            GrantRequest(Operation.PUT, "test-bucket", "forms/a", 60, size=len(BODY), checksum=checksum),
            GrantRequest(Operation.GET, "test-bucket", "forms/a", 60),
        ]
    )
    assert isinstance(put, Grant)
    assert isinstance(get, Grant)
    try:
        assert (await client.send(put, BODY)).status == 200
    finally:
        await client.close()
    assert await asyncio.to_thread(fetched, get.url) == [BODY, BODY]


def fetched(link: str) -> list[bytes]:
    """Open a link with curl, and with a client that writes Host as the URL has it."""
    with urllib.request.urlopen(link, timeout=30) as answer:
        return [subprocess.run(["curl", "-sf", link], capture_output=True, check=True).stdout, answer.read()]
