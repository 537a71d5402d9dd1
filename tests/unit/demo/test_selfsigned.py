"""The certificate between the embedded store's parts, read by libraries that did not write it."""

from __future__ import annotations

import ipaddress
import ssl
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from presignd.demo.selfsigned import loopback_pem

if TYPE_CHECKING:
    from pathlib import Path


def test_it_is_a_certificate_for_loopback_that_its_own_key_signed() -> None:
    text, fingerprint = loopback_pem()
    pem = text.encode()
    certificate = x509.load_pem_x509_certificate(pem)
    assert certificate.fingerprint(SHA256()).hex() == fingerprint
    certificate.verify_directly_issued_by(certificate)
    key = load_pem_private_key(pem, None)
    assert certificate.public_key() == key.public_key()
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.IPv4Address("127.0.0.1")]
    assert certificate.not_valid_before_utc.year == 1970
    assert certificate.not_valid_after_utc > datetime(2049, 12, 30, tzinfo=UTC)
    assert certificate.serial_number > 0


def test_each_is_another() -> None:
    one, two = loopback_pem(), loopback_pem()
    assert one != two


def _handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    """Let both talk over memory until both are done; raise either one's error."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname="127.0.0.1"),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    left = list(ends)
    while left:
        for end in list(left):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            left.remove(end)


def _contexts(pem: Path, trusted: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    server.verify_mode = ssl.CERT_REQUIRED
    for context in (server, client):
        context.load_cert_chain(pem)
        context.load_verify_locations(trusted)
    return server, client


def test_who_holds_the_file_is_let_in_and_nobody_else(tmp_path: Path) -> None:
    mine, other = tmp_path / "mine.pem", tmp_path / "other.pem"
    for file in (mine, other):
        file.write_text(loopback_pem()[0], encoding="ascii")
    server, client = _contexts(mine, mine)
    _handshake(server, client)
    _, stranger = _contexts(other, mine)
    with pytest.raises(ssl.SSLError):
        _handshake(server, stranger)
