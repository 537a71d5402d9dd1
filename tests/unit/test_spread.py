"""Tests that run in several processes don't disturb each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.spread import TOGETHER

CHECKOUT = Path(__file__).parents[2]


def test_what_is_said_to_share_a_process_is_there() -> None:
    assert [file for file in TOGETHER if not (CHECKOUT / file).is_file()] == []


@pytest.mark.parametrize(("use", "count"), [("with short_queue(", 2), (".booted(", 3), ("begun(request", 2)])
def test_all_that_use_a_thing_of_the_machine_share_a_process(use: str, count: int) -> None:
    """The length of inotify's queue, systemd-nspawn's control groups, and the time of two cores."""
    files = [file for file in CHECKOUT.glob("tests/**/test_*.py") if use in file.read_text("utf-8")]
    users = {file.relative_to(CHECKOUT).as_posix() for file in files} - {"tests/unit/test_spread.py"}
    assert len(users) == count
    assert len({TOGETHER.get(user, user) for user in users}) == 1
