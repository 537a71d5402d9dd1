"""A second daemon on the same ledger is refused with the first one's pid."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from presignd.errors import Unavailable, UsageError
from presignd.ledger import lock
from presignd.ledger.lock import DaemonLock
from presignd.ledger.schema import LEDGER
from presignd.system import filesystem
from presignd.system.sqlite import DatabaseFile

HOLDER = """
import sys
from pathlib import Path
from presignd.ledger.lock import DaemonLock
held = DaemonLock(Path(sys.argv[1]))
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


def test_a_second_daemon_on_the_ledger_is_refused_with_the_first_ones_pid(tmp_path: Path) -> None:
    with holder(tmp_path) as first:
        with pytest.raises(Unavailable, match=rf"{tmp_path} is in use by another presignd \(pid {first.pid}\)"):
            DaemonLock(tmp_path)
        assert (tmp_path / "lock").read_text() == f"{first.pid}\n"


def test_where_the_kernel_does_not_show_the_holder_the_lock_file_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "lock_holder", lambda _fd: None)
    with holder(tmp_path) as first, pytest.raises(Unavailable, match=rf"pid {first.pid}\)"):
        DaemonLock(tmp_path)


def test_the_locks_end_with_the_process_that_held_them(tmp_path: Path) -> None:
    with holder(tmp_path) as first:
        first.kill()
    with DaemonLock(tmp_path):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


def test_closing_lets_go_and_may_be_done_twice(tmp_path: Path) -> None:
    first = DaemonLock(tmp_path)
    first.close()
    first.close()
    DaemonLock(tmp_path).close()


def test_the_lock_is_not_handed_to_programs_that_the_daemon_starts(tmp_path: Path) -> None:
    held = DaemonLock(tmp_path)
    with subprocess.Popen(["sleep", "60"]) as child:
        held.close()
        try:
            DaemonLock(tmp_path).close()
        finally:
            child.kill()


def test_the_folder_and_the_lock_are_private_whatever_the_umask(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "ledger"
    for umask, path in ((0o000, folder), (0o777, tmp_path / "other")):
        before = os.umask(umask)
        try:
            DaemonLock(path).close()
        finally:
            os.umask(before)
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert stat.S_IMODE((path / "lock").stat().st_mode) == 0o600


def test_a_network_filesystem_is_refused_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystem, "fs_type", lambda _target: 0x6969)
    with pytest.raises(UsageError, match=rf"ledger.path: {tmp_path} lies on NFS") as caught:
        DaemonLock(tmp_path)
    assert caught.value.fix


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"^ledger\.path: .* a file is in the way$"):
        DaemonLock(tmp_path / "file" / "ledger")


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="lock can't be opened"):
        DaemonLock(tmp_path)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.needs("root")
@pytest.mark.parametrize("name", ["lock", "ledger.sqlite3", "ledger.sqlite3-wal", "ledger.sqlite3-shm"])
def test_a_file_of_another_user_is_never_a_part_of_the_ledger(tmp_path: Path, name: str) -> None:
    planted = tmp_path / name
    planted.write_bytes(b"planted")
    os.chown(planted, 65534, 65534)
    with pytest.raises(UsageError, match=f"it belongs to nobody, .*chown root {planted}"), DaemonLock(tmp_path):
        DatabaseFile(tmp_path / "ledger.sqlite3", LEDGER).open()
    assert planted.read_bytes() == b"planted"


def test_a_ledger_folder_that_others_made_a_symlink_is_none(tmp_path: Path) -> None:
    """Its files would be made where only the daemon may write."""
    vault, shared = tmp_path / "vault", tmp_path / "shared"
    vault.mkdir()
    shared.mkdir()
    shared.chmod(0o777)
    (shared / "state").symlink_to(vault)
    for folder in (shared / "state", shared / "state" / "ledger"):
        with pytest.raises(UsageError, match=r"ledger\.path: .*state is a symlink, and others can write in"):
            DaemonLock(folder)
    assert list(vault.iterdir()) == []
