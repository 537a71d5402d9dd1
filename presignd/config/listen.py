"""Where a server listens: ``host:port``, ``[::1]:port`` or ``unix:/path``. Pure."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import NamedTuple

_HOST_PORT = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%\w]+\]|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5})")
_HIGHEST_PORT = 65535


class Listen(NamedTuple):
    """An address to bind: ``path`` of a Unix socket, or ``host`` and ``port`` (0: any free one)."""

    host: str = ""
    port: int = 0
    path: Path | None = None

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches it."""
        return self.path is not None or self.host == "localhost" or _is_loopback(self.host)


def parse_listen(text: str) -> Listen:
    """Read an address; raise ``ValueError`` that says what it must be.

    A host must be named: an empty one would mean every interface without saying so.
    """
    if text.startswith("unix:"):
        path = Path(text.removeprefix("unix:"))
        if not path.is_absolute() or "\0" in text:
            raise ValueError('must name an absolute path after unix:, e.g. "unix:/run/presignd/web.sock"')
        return Listen(path=path)
    match = _HOST_PORT.fullmatch(text)
    if match is None or int(match["port"]) > _HIGHEST_PORT:
        raise ValueError('must be host:port, e.g. "127.0.0.1:8321", or unix:/path')
    return Listen(match["host"].strip("[]").lower(), int(match["port"]))


def check_listen(text: str) -> str:
    """Return ``text`` when it can be listened at."""
    parse_listen(text)
    return text


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
