"""A ledger whose file was removed is reported at once, and confirms no change that was lost."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from presignd.errors import LedgerLost
from presignd.ledger import open_ledger
from tests.versions import new


def delete(path: Path) -> None:
    path.unlink()


def replace(path: Path) -> None:
    shutil.copy(path, path.with_name("copy"))
    path.with_name("copy").replace(path)


def cut(path: Path) -> None:
    os.truncate(path, 10)


def put_a_file_in_the_way(path: Path) -> None:
    path.parent.rename(path.parent.with_name("away"))
    path.parent.touch()


def delete_log(path: Path) -> None:
    path.with_name(f"{path.name}-wal").unlink()


@pytest.mark.parametrize(
    ("lose", "told"),
    [
        (delete, "sqlite3 is not there any more"),
        (put_a_file_in_the_way, "sqlite3 is not there any more"),
        (replace, "sqlite3 was replaced"),
        (cut, "sqlite3 was cut short"),
        (delete_log, "sqlite3-wal is not there"),
    ],
)
async def test_a_change_that_went_into_a_lost_ledger_is_not_answered(
    tmp_path: Path, lose: Callable[[Path], None], told: str
) -> None:
    ledger = await open_ledger(tmp_path)
    await ledger.enqueue([new(b"before")])
    lose(tmp_path / "ledger.sqlite3")
    with pytest.raises(LedgerLost, match=told):
        await ledger.enqueue([new(b"after")])
    with pytest.raises(LedgerLost):  # from then on, whatever is asked
        await ledger.known("drop", [b"before"])
    with pytest.raises(LedgerLost):
        await ledger.wait_until_dead()
    await ledger.close(clean=False)


async def test_an_older_ledger_that_was_put_in_its_place_gets_nothing_of_its_log(tmp_path: Path) -> None:
    file, older = tmp_path / "ledger.sqlite3", tmp_path / "older"
    ledger = await open_ledger(tmp_path)
    await ledger.enqueue([new(b"a")])
    await ledger.close(clean=True)
    shutil.copy(file, older)
    ledger = await open_ledger(tmp_path)
    await ledger.enqueue([new(b"b")])
    older.replace(file)
    with pytest.raises(LedgerLost):
        await ledger.enqueue([new(b"c")])
    await ledger.close(clean=False)
    ledger = await open_ledger(tmp_path)
    assert set(await ledger.known("drop", [b"a", b"b", b"c"])) == {b"a"}
    await ledger.close(clean=True)


async def test_it_is_noticed_while_nothing_is_asked(tmp_path: Path) -> None:
    ledger = await open_ledger(tmp_path)
    delete(tmp_path / "ledger.sqlite3")
    with pytest.raises(LedgerLost):
        await ledger.wait_until_dead()
    await ledger.close(clean=False)


async def test_a_disk_that_tells_nothing_of_the_ledger_s_files_has_lost_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ails it SQLite meets too, and that is waited for."""
    ledger = await open_ledger(tmp_path)
    looks = 0
    stat = os.stat

    def failing(path: Any, **how: Any) -> os.stat_result:
        nonlocal looks
        if "ledger.sqlite3" in str(path):
            looks += 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return stat(path, **how)

    with monkeypatch.context() as broken:
        broken.setattr(os, "stat", failing)
        await ledger.enqueue([new(b"a")])
        assert looks
    assert set(await ledger.known("drop", [b"a"])) == {b"a"}
    await ledger.close(clean=True)
