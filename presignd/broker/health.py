"""Check whether the broker on this machine runs. Blocking."""

from __future__ import annotations

import socket
import ssl
from contextlib import closing
from http.client import HTTPConnection, HTTPException

from presignd.broker.config import BrokerSection
from presignd.config.addresses import Listen, parse_listen
from presignd.errors import Unavailable
from presignd.runtime.unix_socket import connect

PATIENCE = 5.0
"""Seconds until a broker that does not answer counts as hung."""
_TO_CONNECT = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - this binds nothing
_WORKS = 200


def require_answer(config: BrokerSection) -> None:
    """Raise ``Unavailable`` unless /healthz at the broker's own address says that it runs."""
    fix = "is the broker running? See its log"
    try:
        status = _status(parse_listen(config.listen), tls=config.tls_cert is not None)
    except (OSError, HTTPException) as problem:
        why = getattr(problem, "strerror", None) or str(problem) or type(problem).__name__
        raise Unavailable(f"no broker answers at {config.listen}: {why}", fix=fix) from None
    if status != _WORKS:
        raise Unavailable(f"{config.listen} answers with HTTP {status}", fix=fix)


def _status(listen: Listen, *, tls: bool) -> int:
    with closing(HTTPConnection("localhost")) as connection:
        connection.sock = _connected(listen)
        if tls:
            connection.sock = _with_tls(connection.sock)
        connection.request("GET", "/healthz")
        return connection.getresponse().status


def _connected(listen: Listen) -> socket.socket:
    if listen.path is None:
        return socket.create_connection((_TO_CONNECT.get(listen.host, listen.host), listen.port), PATIENCE)
    sock = connect(listen.path)
    sock.settimeout(PATIENCE)
    return sock


def _with_tls(sock: socket.socket) -> socket.socket:
    """Return the socket with TLS, unverified: the certificate is for another name, and nothing secret is sent."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(sock)
