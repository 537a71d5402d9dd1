"""A real full disk: the ledger reports it, loses nothing, and continues once there is space."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from presignd.errors import RetryFault
from presignd.ledger import Ledger, open_ledger
from presignd.system.sqlite import pages_between_checkpoints
from tests.mounts import tmpfs
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
