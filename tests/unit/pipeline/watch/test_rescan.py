"""When to scan which folders: pure."""

from __future__ import annotations

from pathlib import Path

import pytest

from presignd.config import WatchConfig
from presignd.pipeline.watch import watchfiles as module
from presignd.pipeline.watch.scan import rescan_interval, topmost
from presignd.pipeline.watch.watchfiles import burst_of_queue


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


@pytest.mark.parametrize(
    ("length", "changes"), [("16384", 1000), ("1048576", 1000), ("1600", 100), ("16", 1), ("1", 1), ("?", 1000)]
)
def test_the_shorter_the_kernel_s_queue_the_fewer_changes_may_have_overflown_it(
    monkeypatch: pytest.MonkeyPatch, length: str, changes: int
) -> None:
    monkeypatch.setattr(module, "limit_value", lambda _: length)
    assert burst_of_queue() == changes
