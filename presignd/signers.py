"""Who signs and who sends, by one configuration: keys here, or a broker."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from presignd.config import Config
from presignd.presign import Presigner
from presignd.presign.broker import BrokerPresigner
from presignd.presign.broker_client import TIMEOUT, BrokerClient
from presignd.presign.local import local_presigner
from presignd.store import StoreClient


def signer_and_store(config: Config, *, clock: Callable[[], datetime]) -> tuple[Presigner, StoreClient]:
    """Build both; nothing is sent yet. Raises ``UsageError`` for TLS files or credentials that can't be used.

    The store's client judges the age of grants by the signer's clock, which with a broker is the broker's.
    """
    if config.presign.kind == "broker":
        client = BrokerClient(config.presign, clock=clock, timeout=min(TIMEOUT, config.upload.timeout))
        return BrokerPresigner(config.presign, client), StoreClient(config.presign, config.upload, clock=client.now)
    store = StoreClient(config.presign, config.upload, clock=clock)
    return local_presigner(config.presign, send=store.send, clock=clock), store
