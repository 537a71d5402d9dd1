"""What the daemon tells systemd, and when: READY, STATUS, the watchdog, more time."""

from __future__ import annotations

import asyncio
import errno
import itertools
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from presignd.runtime import systemd as notify
from presignd.runtime.systemd import Notifier, Systemd, pause
from tests.finishing import failing

_numbers = itertools.count()


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """Yield a notify socket's address and the socket, in both of its forms."""
    address = str(tmp_path / "notify") if request.param == "path" else f"@presignd-{tmp_path.name}-{next(_numbers)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + address[1:] if address.startswith("@") else address)
        sock.setblocking(False)
        yield address, sock


def heard(sock: socket.socket) -> list[str]:
    said: list[str] = []
    with suppress(BlockingIOError):
        while True:
            said.append(sock.recv(4096).decode())
    return said


class Daemon:
    """A daemon's side: what its hearts and its queue say."""

    def __init__(self, notifier: Notifier) -> None:
        self.missed: list[str] = []
        self.line = "0 uploading"
        self.told: list[list[str]] = []
        self.usual: list[float] = []
        self.service = Systemd(notifier, overdue=self.overdue, on_overdue=self.told.append)

    async def status(self) -> str:
        return self.line

    def overdue(self, usual: float) -> list[str]:
        self.usual.append(usual)
        return self.missed


def test_fields_go_as_lines_of_one_message(systemd: tuple[str, socket.socket]) -> None:
    address, sock = systemd
    Notifier(address).send(READY=1, STATUS="4 queued")
    assert heard(sock) == ["READY=1\nSTATUS=4 queued"]


def test_a_machine_without_descriptors_still_feeds_the_watchdog(
    systemd: tuple[str, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All else waits until there are some again: to be killed meanwhile would count as a crash."""
    address, sock = systemd
    notifier = Notifier(address)
    notifier.send(READY=1)
    with monkeypatch.context() as short:
        short.setattr(socket, "socket", failing(errno.EMFILE))
        notifier.send(WATCHDOG=1)
        notifier.send(WATCHDOG=1)
    assert heard(sock) == ["READY=1", "WATCHDOG=1", "WATCHDOG=1"]


def test_a_status_can_forge_no_field(systemd: tuple[str, socket.socket]) -> None:
    address, sock = systemd
    Notifier(address).send(STATUS="bad\nSTOPPING=1")
    assert heard(sock) == ["STATUS=bad STOPPING=1"]


def test_without_systemd_nothing_is_said_and_nothing_breaks(tmp_path: Path) -> None:
    assert not Notifier.of({}, 7).listens
    Notifier().send(READY=1)
    Notifier(str(tmp_path / "gone")).send(READY=1)


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "7"}, 60.0),
        ({"WATCHDOG_USEC": "3000000"}, 3.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_this_processs_own(environ: dict[str, str], seconds: float | None) -> None:
    assert Notifier.of({"NOTIFY_SOCKET": "/x", **environ}, 7).watchdog == seconds
    assert Notifier.of(environ, 7).watchdog is None


def test_the_watchdog_is_fed_while_every_heart_beats(systemd: tuple[str, socket.socket]) -> None:
    address, sock = systemd
    daemon = Daemon(Notifier(address, 60))
    daemon.service.ready()
    daemon.service.feed()
    assert heard(sock) == ["READY=1", "WATCHDOG=1"]
    assert daemon.usual == [30]


def test_the_watchdog_starves_while_one_is_overdue_and_the_log_says_who_once(
    systemd: tuple[str, socket.socket],
) -> None:
    address, sock = systemd
    daemon = Daemon(Notifier(address, 60))
    daemon.service.ready()
    heard(sock)
    daemon.missed = ["worker of 1"]
    daemon.service.feed()
    daemon.service.feed()
    assert heard(sock) == []
    assert daemon.told == [["worker of 1"]]
    daemon.missed = []
    daemon.service.feed()
    assert heard(sock) == ["WATCHDOG=1"]


def test_a_start_and_a_drain_ask_for_more_time_and_what_runs_does_not(
    systemd: tuple[str, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    address, sock = systemd
    service = Daemon(Notifier(address)).service
    service.feed()
    assert heard(sock) == ["EXTEND_TIMEOUT_USEC=10000000"]
    service.ready()
    service.feed()
    assert heard(sock) == ["READY=1"]
    service.stopping(30)
    now[0] += 29
    service.feed()
    assert heard(sock) == ["STOPPING=1\nEXTEND_TIMEOUT_USEC=10000000", "EXTEND_TIMEOUT_USEC=10000000"]
    now[0] += 1
    service.feed()
    assert heard(sock) == []


async def test_a_status_that_hangs_starves_no_watchdog(
    systemd: tuple[str, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger may be waited for, e.g. while its disk is full."""
    address, sock = systemd
    daemon = Daemon(Notifier(address, 0.01))
    daemon.service.ready()

    async def hang() -> str:
        await asyncio.Event().wait()
        return ""

    running = asyncio.gather(daemon.service.run(), daemon.service.show_always(hang))
    said: list[str] = []
    async with asyncio.timeout(60):
        while said.count("WATCHDOG=1") < 3:
            await asyncio.sleep(0)
            said += heard(sock)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert set(said) == {"READY=1", "WATCHDOG=1"}


def test_a_reload_carries_its_time_for_notify_reload(
    systemd: tuple[str, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, sock = systemd
    monkeypatch.setattr(time, "clock_gettime_ns", lambda _: 5_000_000_123)
    Daemon(Notifier(address)).service.reloading()
    assert heard(sock) == ["RELOADING=1\nMONOTONIC_USEC=5000000"]


async def test_the_status_line_is_sent_when_it_changes(systemd: tuple[str, socket.socket]) -> None:
    address, sock = systemd
    daemon = Daemon(Notifier(address))
    daemon.service.ready()
    running = asyncio.gather(daemon.service.run(), daemon.service.show_always(daemon.status, turn=0.001))
    said: list[str] = []
    async with asyncio.timeout(60):
        for line in ("0 uploading", "3 uploading"):
            daemon.line = line
            while f"STATUS={line}" not in said:
                await asyncio.sleep(0)
                said += heard(sock)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert said == ["READY=1", "STATUS=0 uploading", "STATUS=3 uploading"]


def test_a_short_watchdog_is_fed_four_times_in_its_time() -> None:
    assert pause(None) == pause(60) == notify.TURN
    assert pause(2) == 0.5
