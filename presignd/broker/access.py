"""Who asks: a token in ``Authorization``, or a client certificate that stands for one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

from aiohttp import web

from presignd.broker.models import TokenConfig
from presignd.broker.tokens import Tokens

LONGEST_SECRET = 4096

UNREADABLE_RETRY = 1
"""Seconds after which to ask again where the token could be one of those that can't be read."""


class Rejected(Exception):
    """A call refused as a whole: ``status``, a fixed ``code``, seconds to wait (0: none); ``by`` names the token."""

    by = ""

    def __init__(self, status: int, code: str, message: str, *, retry_after: int = 0) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.retry_after = status, code, message, retry_after


def authenticate(request: web.Request, tokens: Tokens, now: datetime) -> TokenConfig:
    """Return whose request it is; raise ``Rejected`` (401), which doesn't tell a revoked token from none.

    While a folder of tokens can't be opened, a token that isn't known may be in it: then it is 503.
    """
    given = request.headers.getall("Authorization", [])
    if given:
        token = tokens.of_secret(_bearer(given))
    else:
        token = tokens.of_certificate(certificate_names(request.get_extra_info("peercert")))
    if token is None and tokens.unlisted:
        raise Rejected(503, "tokens_unreadable", "not all tokens can be read now", retry_after=UNREADABLE_RETRY)
    if token is None:
        raise Rejected(401, "unauthorized", "no valid token: it goes with the header Authorization, as Bearer TOKEN")
    if token.valid_until is not None and now >= token.valid_until:
        raise Rejected(401, "token_expired", "this token has ended")
    return token


def _bearer(given: list[str]) -> str:
    """Return the token of the one header there may be, "" for anything else: nobody's."""
    scheme, _, secret = given[0].partition(" ")
    usable = len(given) == 1 and scheme.lower() == "bearer" and len(secret) <= LONGEST_SECRET
    return secret.strip() if usable else ""


def certificate_names(certificate: Mapping[str, Any] | None) -> list[str]:
    """Return the names of a verified client certificate: its SANs, else its common name (RFC 6125, 6.4.4)."""
    if not certificate:
        return []
    names = [str(value) for kind, value in certificate.get("subjectAltName", ()) if kind in {"DNS", "URI", "email"}]
    if names:
        return names
    return [value for part in certificate.get("subject", ()) for name, value in part if name == "commonName"]


def client_of(request: web.Request, *, behind_proxy: bool) -> str:
    """Return the address that asks, for the log; a proxy's word is taken only where there is one."""
    forwarded = request.headers.getall("X-Forwarded-For", [])
    if behind_proxy and forwarded:
        return forwarded[-1].rpartition(",")[2].strip()[:100]
    return request.remote or "local"


class Room:
    """How many calls are answered at a time, in all and for one token: the rest wait, and not for long."""

    def __init__(self, most: int, each: int, wait: float) -> None:
        self._all = asyncio.Semaphore(most)
        self._each = each
        self._wait = wait
        self._of: dict[str, tuple[asyncio.Semaphore, int]] = {}

    @asynccontextmanager
    async def of(self, name: str) -> AsyncIterator[None]:
        """Hold a place; raise ``Rejected`` (503) where none gets free in time."""
        own, users = self._of.get(name) or (asyncio.Semaphore(self._each), 0)
        self._of[name] = own, users + 1
        try:
            async with self._placed(own), self._placed(self._all):
                yield
        finally:
            own, users = self._of[name]
            if users == 1:
                del self._of[name]
            else:
                self._of[name] = own, users - 1

    @asynccontextmanager
    async def _placed(self, places: asyncio.Semaphore) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._wait):
                await places.acquire()
        except TimeoutError:
            raise Rejected(503, "busy", "too many requests at a time", retry_after=1) from None
        try:
            yield
        finally:
            places.release()
