"""PINs of links, stored as slow hashes, so that a stolen state does not reveal them."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
from base64 import b64decode, b64encode

COST, BLOCK, LANES = 1 << 14, 8, 1
"""scrypt's parameters (RFC 7914): 16 MiB and some 50 ms a try."""
SALT_BYTES = 16
AT_A_TIME = 2
"""Most hashes computed at a time: strangers may cause them, and the broker needs its memory and threads for others."""


class Pins:
    """Hashes and compares PINs in threads, ``AT_A_TIME``."""

    def __init__(self) -> None:
        self._turns = asyncio.Semaphore(AT_A_TIME)

    async def hash_of(self, pin: str) -> str:
        """Return the hash that is stored for a PIN; "" for none."""
        if not pin:
            return ""
        salt = secrets.token_bytes(SALT_BYTES)
        digest = await self._scrypt(pin, salt)
        return f"scrypt:{b64encode(salt).decode()}:{b64encode(digest).decode()}"

    async def is_right(self, pin: str, stored: str) -> bool:
        """Return whether a PIN is the one whose hash was stored."""
        _, salt, digest = stored.split(":")
        return hmac.compare_digest(await self._scrypt(pin, b64decode(salt)), b64decode(digest))

    async def _scrypt(self, pin: str, salt: bytes) -> bytes:
        async with self._turns:
            return await asyncio.to_thread(_scrypt, pin.encode("utf-8", "surrogatepass"), salt)


def _scrypt(pin: bytes, salt: bytes) -> bytes:
    return hashlib.scrypt(pin, salt=salt, n=COST, r=BLOCK, p=LANES)
