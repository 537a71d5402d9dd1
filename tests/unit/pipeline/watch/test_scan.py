"""When to scan which folders, and what a scan finds of the mounts below."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from presignd.config import WatchConfig
from presignd.pipeline.watch.scan import Scanner, rescan_interval, topmost


def watch(**options: object) -> WatchConfig:
    return WatchConfig.model_validate({"name": "drop", "path": Path("/srv/drop"), "bucket": "test-bucket"} | options)


@pytest.mark.parametrize(("cost", "interval"), [(0.0, 60), (0.05, 60), (0.06, 60), (0.5, 500), (7.5, 7500)])
def test_scans_come_every_minute_or_take_a_thousandth_of_a_core(cost: float, interval: float) -> None:
    assert rescan_interval(watch(), cost, events=True) == pytest.approx(interval)


def test_an_interval_that_was_given_is_kept() -> None:
    assert rescan_interval(watch(rescan=5), 100.0, events=True) == 5


def test_without_events_scans_come_at_the_poll_interval_and_leave_half_the_time_free() -> None:
    assert rescan_interval(watch(poll_interval=3), 0.1, events=False) == 3
    assert rescan_interval(watch(poll_interval=3), 30.0, events=False) == 30
    assert rescan_interval(watch(poll_interval=10, rescan=2), 0.1, events=False) == 2


def test_a_directory_below_another_is_scanned_with_it() -> None:
    assert topmost({b"a": True, b"a/b": True, b"a/b/c": False, b"ab": True}) == {b"a": True, b"ab": True}
    assert topmost({b"": True, b"a": True}) == {b"": True}


def test_a_directory_whose_parent_is_scanned_at_its_top_only_is_scanned_itself() -> None:
    assert topmost({b"": False, b"a": True, b"a/b": False}) == {b"": False, b"a": True}


async def test_a_mount_that_one_look_saw_is_not_forgotten_by_another_that_began_before() -> None:
    seen, looks = threading.Event(), iter("ab")

    def refresh_mounts() -> bool:
        return next(looks) == "b" or not seen.wait()

    folder: Any = SimpleNamespace(refresh_mounts=refresh_mounts)
    unused: Any = None
    rest: Any = dict.fromkeys(("lane", "ledger", "leftovers", "log", "pauses"))
    scanner = Scanner(unused, folder, unused, unused, **rest)
    first = asyncio.create_task(scanner.check_mounts())
    await asyncio.sleep(0)
    await scanner.check_mounts()
    seen.set()
    await first
    assert scanner.outdated
