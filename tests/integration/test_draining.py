"""A stop drains uploads in flight, a second one ends at once; after both the next start continues."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from presignd.ledger import open_ledger
from presignd.model import State
from tests.faulty_s3 import FaultyS3
from tests.running import config, running

LONG = 300.0


async def state_after(folder: Path) -> tuple[State, int, bool]:
    """Return where the only version stands, its unclean exits, and whether the run ended cleanly."""
    ledger = await open_ledger(folder / "state")
    version = await ledger.by_path("drop", b"a")
    clean = await ledger.begin_run()
    await ledger.close(clean=True)
    assert version is not None
    return version.state, version.unclean, clean


async def test_what_is_in_flight_is_finished_and_said_before_the_end(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    async with running(config(tmp_path, faulty_s3, upload={"drain_timeout": LONG})) as daemon:
        daemon.drop("a")
        await daemon.until(lambda: daemon.view.in_flight() or daemon.links(), "an upload")
    assert [event["status"] for event in daemon.events("file.done")] == ["linked"]
    assert daemon.links() == ["a"]
    assert await state_after(tmp_path) == (State.FINISHED, 0, True)


async def test_a_second_stop_ends_at_once_and_the_next_start_goes_on(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    hangs = faulty_s3.fault(method="PUT", key="a", hang="after")
    configured = config(tmp_path, faulty_s3, upload={"drain_timeout": LONG, "timeout": LONG})
    async with running(configured) as daemon:
        daemon.drop("a")
        await daemon.until(lambda: not hangs.times, "the PUT at the store")
        asyncio.get_running_loop().call_later(0.1, daemon.stop)
        began = time.monotonic()
    assert time.monotonic() - began < LONG / 10
    assert daemon.events("file.done", "file.quarantined") == []
    assert await state_after(tmp_path) == (State.QUEUED, 0, True)
    async with running(configured) as daemon:
        await daemon.done()
    assert daemon.links() == ["a"]


async def test_a_drain_that_takes_too_long_cancels_what_is_left(faulty_s3: FaultyS3, tmp_path: Path) -> None:
    hangs = faulty_s3.fault(method="PUT", key="a", hang="after")
    configured = config(tmp_path, faulty_s3, upload={"drain_timeout": 0.2, "timeout": LONG})
    began = time.monotonic()
    async with running(configured) as daemon:
        daemon.drop("a")
        await daemon.until(lambda: not hangs.times, "the PUT at the store")
    assert time.monotonic() - began < LONG / 10
    assert daemon.events("file.done", "file.quarantined") == []
    assert await state_after(tmp_path) == (State.QUEUED, 0, True)
    async with running(configured) as daemon:
        await daemon.done()
    assert daemon.links() == ["a"]
