"""The broker presigner: the contract, against a real broker."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime

import pytest
from pydantic import SecretStr

from presignd.config import PresignConfig
from presignd.presign import Presigner
from presignd.presign.broker_client import BrokerClient
from presignd.presign.remote import BrokerPresigner
from presignd.s3.limits import CHECK_NAME
from tests.brokers import OneToken, one_token
from tests.contract.presigner import PresignerContract
from tests.stores import Store


def utc_now() -> datetime:
    return datetime.now(UTC)


class TestBrokerPresigner(PresignerContract):
    """Asks ``presignd broker run``, and holds no key."""

    deletable = f"all/{CHECK_NAME}"

    @pytest.fixture(scope="class")
    @classmethod
    def broker(cls, store: Store, bucket: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OneToken]:
        with one_token(tmp_path_factory.mktemp("broker"), store, bucket) as broker:
            yield broker

    @pytest.fixture
    async def presigner(self, store: Store, broker: OneToken) -> AsyncIterator[Presigner]:
        config = PresignConfig(kind="broker", url=broker.url, token=SecretStr(broker.secret), endpoint=store.endpoint)
        asking = BrokerPresigner(config, BrokerClient(config, clock=utc_now))
        yield asking
        await asking.close()
