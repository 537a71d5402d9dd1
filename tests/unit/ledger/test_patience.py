"""The ledger waits while it can't be written, and reports this once each way."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from presignd.errors import PresigndError, Unavailable, UsageError, fault
from presignd.ledger import Patience

FULL = fault("disk_full")


class Disk:
    """Meets these failures, one a call, then works."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.told: list[str] = []
        self.patience = Patience(sleep=self.sleep)
        self.patience.trouble._log = self  # type: ignore[assignment]  # two of its methods are all that is called

    async def sleep(self, _seconds: float) -> None:
        await asyncio.sleep(0)

    def error(self, event: str, **fields: Any) -> None:
        self.told.append(f"{event} {fields['error_code']}")

    def info(self, event: str) -> None:
        self.told.append(event)

    async def write(self) -> str:
        if self.failures:
            raise self.failures.pop(0)
        return "written"


async def test_a_full_disk_is_outlived_and_told_once_each_way() -> None:
    disk = Disk(FULL, FULL, Unavailable("locked"), FULL)
    assert await asyncio.gather(*(disk.patience(disk.write) for _ in range(3))) == ["written"] * 3
    assert disk.told == ["ledger.blocked disk_full", "ledger.unblocked"]


async def test_an_answered_question_doesn_t_pass_for_a_disk_with_room() -> None:
    disk = Disk(FULL, FULL)
    working = Disk()
    writing = asyncio.create_task(disk.patience(disk.write))
    while not writing.done():
        await disk.patience(working.write)
        await asyncio.sleep(0)
    assert disk.told == ["ledger.blocked disk_full", "ledger.unblocked"]


@pytest.mark.parametrize("failure", [UsageError("damaged"), RuntimeError("a bug")])
async def test_what_no_waiting_helps_against_is_raised_at_once(failure: Exception) -> None:
    disk = Disk(failure)
    with pytest.raises(type(failure)):
        await disk.patience(disk.write)
    assert disk.told == []


async def test_a_daemon_that_stops_waits_no_more() -> None:
    disk = Disk(FULL)
    disk.patience.end()
    with pytest.raises(PresigndError, match="full"):
        await disk.patience(disk.write)
