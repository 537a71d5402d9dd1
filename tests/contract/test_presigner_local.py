"""The local presigner: the contract, and its own promises."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import SecretStr

from presignd.config import PresignConfig, UploadConfig
from presignd.errors import StoreFault
from presignd.presign import Grant, Presigner
from presignd.presign.local import local_presigner
from presignd.s3.sigv4 import Keys, presign
from presignd.store.client import StoreClient
from tests.contract.presigner import BODY, PresignerContract, put
from tests.stores import JuiceFS, Store


def utc_now() -> datetime:
    return datetime.now(UTC)


def config_of(store: Store, **more: str) -> PresignConfig:
    return PresignConfig(
        endpoint=store.endpoint, access_key=store.access_key, secret_key=SecretStr(store.secret_key), **more
    )


class TestLocalPresigner(PresignerContract):
    """Signs with the store's own keys, and asks the store for its region."""

    @pytest.fixture
    async def presigner(self, store: Store) -> AsyncIterator[Presigner]:
        config = config_of(store)
        client = StoreClient(config, UploadConfig())
        signer = local_presigner(config, send=client.send, clock=utc_now)
        yield signer
        await signer.close()
        await client.close()


class InEurope(JuiceFS):
    """MinIO's front end with a region of its own: it refuses any other, some milliseconds after it begins to serve."""

    def _serves(self) -> bool:
        return super()._serves() and self._insists()

    def _insists(self) -> bool:
        keys = Keys(self.access_key, self.secret_key)
        elsewhere = presign(
            "GET", self.endpoint, self.bucket, "", keys=keys, region="us-east-1", date=utc_now(), expires=60
        )
        try:
            urllib.request.urlopen(elsewhere, timeout=30).close()
        except urllib.error.HTTPError as refused:
            refused.close()
            return refused.code == 400
        return False

    def _env(self) -> dict[str, str]:
        return {**super()._env(), "MINIO_REGION_NAME": "eu-west-1"}


@pytest.fixture
def europe(tmp_path: Path) -> Iterator[Store]:
    server = InEurope(tmp_path / "europe")
    server.start()
    try:
        yield server
    finally:
        server.kill()


async def put_one(config: PresignConfig, bucket: str) -> int:
    client = StoreClient(config, UploadConfig())
    try:
        (grant,) = await local_presigner(config, send=client.send, clock=utc_now).grant([put(bucket, "k")])
        assert isinstance(grant, Grant)
        return (await client.send(grant, BODY, accept=range(400, 500))).status
    finally:
        await client.close()


async def test_the_region_of_a_store_that_insists_on_one_is_found(europe: Store) -> None:
    assert await put_one(config_of(europe, region="us-east-1"), europe.bucket) == 400
    assert await put_one(config_of(europe), europe.bucket) == 200


async def test_a_store_that_is_away_is_a_store_fault_in_each_place(store: Store) -> None:
    """The region can't be asked for: the store is what to wait for, not the presigner."""
    config = config_of(store).model_copy(update={"endpoint": "http://127.0.0.1:1"})
    client = StoreClient(config, UploadConfig())
    try:
        answers = await local_presigner(config, send=client.send, clock=utc_now).grant([put("b", "k")] * 2)
    finally:
        await client.close()
    assert [type(answer) for answer in answers] == [StoreFault] * 2
