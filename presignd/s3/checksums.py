"""The checksums that S3 verifies: how each is written, computed and combined. Pure.

One is written ``algorithm:hex``. S3 has it in base64, in a header of its own (S3 API, "Checking object integrity"). The
native code for the CRCs is awscrt's. Where that can't be installed, MD5 is faster than the code here, which only
compares a file with a checksum that was recorded before.
"""

from __future__ import annotations

import binascii
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from importlib import import_module
from typing import Protocol

HEADERS = {
    "md5": "Content-MD5",
    "sha256": "x-amz-checksum-sha256",
    "crc64nvme": "x-amz-checksum-crc64nvme",
    "crc32c": "x-amz-checksum-crc32c",
}
"""For each algorithm, the header with which the store checks a body."""

STRONG = ("md5", "sha256")
"""Algorithms for which other bytes of a given checksum can't be made. For a CRC this is easy."""

_BYTES = {"md5": 16, "sha256": 32, "crc64nvme": 8, "crc32c": 4}

Bytes = bytes | memoryview


class Hash(Protocol):
    """A hash as hashlib makes it and ``new`` returns it."""

    def update(self, data: Bytes, /) -> None:
        """Hash the next bytes."""
        ...

    def digest(self) -> bytes:
        """Return the digest of the bytes so far."""
        ...

    def hexdigest(self) -> str:
        """Return the digest in hex."""
        ...


def new(algorithm: str) -> Hash:
    """Return the hash of no bytes yet."""
    if algorithm in _CRCS:
        return _CrcHash(algorithm)
    return hashlib.new(algorithm, usedforsecurity=False)


def algorithm_of(checksum: str) -> str:
    """Return the name before the colon."""
    return checksum.partition(":")[0]


def checksum_of(data: bytes, algorithm: str) -> str:
    """Return the checksum of ``data``."""
    if algorithm in _CRCS:
        return f"{algorithm}:{_update_of(algorithm)(data, 0):0{2 * _BYTES[algorithm]}x}"
    return f"{algorithm}:{hashlib.new(algorithm, data, usedforsecurity=False).hexdigest()}"


def header_of(checksum: str) -> tuple[str, str]:
    """Return the header for a body's checksum; raise ``ValueError`` for an invalid one."""
    algorithm, _, digits = checksum.partition(":")
    if algorithm not in HEADERS or len(digits) != 2 * _BYTES[algorithm] or digits.strip("0123456789abcdef"):
        known = ", ".join(f"{name}:<{2 * size} hex digits>" for name, size in _BYTES.items())
        raise ValueError(f"the checksum is none of {known}")
    return HEADERS[algorithm], binascii.b2a_base64(bytes.fromhex(digits), newline=False).decode()


def is_of_whole(checksum: str) -> bool:
    """Return whether this is the checksum of a whole object, in an algorithm that is known here."""
    return algorithm_of(checksum) in HEADERS and "-" not in checksum


# --- CRCs ---------------------------------------------------------------------------------------------

Update = Callable[[Bytes, int], int]
"""Returns the CRC of bytes that follow those of the given CRC."""


@dataclass(frozen=True, slots=True)
class Crc:
    """A CRC's parameters: its width in bits, and its polynomial, bits reversed. It begins and ends inverted."""

    width: int
    polynomial: int


_CRCS = {"crc64nvme": Crc(64, 0x9A6C9329AC4BC9B5), "crc32c": Crc(32, 0x82F63B78)}
"""NVM Express's (CRC-64/NVME) and Castagnoli's (CRC-32/ISCSI), as in the catalogue of parametrised CRC algorithms."""


class _CrcHash:
    def __init__(self, algorithm: str) -> None:
        self._update = _update_of(algorithm)
        self._value, self._size = 0, _BYTES[algorithm]

    def update(self, data: Bytes, /) -> None:
        self._value = self._update(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(self._size, "big")

    def hexdigest(self) -> str:
        return f"{self._value:0{2 * self._size}x}"


@cache
def native(algorithm: str) -> Update | None:
    """Return awscrt's code for a CRC; None where it isn't installed. It releases the GIL.

    Loaded at first use: that takes 40 ms and 6 MB.
    """
    try:
        update: Update = getattr(import_module("awscrt.checksums"), algorithm)
    except (ImportError, AttributeError):
        return None
    return update


def _update_of(algorithm: str) -> Update:
    return native(algorithm) or partial(_by_table, crc=_CRCS[algorithm])


def _by_table(data: Bytes, before: int, *, crc: Crc) -> int:
    """Compute a CRC byte by byte; some 10 MB/s."""
    inverted, table = (1 << crc.width) - 1, _table(crc)
    value = before ^ inverted
    for byte in data:
        value = table[(value ^ byte) & 0xFF] ^ (value >> 8)
    return value ^ inverted


@cache
def _table(crc: Crc) -> list[int]:
    return [_reduced(byte, crc) for byte in range(256)]


def _reduced(value: int, crc: Crc) -> int:
    for _ in range(8):
        value = value >> 1 ^ (crc.polynomial if value & 1 else 0)
    return value


def combined(algorithm: str, parts: Sequence[tuple[str, int]]) -> str:
    """Return the CRC (hex) of a whole from the CRC and the size in bytes of each of its parts.

    As zlib's ``crc32_combine``: a CRC is a remainder, so bytes that follow multiply it by x to the power of their bits.
    """
    crc, value = _CRCS[algorithm], 0
    for digits, size in parts:
        value = _product(_power(8 * size, crc), value, crc) ^ int(digits, 16)
    return f"{value:0{crc.width // 4}x}"


def _product(one: int, other: int, crc: Crc) -> int:
    """Multiply two polynomials modulo the CRC's; the highest bit is x to the power of 0."""
    product = 0
    for bit in range(crc.width - 1, -1, -1):
        if one >> bit & 1:
            product ^= other
        other = other >> 1 ^ (crc.polynomial if other & 1 else 0)
    return product


@lru_cache(maxsize=512)  # all parts of an upload but the last have one size
def _power(exponent: int, crc: Crc) -> int:
    """Return x to the power of ``exponent`` modulo the CRC's polynomial."""
    if exponent < crc.width:
        return 1 << (crc.width - 1 - exponent)
    half = _power(exponent // 2, crc)
    square = _product(half, half, crc)
    return _product(square, 1 << (crc.width - 2), crc) if exponent % 2 else square
