"""What parts and small files hold while they are at work."""

from __future__ import annotations

import asyncio

import pytest

from presignd.pipeline import slots as slots_module
from presignd.pipeline.slots import Slots


@pytest.fixture
def slots(monkeypatch: pytest.MonkeyPatch) -> Slots:
    monkeypatch.setattr(slots_module, "processors", lambda: 2)
    return Slots(8)


async def hash_one(slots: Slots, watch: str, begun: list[str], through: asyncio.Event) -> None:
    async with slots.hashing(watch):
        begun.append(watch)
        await through.wait()


async def turns() -> None:
    for _ in range(9):
        await asyncio.sleep(0)


async def test_no_more_parts_are_hashed_at_a_time_than_there_are_processors(slots: Slots) -> None:
    begun, through = list[str](), [asyncio.Event() for _ in range(3)]
    async with asyncio.TaskGroup() as tasks:
        for one in through:
            tasks.create_task(hash_one(slots, "drop", begun, one))
        await turns()
        assert len(begun) == 2
        through[0].set()
        await turns()
        assert len(begun) == 3
        for one in through:
            one.set()


async def test_a_watch_whose_disk_hangs_holds_up_no_others_hashing(slots: Slots) -> None:
    begun, through = list[str](), asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for watch in ("hangs", "hangs", "hangs", "drop"):
            tasks.create_task(hash_one(slots, watch, begun, through))
        await turns()
        assert begun == ["hangs", "hangs", "drop"]
        through.set()
