"""Other bytes of the same CRC: anyone can make them."""

from __future__ import annotations

from presignd.s3.checksums import checksum_of

POLYNOMIAL = 0xAD93D23594C93659 | 1 << 64
"""CRC-64/NVME's, its bits not reversed."""


def forged(content: bytes) -> bytes:
    """Return other bytes of the same size and the same CRC-64/NVME: any multiple of the polynomial may be added."""
    bits = int(f"{POLYNOMIAL:065b}"[::-1], 2)  # the lowest bit of a byte is its first
    other = (int.from_bytes(content, "little") ^ bits << 8).to_bytes(len(content), "little")
    assert other != content
    assert checksum_of(other, "crc64nvme") == checksum_of(content, "crc64nvme")
    return other
