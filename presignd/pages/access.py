"""Access to a page: its token, login codes, and the defence against requests from other sites."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import ipaddress
import os
import secrets
import socket
import stat
import time
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from presignd.errors import UsageError, reason_of
from presignd.system.trust import read_file, require_owner, walked

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from presignd.config.addresses import Listen

LOGIN_SECONDS = 300.0
"""How long a login address is valid; it works once."""
MOST_CODES = 100
"""Valid login codes at a time: a new one replaces the oldest."""
SHORTEST = 16
"""Characters: a shorter token could be guessed."""


def load_token(path: Path, option: str, *, make: bool = True) -> str:
    """Read the token, and make one (0600) when missing, unless ``make`` is False: then return "".

    ``option`` is what the configuration calls the file. Blocking; raises ``UsageError`` where it can't be used.
    """
    try:
        token = _read(path) or (_make(path) if make else "")
    except OSError as error:
        raise _unusable(path, option, reason_of(error)) from None
    except UnicodeDecodeError:
        raise _unusable(path, option, "is no text") from None
    if len(token) < SHORTEST and (token or make):
        raise _unusable(path, option, f"must hold at least {SHORTEST} characters")
    return token


def readable_by_others(path: Path) -> bool:
    """Return whether any user of this machine may read the token."""
    return bool(path.stat().st_mode & stat.S_IROTH)


def _read(path: Path) -> str:
    with contextlib.suppress(FileNotFoundError):
        return read_file(path, 4096).decode("ascii").strip()
    return ""


def _make(path: Path) -> str:
    """Write a new token; one that a crash left empty is filled."""
    token = secrets.token_urlsafe(32)
    with walked(path.parent) as place:
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(path.name, flags, 0o600, dir_fd=place.fd)
    with os.fdopen(fd, "w", encoding="ascii") as file:
        require_owner(os.fstat(fd), path)
        os.fchmod(fd, 0o600)
        file.write(token + "\n")
        file.flush()
        os.fsync(fd)
    return token


def _unusable(path: Path, option: str, why: str) -> UsageError:
    return UsageError(f"{option}: {path}: {why}", fix="correct it, or remove it: then a new one is made")


class Codes(Protocol):
    """Codes that log in once, for a short time: their addresses stay in browser histories and proxies' logs."""

    def new(self) -> str:
        """Return a fresh code."""

    def spend(self, given: str) -> bool:
        """Return whether ``given`` is a valid code, and make it invalid."""


class Access:
    """The token, and the cookie that stands for it in a browser: derived, so that it isn't the token.

    ``name`` is the page's section in the configuration.
    """

    def __init__(self, token: str, port: int | None, name: str, codes: Codes) -> None:
        self.token = token
        self.cookie = hmac.new(token.encode(), f"presignd {name}".encode(), hashlib.sha256).hexdigest()
        # Cookies know no ports: two pages on one machine must not log each other out.
        self.cookie_name = f"presignd-{name}-{port}" if port else f"presignd-{name}"
        self.codes = codes

    def login_url(self, root: str) -> str:
        """Return an address that logs in once, soon, to the page at ``root``."""
        return f"{root}/login?code={self.codes.new()}"

    def is_token(self, given: str) -> bool:
        """Compare in constant time."""
        return hmac.compare_digest(given.encode("utf-8", "replace"), self.token.encode())

    def has_cookie(self, cookies: Mapping[str, str]) -> bool:
        """Return whether the request comes from a browser that is logged in."""
        given = cookies.get(self.cookie_name, "")
        return hmac.compare_digest(given.encode("utf-8", "replace"), self.cookie.encode())

    def has_bearer(self, headers: Mapping[str, str]) -> bool:
        """Return whether ``Authorization: Bearer`` has the token, which no other site can make a browser send."""
        scheme, _, given = headers.get("Authorization", "").partition(" ")
        return scheme.lower() == "bearer" and self.is_token(given.strip())


class LoginCodes:
    """Codes in memory, for the program that serves the page."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._codes: dict[str, float] = {}

    def new(self) -> str:
        """Return a fresh code."""
        code = secrets.token_urlsafe(32)
        self._codes[code] = self._clock() + LOGIN_SECONDS
        while len(self._codes) > MOST_CODES:
            del self._codes[next(iter(self._codes))]
        return code

    def spend(self, given: str) -> bool:
        """Return whether ``given`` is a valid code, and make it invalid."""
        end = self._codes.pop(given, None)
        return end is not None and self._clock() < end


class SignedCodes:
    """Codes that another process makes, as it can read the token: each has its time, and is signed by the token.

    Spent codes are in memory, so codes from before this start are refused: one of them may be spent.
    """

    def __init__(self, token: str, clock: Callable[[], float] = time.time) -> None:
        self._token, self._clock = token.encode(), clock
        self._began = clock()
        self._spent: dict[str, float] = {}

    def new(self) -> str:
        """Return a fresh code."""
        signed = f"{self._clock():.6f}.{secrets.token_urlsafe(16)}"
        return f"{signed}.{self._signature(signed)}"

    def spend(self, given: str) -> bool:
        """Return whether ``given`` is a valid code, and make it invalid."""
        signed, _, signature = given.rpartition(".")
        if not hmac.compare_digest(signature.encode("utf-8", "replace"), self._signature(signed).encode()):
            return False
        made, now = float(signed.rpartition(".")[0]), self._clock()
        self._spent = {code: end for code, end in self._spent.items() if now < end}
        if signed in self._spent or not self._began <= made <= now < made + LOGIN_SECONDS:
            return False
        self._spent[signed] = made + LOGIN_SECONDS
        return True

    def _signature(self, signed: str) -> str:
        return hmac.new(self._token, b"presignd login " + signed.encode("utf-8", "replace"), hashlib.sha256).hexdigest()


def is_our_host(host: str, listen: Listen) -> bool:
    """Return whether ``Host`` names this server: an address, localhost, this machine's name or the configured one.

    Any other name may be an attacker's that resolves to this address (DNS rebinding). Behind a Unix socket the
    proxy decides.
    """
    if listen.path is not None:
        return True
    try:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return False
    machine = socket.gethostname().lower()
    return _is_address(name) or name in {"localhost", machine, machine.partition(".")[0], listen.host} - {""}


def is_same_origin(headers: Mapping[str, str]) -> bool:
    """Return whether the page itself sent a request, by Origin and Sec-Fetch-Site."""
    if headers.get("Sec-Fetch-Site", "same-origin") != "same-origin":
        return False
    try:
        origin = urlsplit(headers.get("Origin", ""))
    except ValueError:
        return False
    return origin.scheme in {"http", "https"} and origin.netloc.lower() == headers.get("Host", "").lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
