"""Authentication: a bearer token, or a client certificate that a token names."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from aiohttp import web

from presignd.broker.config import TokenConfig
from presignd.broker.tokens import Tokens

LONGEST_SECRET = 4096

UNREADABLE_RETRY = 1
"""Retry-After in seconds while some token files cannot be read: an unknown token may be in one of them."""


class Rejected(Exception):
    """Refuses a whole call: HTTP ``status``, a fixed ``code``, Retry-After in seconds (0: none).

    ``by`` is the token's name, once it is known.
    """

    def __init__(self, status: int, code: str, message: str, *, retry_after: int = 0, by: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.retry_after, self.by = status, code, message, retry_after, by


def authenticate(request: web.Request, tokens: Tokens, now: datetime) -> TokenConfig:
    """Return the caller's token; raise ``Rejected``.

    The answer is 401 for a revoked token and for an unknown one alike. While a folder of tokens cannot be opened,
    an unknown token may be in it: then the answer is 503.
    """
    given = request.headers.getall("Authorization", [])
    if given:
        token = tokens.of_secret(_bearer(given))
    else:
        token = tokens.of_certificate(certificate_names(request.get_extra_info("peercert")))
    if token is None and tokens.unlisted:
        raise Rejected(503, "tokens_unreadable", "some tokens cannot be read now", retry_after=UNREADABLE_RETRY)
    if token is None:
        raise Rejected(401, "unauthorized", "no valid token; send one in the header Authorization, as a bearer token")
    if token.valid_until is not None and now >= token.valid_until:
        raise Rejected(401, "token_expired", "this token has expired", by=token.name)
    return token


def _bearer(given: list[str]) -> str:
    """Return the token of a single bearer header; "", which matches no token, for anything else."""
    scheme, _, secret = given[0].partition(" ")
    usable = len(given) == 1 and scheme.lower() == "bearer" and len(secret) <= LONGEST_SECRET
    return secret.strip() if usable else ""


def certificate_names(certificate: Mapping[str, Any] | None) -> list[str]:
    """Return the names in a verified client certificate: its SANs, else its common name (RFC 6125, 6.4.4)."""
    if not certificate:
        return []
    names = [str(value) for kind, value in certificate.get("subjectAltName", ()) if kind in {"DNS", "URI", "email"}]
    if names:
        return names
    return [value for part in certificate.get("subject", ()) for name, value in part if name == "commonName"]


def client_of(request: web.Request, *, behind_proxy: bool) -> str:
    """Return the client's address for the log. X-Forwarded-For counts only behind a proxy."""
    forwarded = request.headers.getall("X-Forwarded-For", [])
    if behind_proxy and forwarded:
        return forwarded[-1].rpartition(",")[2].strip()[:100]
    return request.remote or "local"
