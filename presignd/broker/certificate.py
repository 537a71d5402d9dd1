"""The broker's own certificate: loading it, and its expiry."""

from __future__ import annotations

import re
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

from Crypto.Util.asn1 import DerObject, DerSequence

from presignd.broker.config import BrokerSection
from presignd.connection import CERTIFICATE_DAYS
from presignd.errors import UsageError

_PEM = "give PEM files that belong together"
_CERTIFICATE = re.compile("-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_SEQUENCE, _UTC_TIME = 0x30, 0x17


def tls_context(config: BrokerSection) -> ssl.SSLContext | None:
    """Return a context with the current certificate, None if none is configured; raise ``UsageError``."""
    if config.tls_cert is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    option = "tls_cert"
    try:
        context.load_cert_chain(config.tls_cert, config.tls_key)
        if config.client_ca is not None:
            option = "client_ca"
            context.load_verify_locations(config.client_ca)
            context.verify_mode = ssl.CERT_OPTIONAL
    except (OSError, ssl.SSLError) as error:
        reason = getattr(error, "reason", None) or error.strerror or "can't be read"
        problem = f"broker.{option}: {getattr(config, option)} can't be used: {reason}"
        raise UsageError(problem, problems=(problem,), fix=_PEM) from None
    return context


def certificate_end(config: BrokerSection) -> datetime | None:
    """Return when the broker's certificate expires (UTC), None if none is configured; raise ``UsageError``."""
    if config.tls_cert is None:
        return None
    try:
        return _end_of(config.tls_cert.read_text("latin-1"))
    except (OSError, ValueError, IndexError, TypeError):
        raise UsageError(f"broker.tls_cert: {config.tls_cert} does not tell when it ends", fix=_PEM) from None


def _end_of(pem: str) -> datetime:
    """Return the expiry of the first certificate; the others are its CAs'."""
    found = _CERTIFICATE.search(pem)
    if found is None:
        raise ValueError("holds no certificate")
    whole = DerSequence().decode(ssl.PEM_cert_to_DER_cert(found[0]))
    # RFC 5280, 4.1: version, number, then the sequences signature, issuer, validity
    fields = DerSequence().decode(whole[0])[:]
    _, _, validity, *_ = [each for each in fields if isinstance(each, bytes) and each[0] == _SEQUENCE]
    ends = DerSequence().decode(validity)[1]
    text = DerObject().decode(ends).payload.decode("ascii")
    if ends[0] == _UTC_TIME:  # a year of two digits; 50 to 99 are 19xx (4.1.2.5.1)
        text = ("19" if text >= "50" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def tls_stamps(config: BrokerSection) -> list[tuple[int, int, int] | None]:
    """Return a value that changes when a certificate file is replaced."""
    return [_stamp(path) for path in (config.tls_cert, config.tls_key, config.client_ca) if path is not None]


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def end_problem(ends: datetime | None, now: datetime) -> str:
    """Return the warning for a certificate that expires at ``ends`` (UTC), "" if that is far away."""
    if ends is None or ends - now >= timedelta(days=CERTIFICATE_DAYS):
        return ""
    return "it ends soon" if ends > now else "it has ended, so clients refuse it"
