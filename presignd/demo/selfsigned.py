"""A key and its self-signed certificate for loopback, by which the parts of one server identify each other.

The certificate is encoded here (RFC 5280, DER): pycryptodome can sign, but can't make certificates.
"""

from __future__ import annotations

import binascii
import secrets
import textwrap

from Crypto.Hash import SHA256
from Crypto.PublicKey import ECC
from Crypto.Signature import DSS
from Crypto.Util.asn1 import DerObjectId

_SEQUENCE, _SET, _INTEGER, _BITS, _OCTETS, _TEXT, _TIME = 0x30, 0x31, 0x02, 0x03, 0x04, 0x0C, 0x17
_VERSION, _EXTENSIONS, _IP_ADDRESS = 0xA0, 0xA3, 0x87
_ECDSA_WITH_SHA256, _COMMON_NAME, _SUBJECT_ALT_NAME = (
    DerObjectId(oid).encode() for oid in ("1.2.840.10045.4.3.2", "2.5.4.3", "2.5.29.17")
)
_SINCE, _UNTIL = b"700101000000Z", b"491231235959Z"
"""It is used for one process only. The dates are this wide so that a wrong clock never makes it invalid."""


def loopback_pem() -> tuple[str, str]:
    """Return a new private key (P-256) with its certificate for 127.0.0.1 in one PEM text, and its fingerprint."""
    key = ECC.generate(curve="P-256")
    algorithm = _der(_SEQUENCE, _ECDSA_WITH_SHA256)
    name = _der(_SEQUENCE, _der(_SET, _der(_SEQUENCE, _COMMON_NAME, _der(_TEXT, b"presignd"))))
    address = _der(_OCTETS, _der(_SEQUENCE, _der(_IP_ADDRESS, bytes([127, 0, 0, 1]))))
    content = _der(
        _SEQUENCE,
        _der(_VERSION, _der(_INTEGER, b"\x02")),  # version 3
        _der(_INTEGER, b"\x01" + secrets.token_bytes(8)),  # a first byte that keeps the serial number positive
        algorithm,
        name,
        _der(_SEQUENCE, _der(_TIME, _SINCE), _der(_TIME, _UNTIL)),
        name,
        key.public_key().export_key(format="DER"),
        _der(_EXTENSIONS, _der(_SEQUENCE, _der(_SEQUENCE, _SUBJECT_ALT_NAME, address))),
    )
    signature = DSS.new(key, "fips-186-3", encoding="der").sign(SHA256.new(content))
    certificate = _der(_SEQUENCE, content, algorithm, _der(_BITS, b"\x00" + signature))
    return f"{key.export_key(format='PEM')}\n{_pem(certificate)}", SHA256.new(certificate).hexdigest()


def _der(tag: int, *parts: bytes) -> bytes:
    """Return one DER value: its tag, its length, and ``parts``."""
    content = b"".join(parts)
    size = len(content)
    if size < 0x80:  # noqa: PLR2004 - X.690, 8.1.3: longer content begins with the size of its length
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content


def _pem(certificate: bytes) -> str:
    lines = textwrap.wrap(binascii.b2a_base64(certificate, newline=False).decode(), 64)
    return "\n".join(["-----BEGIN CERTIFICATE-----", *lines, "-----END CERTIFICATE-----", ""])
