"""Nobody reads stderr, or its disk is full: uploads, commands and signals go on, and no line is torn."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.canary import assert_no_secrets
from tests.links import whole_lines
from tests.needs import need
from tests.stores import Store
from tests.system.harness import COMMAND, Presignd, config_for, until_true

Ends = Callable[[], tuple[int, int]]
FILES = 300


def _pipe() -> tuple[int, int]:
    return os.pipe()


def _socket() -> tuple[int, int]:
    """Return a socket, as systemd gives a service one to the journal."""
    ours, theirs = socket.socketpair()
    return ours.detach(), theirs.detach()


def _terminal() -> tuple[int, int]:
    """Return a terminal on which somebody typed ^S."""
    ours, theirs = pty.openpty()
    os.write(ours, b"\x13")
    return ours, theirs


def _non_blocking_pipe() -> tuple[int, int]:
    """Return a pipe that another process made non-blocking, which holds for all who share it."""
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    return ours, theirs


class Reader(threading.Thread):
    """Reads all that there is to its end, once it is let."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(daemon=True)
        self._descriptor = descriptor
        self.said = b""

    def run(self) -> None:
        with contextlib.suppress(OSError):  # EIO: a terminal whose other end is closed
            while data := os.read(self._descriptor, 1 << 16):
                self.said += data


@pytest.fixture
def daemon(tmp_path: Path, seaweedfs: Store) -> Iterator[Presignd]:
    text = config_for(seaweedfs, tmp_path, seaweedfs.new_bucket(), watch='settle = "0s"')
    daemon = Presignd(tmp_path, f'{text}\n[web]\nlisten = "unix:{tmp_path}/page"\n', secrets=(seaweedfs.secret_key,))
    daemon.log.touch()
    yield daemon
    daemon.end()


def start(daemon: Presignd, stderr: int, stdout: int = subprocess.DEVNULL, *more: str) -> subprocess.Popen[bytes]:
    daemon.process = subprocess.Popen(
        [COMMAND, "run", "-c", daemon.config, *more],
        env=daemon.environ,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
    )
    return daemon.process


def healthy(daemon: Presignd) -> bool:
    with socket.socket(socket.AF_UNIX) as page:
        page.settimeout(20)
        page.connect(str(daemon.folder / "page"))
        page.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return page.recv(4096).startswith(b"HTTP/1.1 200")


def drop(daemon: Presignd, count: int = FILES) -> None:
    for number in range(count):
        (daemon.folder / "drop" / f"{number}").write_bytes(b"%d" % number)


def assert_works(daemon: Presignd, count: int = FILES) -> None:
    links = daemon.state / "links" / "links.jsonl"
    until_true(
        lambda: links.exists() and len(whole_lines(links)) == count,
        f"{count} links",
        60,
        process=daemon.process,
        log=daemon.log,
    )
    assert daemon.run("status", timeout=20).returncode == 0
    assert healthy(daemon)


@pytest.mark.parametrize("ends", [_pipe, _non_blocking_pipe, _socket, _terminal])
def test_a_stderr_that_nobody_reads_stops_nothing_and_is_whole_when_it_is_read(daemon: Presignd, ends: Ends) -> None:
    if ends is _terminal:
        need("terminal")
    ours, theirs = ends()
    start(daemon, theirs)
    os.close(theirs)
    drop(daemon)
    assert_works(daemon)
    if ends is _terminal:
        os.write(ours, b"\x11")
    reader = Reader(ours)
    reader.start()
    assert daemon.process is not None
    assert daemon.stop() == 0
    reader.join(30)
    os.close(ours)
    assert_no_secrets(reader.said)
    if ends is _terminal:  # as a person reads it
        assert reader.said.count(b"file.done") == FILES
        return
    events = [json.loads(line) for line in reader.said.splitlines()]
    assert [event["event"] for event in events[:1] + events[-1:]] == ["daemon.started", "daemon.stopped"]
    assert sum(event["event"] == "file.done" for event in events) == FILES


def test_a_stderr_that_is_never_read_lets_it_end_and_the_next_start_says_what_nobody_heard(daemon: Presignd) -> None:
    ours, theirs = os.pipe()
    process = start(daemon, theirs)
    os.close(theirs)
    drop(daemon)
    assert_works(daemon)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    os.set_blocking(ours, False)
    heard = os.read(ours, 1 << 20)
    os.close(ours)
    assert len(heard) >= 1 << 15
    whole = heard[: heard.rindex(b"\n")].splitlines()
    done = {event["path"] for event in map(json.loads, whole) if event["event"] == "file.done"}
    assert len(done) < FILES
    daemon.start()
    daemon.until(lambda: daemon.events("daemon.ready"), "daemon.ready")
    again = {event["path"] for event in daemon.events("file.done") if event["replayed"]}
    assert len(done | again) == FILES
    assert daemon.stop() == 0


def test_a_full_disk_under_the_log_tears_no_line_and_the_gap_is_told(daemon: Presignd, tmp_path: Path) -> None:
    disk = tmp_path / "logs"
    disk.mkdir()
    need("mount")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=True)
    try:
        log = disk / "log"
        with log.open("ab") as stderr:
            start(daemon, stderr.fileno())
        drop(daemon)
        assert_works(daemon)
        subprocess.run(["mount", "-o", "remount,size=16m", disk], check=True)
        assert daemon.stop() == 0
        events = [json.loads(line) for line in log.read_bytes().splitlines()]
        [gap] = [event for event in events if event["event"] == "log.dropped"]
        assert gap["count"] > 0
        assert events[-1]["event"] == "daemon.stopped"
        heard = {event["path"] for event in events if event["event"] == "file.done"}
        assert len(heard) < FILES
        daemon.start()
        daemon.until(lambda: daemon.events("daemon.ready"), "daemon.ready")
        again = {event["path"] for event in daemon.events("file.done") if event["replayed"]}
        assert len(heard | again) == FILES
        assert daemon.stop() == 0
    finally:
        daemon.end()
        subprocess.run(["umount", disk], check=True)


def test_a_reader_of_the_links_that_is_stuck_stops_neither_uploads_nor_the_end(daemon: Presignd) -> None:
    """``presignd run --print-links | less``."""
    ours, theirs = os.pipe()
    with daemon.log.open("ab") as stderr:
        process = start(daemon, stderr.fileno(), theirs, "--print-links")
    os.close(theirs)
    drop(daemon, 600)
    assert_works(daemon, 600)
    assert not select.select([], [ours], [], 0)[1]
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    os.close(ours)
    assert daemon.events("daemon.stopped")
