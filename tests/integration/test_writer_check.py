"""Whole files only (guarantee 1): what the kernel reports about writers, to root and to an unprivileged user."""

from __future__ import annotations

import asyncio
import fcntl
import mmap
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from presignd.config import WatchConfig
from presignd.model import State
from presignd.pipeline.files import lease as writer_check
from presignd.pipeline.files.folder import Folder
from presignd.pipeline.files.ignore import Unfinished
from presignd.pipeline.files.lease import WriterCheck, has_writer, ignore_sigio, writer_check_of
from presignd.pipeline.settle.looker import Looker
from presignd.system import filesystem
from tests.unprivileged import NOBODY, unprivileged, without_rights, world_readable
from tests.watching import watching

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="leases are Linux's")


@pytest.fixture(autouse=True)
def _ignored() -> None:
    ignore_sigio()


@pytest.fixture
def shared() -> Iterator[Path]:
    with world_readable() as root:
        yield root


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "file").write_text("x")
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    yield fd
    os.close(fd)


def test_nobody_writing_is_told(file: int) -> None:
    assert has_writer(file) is False


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND])
def test_whoever_has_it_open_for_writing_is_told_until_he_closes_it(file: int, tmp_path: Path, flags: int) -> None:
    writer = os.open(tmp_path / "file", flags)
    assert has_writer(file) is True
    os.close(writer)
    assert has_writer(file) is False


def test_a_writable_mapping_counts_after_its_descriptor_is_closed(file: int, tmp_path: Path) -> None:
    writer = os.open(tmp_path / "file", os.O_RDWR)
    with mmap.mmap(writer, 1):
        os.close(writer)
        assert has_writer(file) is True
    assert has_writer(file) is False


def test_another_reader_is_no_writer(file: int, tmp_path: Path) -> None:
    with (tmp_path / "file").open("rb"):
        assert has_writer(file) is False


def test_the_lease_is_given_back(file: int) -> None:
    has_writer(file)
    assert fcntl.fcntl(file, fcntl.F_GETLEASE) == fcntl.F_UNLCK


def test_a_lease_that_can_not_be_given_back_is_left_to_the_close(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chown in between: the file is another user's now."""
    fcntl_, given_back = fcntl.fcntl, []

    def refusing(fd: int, command: int, value: int) -> int:
        if (command, value) == (fcntl.F_SETLEASE, fcntl.F_UNLCK):
            given_back.append(fd)
            raise PermissionError
        return fcntl_(fd, command, value)

    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "fcntl", refusing)
        assert has_writer(file) is False
    assert given_back == [file]


def test_a_lease_without_sigio_ignored_is_refused(file: int) -> None:
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    writer_check._require_sigio_ignored.cache_clear()
    with pytest.raises(RuntimeError, match="ignore_sigio"):
        has_writer(file)


def test_writers_that_come_during_leases_kill_nothing(shared: Path) -> None:
    """Without SIGIO ignored, the process dies within 0.2 s of this (design, "Decisions")."""
    (shared / "file").write_text("x")
    (shared / "file").chmod(0o666)
    if os.geteuid() == 0:
        os.chown(shared / "file", NOBODY, NOBODY)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            os.close(os.open(shared / "file", os.O_WRONLY))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        told = unprivileged(
            shared,
            """
            import time
            ignore_sigio()
            fd = os.open(root / "file", os.O_RDONLY)
            end, seen = time.monotonic() + 1.0, set()
            while time.monotonic() < end:
                seen.add(has_writer(fd))
            print(len(seen))
            """,
        )
    finally:
        stop.set()
        writer.join()
    assert told == ["2"]


def test_of_another_users_file_nothing_can_be_told_without_cap_lease(shared: Path) -> None:
    (shared / "theirs").write_text("x")
    (shared / "theirs").chmod(0o644)
    (shared / "mine").write_text("x")
    if os.geteuid() == 0:
        os.chown(shared / "mine", NOBODY, NOBODY)
    assert unprivileged(
        shared,
        """
        ignore_sigio()
        for name in ("theirs", "mine"):
            print(has_writer(os.open(root / name, os.O_RDONLY)))
        """,
    ) == ["None", "False"]


# --- which mode a folder has --------------------------------------------------------------------
def watch(root: Path) -> WatchConfig:
    return WatchConfig(name="drop", path=root, bucket="test-bucket")


@pytest.mark.needs("CAP_LEASE")
def test_root_on_a_local_filesystem_has_the_writer_check_for_every_file(tmp_path: Path) -> None:
    folder = Folder(watch(tmp_path))
    assert writer_check_of(folder) == ("lease", "")
    assert list(tmp_path.iterdir()) == []
    folder.close()


@pytest.mark.parametrize("writable", [True, False])
def test_without_cap_lease_it_is_told_whose_files_settle_by_quiet_time(shared: Path, *, writable: bool) -> None:
    (shared / "drop").mkdir()
    (shared / "drop").chmod(0o777 if writable else 0o755)
    told = unprivileged(
        shared,
        """
        ignore_sigio()
        print(*writer_check_of(Folder(WatchConfig(name="drop", path=root / "drop", bucket="test-bucket"))), sep=": ")
        """,
    )
    assert told == ["lease: other users' files settle by quiet time: no CAP_LEASE"]


