"""The service notification protocol, sd_notify(3): readiness, status line, watchdog.

This is our own code, because the libraries for it are abandoned, need compiling, or need libsystemd.
"""

from __future__ import annotations

import asyncio
import socket
import time
import weakref
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

TURN = 2.0
"""Most seconds between two checks of the hearts, and between two updates of the status line."""

EXTENSION = 10.0
"""Seconds by which each EXTEND_TIMEOUT_USEC extends a start or a drain: a few turns."""


class Notifier:
    """Sends to ``$NOTIFY_SOCKET``, a path or an abstract name ("@…"); without one, sends nothing.

    ``watchdog`` is in seconds, None if systemd expects none from this process.
    """

    def __init__(self, address: str = "", watchdog: float | None = None) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog = watchdog if address else None
        self._socket: socket.socket | None = None

    @classmethod
    def of(cls, environ: Mapping[str, str], pid: int) -> Notifier:
        """Return the notifier that the variables of sd_notify(3) and sd_watchdog_enabled(3) describe."""
        microseconds = environ.get("WATCHDOG_USEC", "")
        ours = environ.get("WATCHDOG_PID", "") in ("", str(pid))
        watchdog = int(microseconds) / 1e6 if microseconds.isdigit() and int(microseconds) and ours else None
        return cls(environ.get("NOTIFY_SOCKET", ""), watchdog)

    @property
    def listens(self) -> bool:
        """Whether systemd listens."""
        return bool(self._address)

    def send(self, **fields: str | int) -> None:
        """Send ``NAME=value`` lines as one message; ignore a systemd that is gone or busy."""
        if not self._address:
            return
        message = "\n".join(f"{name}={_one_line(str(value))}" for name, value in fields.items())
        with suppress(OSError):
            # Kept open: a machine that is out of descriptors for a minute must not look like a hung daemon.
            self._socket = self._socket or _datagrams(self)
            self._socket.sendto(message.encode("utf-8", "backslashreplace"), self._address)


def _datagrams(owner: Notifier) -> socket.socket:
    """Return a socket that is closed with its owner."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    sock.setblocking(False)
    weakref.finalize(owner, sock.close)
    return sock


def _one_line(value: str) -> str:
    """Return ``value`` without line breaks: each would begin a field of its own."""
    return " ".join(value.splitlines())


class Systemd:
    """Sends this program's state to systemd.

    ``run`` feeds the watchdog from the event loop, so a loop that hangs does not. ``overdue`` returns the names of the
    hearts that have missed a turn, given the longest usual one in seconds; ``on_overdue`` gets each list of them once.
    """

    def __init__(
        self,
        notifier: Notifier,
        *,
        overdue: Callable[[float], list[str]],
        on_overdue: Callable[[list[str]], None],
    ) -> None:
        self._notifier = notifier
        self._overdue, self._on_overdue = overdue, on_overdue
        self._extend_until = float("inf")
        self._shown = ""
        self._missed: list[str] = []

    def ready(self) -> None:
        """Send READY=1, after the start and after each reload."""
        self._extend_until = 0.0
        self._notifier.send(READY=1)

    def reloading(self) -> None:
        """Send RELOADING: the configuration is being read again, until ``ready``."""
        self._notifier.send(RELOADING=1, MONOTONIC_USEC=time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000)

    def stopping(self, within: float) -> None:
        """Send STOPPING=1: the program drains for ``within`` seconds at most; after that systemd may kill it."""
        self._extend_until = time.monotonic() + within
        self._notifier.send(STOPPING=1, **_extension())

    def show(self, line: str) -> None:
        """Set the line of ``systemctl status``."""
        if line != self._shown:
            self._shown = line
            self._notifier.send(STATUS=line)

    async def show_always(self, status: Callable[[], Awaitable[str]], *, turn: float = TURN) -> None:
        """Keep that line up to date, until cancelled; ``status`` makes it every ``turn`` seconds, and may hang."""
        while self._notifier.listens:
            self.show(await status())
            await asyncio.sleep(turn)

    async def run(self) -> None:
        """Feed the watchdog and extend timeouts, until cancelled."""
        while self._notifier.listens:
            self.feed()
            await asyncio.sleep(pause(self._notifier.watchdog))

    def feed(self) -> None:
        """Feed the watchdog while no heart is overdue; extend the timeout during start and drain."""
        if time.monotonic() < self._extend_until:
            self._notifier.send(**_extension())
        if self._notifier.watchdog is None:
            return
        missed = self._overdue(self._notifier.watchdog / 2)
        if not missed:
            self._notifier.send(WATCHDOG=1)
        elif missed != self._missed:
            self._on_overdue(missed)
        self._missed = missed


def pause(watchdog: float | None) -> float:
    """Return the seconds between two turns: at least four within the watchdog's time."""
    return TURN if watchdog is None else min(TURN, watchdog / 4)


def _extension() -> dict[str, int]:
    return {"EXTEND_TIMEOUT_USEC": int(EXTENSION * 1e6)}
