"""Loggers pass on what is logged: its level, its fields, and how many lines there was room for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from presignd.telemetry import logger
from presignd.telemetry.logger import LEVELS, Destination, Event, Logger


@pytest.fixture
def written() -> Iterator[list[tuple[str, Event]]]:
    found = list[tuple[str, Event]]()

    def write(level: str, event: Event) -> int:
        found.append((level, event))
        return 7

    before = logger.destination()
    logger.send_to(Destination(LEVELS["warning"], write))
    yield found
    logger.send_to(before)


def test_what_is_below_the_level_is_not_written_and_returns_none(written: list[tuple[str, Event]]) -> None:
    log = Logger()
    assert (log.debug("a"), log.info("b"), log.warning("c"), log.error("d"), log.critical("e")) == (None, None, 7, 7, 7)
    assert [(level, event["event"]) for level, event in written] == [
        ("warning", "c"),
        ("error", "d"),
        ("critical", "e"),
    ]


def test_fields_of_a_call_win_over_bound_ones_and_may_have_any_name(written: list[tuple[str, Event]]) -> None:
    log = Logger().bind(watch="drop", path="a")
    log.bind(path="b", level=3).warning("x", self=1, each=[])
    log.warning("y", path="c")
    assert [event for _, event in written] == [
        {"watch": "drop", "path": "b", "level": 3, "self": 1, "each": [], "event": "x"},
        {"watch": "drop", "path": "c", "event": "y"},
    ]


def test_an_exception_is_the_one_being_handled_unless_another_is_given(written: list[tuple[str, Event]]) -> None:
    other = ValueError()
    Logger().exception("x")
    Logger().exception("y", exc_info=other)
    assert [(level, event["exc_info"]) for level, event in written] == [("error", True), ("error", other)]


def test_a_logger_made_before_follows_to_the_new_destination(written: list[tuple[str, Event]]) -> None:
    log = Logger().bind(watch="drop")
    logger.send_to(Destination(0, lambda _level, event: len(event)))
    assert log.debug("x") == 2
    assert not written
