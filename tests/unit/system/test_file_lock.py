"""Who holds a flock, and that a folder which another daemon watches is refused with its pid."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from presignd.errors import Unavailable
from presignd.system import file_lock
from presignd.system.file_lock import find_holder, lock_folder, lock_holder

LOCKS = """\
1: POSIX  ADVISORY  WRITE 100 fe:01:1234 0 EOF
2: FLOCK  ADVISORY  WRITE 200 fe:01:1234 0 EOF
2: -> FLOCK  ADVISORY  WRITE 201 fe:01:1234 0 EOF
3: FLOCK  ADVISORY  WRITE 300 00:2a:77 0 EOF
4: FLOCK  ADVISORY  WRITE 400 00:2b:88 0 EOF
5: FLOCK  ADVISORY  READ  401 00:2c:88 0 EOF
6: FLOCK  ADVISORY  WRITE 0 fe:01:99 0 EOF
7: LEASE  ACTIVE    READ  500 fe:01:55 0 EOF
"""

HOLDER = """
import os, sys
from presignd.system.file_lock import lock_folder
held = lock_folder(os.open(sys.argv[1], os.O_RDONLY))
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process


@pytest.mark.parametrize(
    ("device", "inode", "pid"),
    [
        ((0xFE, 0x01), 1234, 200),  # the holder, not the one that waits, nor who has a POSIX lock
        ((0x00, 0x99), 77, 300),  # overlayfs: another device in stat, but one holder only
        ((0x00, 0x99), 88, None),  # two files with that inode: no guess
        ((0x00, 0x2C), 88, 401),
        ((0xFE, 0x01), 99, None),  # a holder outside this pid namespace
        ((0xFE, 0x01), 55, None),
        ((0xFE, 0x01), 7, None),
    ],
)
def test_the_holder_is_read_from_the_kernels_table(device: tuple[int, int], inode: int, pid: int | None) -> None:
    assert find_holder(LOCKS, device, inode) == pid


def test_a_second_daemon_on_a_folder_is_refused_with_the_first_ones_pid(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with holder(tmp_path) as first:
            with pytest.raises(Unavailable, match=rf"{tmp_path} is watched by another presignd \(pid {first.pid}\)"):
                lock_folder(fd)
            assert lock_holder(fd) == first.pid
        assert lock_folder(fd)
    finally:
        os.close(fd)


def test_a_holder_that_cannot_be_seen_is_said_to_be_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_lock, "lock_holder", lambda _fd: None)
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with holder(tmp_path), pytest.raises(Unavailable, match="its pid can't be seen from here"):
            lock_folder(fd)
    finally:
        os.close(fd)


def test_without_proc_a_holder_is_refused_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_lock, "Path", lambda _path: tmp_path / "missing")
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with holder(tmp_path), pytest.raises(Unavailable, match=r"\(unknown\) is watched by another process"):
            lock_folder(fd)
    finally:
        os.close(fd)


def test_a_filesystem_without_such_locks_is_told_and_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS answers EBADF for a lock on a directory: it can't be opened for writing."""

    def refused(_fd: int, _how: int) -> None:
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr(fcntl, "flock", refused)
    assert not lock_folder(0)
