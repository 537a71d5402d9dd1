"""A real full disk: the ledger reports it, loses nothing, and continues once there is space."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from presignd.errors import RetryFault, Unavailable
from presignd.ledger import Ledger, open_ledger
from presignd.ledger.lock import WRITABLE
from presignd.ledger.schema import LEDGER
from presignd.system.sqlite import DatabaseFile, pages_between_checkpoints
from tests.mounts import tmpfs
from tests.system.harness import COMMAND
from tests.versions import NOW, claim, new


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a filesystem of 2 MiB."""
    folder = tmp_path / "disk"
    with tmpfs(folder, "2m"):
        yield folder


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        file.writelines(itertools.repeat(b"x" * 4096))


def presignd(folder: Path, ledger: Path, command: str) -> subprocess.CompletedProcess[str]:
    """Run a command with a configuration whose ledger is on the disk."""
    (folder / "drop").mkdir(exist_ok=True)
    (folder / "FILE").touch()
    given = {"PRESIGN__ENDPOINT": "http://127.0.0.1:1", "PRESIGN__ACCESS_KEY": "access", "LEDGER__PATH": str(ledger)}
    given |= {"PRESIGN__SECRET_KEY": "secretkey", "WATCH__D__PATH": f"{folder}/drop", "WATCH__D__BUCKET": "test-bucket"}
    environ = {f"PRESIGND_{name}": value for name, value in given.items()} | {"HOME": str(folder), "PATH": os.defpath}
    argv = [str(COMMAND), *command.split()]
    return subprocess.run(argv, cwd=folder, env=environ, capture_output=True, text=True, timeout=60, check=False)


async def enqueue_until_refused(ledger: Ledger, recorded: list[bytes]) -> None:
    for number in range(10_000):
        await ledger.enqueue([new(b"%d" % number)])
        recorded.append(b"%d" % number)


async def test_a_full_disk_is_told_and_outlived(small_disk: Path) -> None:
    ledger = await open_ledger(small_disk / "ledger")
    await ledger.enqueue([new(b"before")])
    await asyncio.to_thread(fill, small_disk / "filler")
    recorded = [b"before"]
    with pytest.raises(RetryFault) as caught:
        await enqueue_until_refused(ledger, recorded)
    assert caught.value.code == "disk_full"
    assert str(small_disk) in caught.value.message
    assert set(await ledger.known("drop", recorded)) == set(recorded)
    (small_disk / "filler").unlink()
    await ledger.enqueue([new(b"after")])
    await ledger.close(clean=True)

    again = await open_ledger(small_disk / "ledger")
    claimed = await claim(again, "drop", 100_000, NOW)
    assert [version.path for version in claimed] == [*recorded, b"after"]
    await again.close(clean=True)


async def test_a_ledger_is_not_made_on_a_full_disk_and_the_reason_is_told(small_disk: Path) -> None:
    await asyncio.to_thread(fill, small_disk / "filler")
    with pytest.raises(RetryFault, match="the disk is full"):
        await open_ledger(small_disk)
    (small_disk / "filler").unlink()
    ledger = await open_ledger(small_disk)
    assert await ledger.begin_run()
    await ledger.close(clean=True)


async def test_a_ledger_on_a_full_disk_is_not_opened_and_the_reason_is_told(small_disk: Path) -> None:
    """As after a reboot: there is no room for the memory that SQLite shares."""
    ledger = await open_ledger(small_disk)
    await ledger.close(clean=True)
    await asyncio.to_thread(fill, small_disk / "filler")
    with pytest.raises(RetryFault, match="the disk is full"):
        await open_ledger(small_disk)


def test_an_error_of_a_disk_with_room_or_without_a_folder_is_not_called_full(tmp_path: Path) -> None:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR
    for folder in (tmp_path, tmp_path / "gone"):
        explained = DatabaseFile(folder / "l", LEDGER).explain(error)
        assert isinstance(explained, Unavailable)
        assert "disk I/O error" in explained.message


@pytest.mark.parametrize("command", ["run", "status", "put FILE", "verify --all"])
def test_a_command_on_a_full_disk_ends_with_one_line(small_disk: Path, tmp_path: Path, command: str) -> None:
    fill(small_disk / "filler")
    done = presignd(tmp_path, small_disk / "ledger", command)
    assert done.returncode == 3
    assert re.fullmatch(r"presignd: the disk is full: the ledger .*\n", done.stderr.splitlines(keepends=True)[-1])
    assert "Traceback" not in done.stderr


def test_a_read_only_disk_is_told_as_it_is(small_disk: Path, tmp_path: Path) -> None:
    (small_disk / "ledger").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    daemon, status = (presignd(tmp_path, small_disk / "ledger", command) for command in ("run", "status"))
    assert daemon.stderr.endswith(f"Read-only file system ({WRITABLE})\n")
    assert "is on a read-only filesystem" in status.stderr
    assert (daemon.returncode, status.returncode) == (2, 3)


async def test_a_small_disk_is_filled_by_what_is_recorded_and_not_by_the_log_of_it(tmp_path: Path) -> None:
    """A log that fills the disk would stay: what it holds fits into the database only while there is room."""
    with tmpfs(tmp_path / "disk", "1m"):
        ledger = await open_ledger(tmp_path / "disk" / "ledger")
        recorded: list[bytes] = []
        with pytest.raises(RetryFault):
            await enqueue_until_refused(ledger, recorded)
        database, log = (
            (tmp_path / "disk" / "ledger" / f"ledger.sqlite3{more}").stat().st_size for more in ("", "-wal")
        )
        assert database > log
        assert len(recorded) > 500
        await ledger.close(clean=False)


@pytest.mark.parametrize(("free", "pages"), [(0, 32), (2 << 20, 64), (1 << 40, 1000)])
def test_the_log_takes_an_eighth_of_what_is_free_and_4_mib_at_most(free: int, pages: int) -> None:
    assert pages_between_checkpoints(free) == pages
