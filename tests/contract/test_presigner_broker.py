"""The broker presigner: the contract, against a real broker."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime

import pytest
from pydantic import SecretStr

from presignd.config import PresignConfig
from presignd.keys import CHECK_NAME
from presignd.presign import Presigner
from presignd.presign.broker import BrokerPresigner
from presignd.presign.broker_client import BrokerClient
from tests.brokers import RealBroker, real_broker
from tests.contract.presigner import PresignerContract
from tests.stores import Store


def utc_now() -> datetime:
    return datetime.now(UTC)


class TestBrokerPresigner(PresignerContract):
    """Asks ``presignd broker run``, and holds no key."""

    deletable = f"all/{CHECK_NAME}"

    @pytest.fixture(scope="class")
    @classmethod
    def broker(cls, store: Store, bucket: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealBroker]:
        with real_broker(tmp_path_factory.mktemp("broker"), store, bucket) as broker:
            yield broker

    @pytest.fixture
    async def presigner(self, store: Store, broker: RealBroker) -> AsyncIterator[Presigner]:
        config = PresignConfig(kind="broker", url=broker.url, token=SecretStr(broker.token), endpoint=store.endpoint)
        asking = BrokerPresigner(config, BrokerClient(config, clock=utc_now))
        yield asking
        await asking.close()
