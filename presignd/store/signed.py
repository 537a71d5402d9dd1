"""Who signs and who sends, by one configuration: keys here, or a broker."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from presignd.config import Config
from presignd.presign import Presigner
from presignd.presign.broker_client import TIMEOUT, BrokerClient
from presignd.presign.local import local_presigner
from presignd.presign.remote import BrokerPresigner
from presignd.redaction import redact
from presignd.store.client import StoreClient
from presignd.store.rate import RateLimit


def signer_and_store(
    config: Config, *, clock: Callable[[], datetime], rate: RateLimit | None = None
) -> tuple[Presigner, StoreClient]:
    """Build both; nothing is sent yet. Raises ``UsageError`` for TLS files or credentials that can't be used.

    ``rate`` limits what is sent, by default to what the configuration says.
    The store's client judges the age of grants by the signer's clock, which with a broker is the broker's.
    """
    if config.presign.kind == "broker":
        client = BrokerClient(config.presign, clock=clock, timeout=min(TIMEOUT, config.upload.timeout))
        store = StoreClient(config.presign, config.upload, clock=client.now, rate=rate)
        return BrokerPresigner(config.presign, client), store
    store = StoreClient(config.presign, config.upload, clock=clock, rate=rate)
    return local_presigner(config.presign, send=store.send, clock=clock), store


def register_secrets(config: Config) -> None:
    """Have redaction know the configured secrets by their letters, beside what secrets look like."""
    presign = config.presign
    for secret in (presign.secret_key, presign.session_token, presign.token):
        if secret:
            redact.register(secret.get_secret_value())
