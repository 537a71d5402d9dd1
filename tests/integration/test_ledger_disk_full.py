"""A full disk, for real: the ledger says so, loses nothing, and goes on once there is room."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from presignd.errors import RetryFault
from presignd.ledger import Ledger
from presignd.ledger.sqlite import open_ledger
from tests.mounts import tmpfs
from tests.versions import NOW, new


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
    claimed = await again.claim("drop", 100_000, NOW)
    assert [version.path for version in claimed] == [*recorded, b"after"]
    await again.close(clean=True)


async def test_a_ledger_is_not_made_on_a_full_disk_and_the_reason_is_told(small_disk: Path) -> None:
    await asyncio.to_thread(fill, small_disk / "filler")
    with pytest.raises(RetryFault, match="the disk is full"):
        await open_ledger(small_disk)
    (small_disk / "filler").unlink()
    ledger = await open_ledger(small_disk)
    assert await ledger.was_clean()
    await ledger.close(clean=True)
