"""The broker presigner: the contract, against a broker that signs by ``presign.local``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime

import pytest
from pydantic import SecretStr

from presignd.config import PresignConfig
from presignd.presign import Presigner
from presignd.presign.broker import BrokerPresigner
from presignd.presign.broker_client import BrokerClient
from tests.contract.presigner import PresignerContract
from tests.fake_broker import FakeBroker, fake_broker
from tests.stores import Store


def utc_now() -> datetime:
    return datetime.now(UTC)


class TestBrokerPresigner(PresignerContract):
    """Asks a broker, and holds no key."""

    @pytest.fixture(scope="class")
    @classmethod
    def broker(cls, store: Store) -> Iterator[FakeBroker]:
        with fake_broker(store) as broker:
            yield broker

    @pytest.fixture
    async def presigner(self, store: Store, broker: FakeBroker) -> AsyncIterator[Presigner]:
        config = PresignConfig(kind="broker", url=broker.url, token=SecretStr(broker.token), endpoint=store.endpoint)
        asking = BrokerPresigner(config, BrokerClient(config, clock=utc_now))
        yield asking
        await asking.close()
