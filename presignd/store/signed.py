"""The store, reached by presigned requests: a presigner and the HTTP client together."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from datetime import datetime

from presignd.config import Config, PresignConfig, UploadConfig
from presignd.errors import fault
from presignd.presign import Grant, GrantRequest, Presigner
from presignd.presign.local import local_presigner
from presignd.redaction import redact
from presignd.s3.responses import Response
from presignd.store.client import Slice, StoreClient
from presignd.store.rate import RateLimit
from presignd.system.clock import since_boot

LEAST_LEFT = 30.0
"""Seconds that a grant must still be valid when its request is sent, by the signer's clock."""


class SignedStore:
    """Signs each request when it is about to be sent, and sends it; ``client`` sends one that was signed before."""

    def __init__(self, presigner: Presigner, client: StoreClient) -> None:
        self.presigner, self.client = presigner, client

    async def grant(self, request: GrantRequest) -> Grant:
        """Return the grant for a request; raise its ``Fault``, or ``expired_grant`` for one that is almost expired."""
        asked = since_boot()
        (grant,) = await self.presigner.grant([request])
        if isinstance(grant, Exception):
            raise grant
        left = (grant.expires_at - grant.signer_date).total_seconds() - (since_boot() - asked)
        if left < LEAST_LEFT:
            raise fault("expired_grant", f"{left:.0f} s left when it came")
        return grant

    async def send(
        self,
        request: GrantRequest,
        body: bytes | Slice | None = None,
        *,
        accept: Collection[int] = (),
        on_sent: Callable[[int], None] | None = None,
        timeout: float | None = None,
        into: Callable[[bytes], Awaitable[None]] | None = None,
    ) -> Response:
        """Sign ``request`` and send it. Requests under one key share the rate limit as one file."""
        grant = await self.grant(request)
        return await self.client.send(
            grant, body, accept=accept, on_sent=on_sent, timeout=timeout, file_of=request.key, into=into
        )

    async def close(self) -> None:
        """Close every connection."""
        await self.presigner.close()
        await self.client.close()


def signed_store(
    presign: PresignConfig, upload: UploadConfig, *, clock: Callable[[], datetime], rate: RateLimit | None = None
) -> SignedStore:
    """Build the presigner and the client of a configuration; send nothing.

    ``rate`` limits what is sent, by default to ``upload.max_rate``. The client judges the age of grants by the
    signer's clock, which is the broker's if there is one. Raises ``UsageError`` for unusable TLS files or credentials.
    """
    if presign.kind == "broker":
        # It imports aiohttp, without which a daemon with its own keys starts a third sooner.
        from presignd.presign.broker_client import TIMEOUT, BrokerClient  # noqa: PLC0415 - as above
        from presignd.presign.remote import BrokerPresigner  # noqa: PLC0415 - as above

        broker = BrokerClient(presign, clock=clock, timeout=min(TIMEOUT, upload.timeout))
        client = StoreClient(presign, upload, clock=broker.now, rate=rate)
        return SignedStore(BrokerPresigner(presign, broker), client)
    client = StoreClient(presign, upload, clock=clock, rate=rate)
    return SignedStore(local_presigner(presign, send=client.send, clock=clock), client)


def register_secrets(config: Config) -> None:
    """Register the configured secrets for redaction, which otherwise knows only what secrets look like."""
    presign = config.presign
    for secret in (presign.secret_key, presign.session_token, presign.token):
        if secret:
            redact.register(secret.get_secret_value())