def test_on_a_network_filesystem_quiet_time_decides_and_the_reason_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filesystem, "fs_type", lambda _: 0x6969)
    folder = Folder(watch(tmp_path))
    check = writer_check_of(folder)
    folder.close()
    assert check.mode == "quiet"
    assert "NFS" in check.reason


def test_on_other_systems_nothing_is_known_of_writers(
    file: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are no leases on macOS: "no writer" would be a guess, and a half-written file would go."""
    folder = Folder(watch(tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr(sys, "platform", "darwin")
        assert has_writer(file) is None
        assert writer_check_of(folder) == WriterCheck("quiet", "the writer check needs Linux")
    folder.close()


@pytest.mark.parametrize("answer", [None, False])
def test_a_filesystem_whose_leases_tell_of_no_writer_has_quiet_time_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, answer: bool | None
) -> None:
    """Some refuse every lease, some grant every one: the check is believed only where it was seen to work."""
    monkeypatch.setattr(writer_check, "has_writer", lambda _fd: answer)
    folder = Folder(watch(tmp_path))
    check = writer_check_of(folder)
    folder.close()
    assert check.mode == "quiet"
    assert check.reason.endswith("has no leases that report writers")


def test_where_the_folder_takes_no_file_the_check_is_believed_unproven() -> None:
    with world_readable() as root:
        root.chmod(0o555)
        folder = Folder(watch(root))
        with without_rights():
            check = writer_check_of(folder)
        root.chmod(0o755)
        folder.close()
    assert check == WriterCheck("lease", "other users' files settle by quiet time: no CAP_LEASE")


def test_without_proc_the_check_is_believed_for_ones_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def without_proc(path: str, flags: int, *args: int, dir_fd: int | None = None) -> int:
        if path.startswith("/proc/"):
            raise FileNotFoundError(path)
        return opened(path, flags, *args, dir_fd=dir_fd)

    folder = Folder(watch(tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", without_proc)
        patched.setattr(writer_check, "Path", lambda _path: tmp_path / "missing")
        check = writer_check_of(folder)
    folder.close()
    assert check == WriterCheck("lease", "other users' files settle by quiet time: no CAP_LEASE")


# --- settling with a writer there ---------------------------------------------------------------
async def test_a_file_that_is_held_open_settles_only_once_it_is_closed(tmp_path: Path) -> None:
    async with watching(tmp_path) as drop:
        await drop.scanned()
        with (drop.root / "slow").open("wb", buffering=0) as slow:
            slow.write(b"first")
            await drop.until(lambda: [one.why for one in drop.watcher.lane.snapshot()] == ["open for writing"])
            await asyncio.sleep(1.0)  # twenty quiet times
            assert drop.versions == []
            slow.write(b" and last")
        await drop.has("slow")
        assert [version.size for version in drop.versions] == [len("first and last")]


async def test_a_writer_in_another_process_counts_and_his_death_ends_it(tmp_path: Path) -> None:
    async with watching(tmp_path) as drop:
        await drop.scanned()
        code = f"f = open({os.fspath(drop.root / 'slow')!r}, 'wb', 0); f.write(b'x'); input()"
        with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as process:  # noqa: ASYNC220 - starts at once
            await drop.until(lambda: [one.why for one in drop.watcher.lane.snapshot()] == ["open for writing"])
            assert drop.versions == []
            process.kill()
        await drop.has("slow")


async def test_where_the_check_cannot_work_a_writer_who_pauses_for_less_than_settle_is_waited_for(
    tmp_path: Path,
) -> None:
    async with watching(tmp_path, settle=2) as drop:
        await drop.scanned()
        assert drop.watcher.check is not None, "it was scanned"
        check = drop.watcher.check._replace(mode="quiet")
        drop.watcher.lane.use(
            Looker(drop.watcher._config, drop.folder, check, unfinished=Unfinished(), ahead=lambda _: None)
        )
        with (drop.root / "slow").open("wb", buffering=0) as slow:
            for _ in range(8):
                slow.write(b"x")
                await asyncio.sleep(0.2)
            assert drop.versions == []
            await drop.has("slow")  # still open: nothing tells, and the quiet time is over
        assert [version.size for version in drop.versions] == [8]


async def test_an_unreadable_file_is_quarantined_and_goes_on_once_it_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Folder.open_with_stat

    def refused(folder: Folder, path: bytes) -> tuple[int, os.stat_result]:
        if folder.stat(path).st_mode & 0o777 == 0o200:
            from presignd.errors import fault  # noqa: PLC0415 - used by this stand-in only

            raise fault("unreadable")
        return real(folder, path)

    monkeypatch.setattr(Folder, "open_with_stat", refused)
    async with watching(tmp_path) as drop:
        await drop.scanned()
        (drop.root / "a").write_text("x")
        (drop.root / "a").chmod(0o200)
        await drop.has("a")
        assert [(version.state, version.error_code) for version in drop.versions] == [(State.QUARANTINED, "unreadable")]
        (drop.root / "a").chmod(0o644)
        await drop.until(lambda: len(drop.versions) == 2)
        assert drop.versions[1].state is State.QUEUED
