"""Durations and sizes are read as people mean them, and read back as written."""

from __future__ import annotations

import contextlib
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from presignd.units import (
    format_duration,
    format_size,
    parse_duration,
    parse_size,
    parse_whole_seconds,
    rfc3339,
    short_duration,
    short_size,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500ms", 0.5),
        ("90s", 90),
        ("15m", 900),
        ("1h", 3600),
        ("7d", 604800),
        ("1.5h", 5400),
        ("1h30m", 5400),
        (" 1h ", 3600),
        ("90", 90),
        (90, 90),
        (0.25, 0.25),
        ("0s", 0),
    ],
)
def test_a_duration_is_read_in_seconds(text: object, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "s", "-1s", "1y", "1 h", "1H", "1e3s", "1hour", "\u0661s", ".5s", "nan", -1, True, None, float("nan"), [1]],
)
def test_what_is_no_duration_is_refused_with_examples(text: object) -> None:
    with pytest.raises(ValueError, match='such as "90s"'):
        parse_duration(text)


def test_a_duration_beyond_a_hundred_years_is_refused_before_it_can_overflow_a_date() -> None:
    with pytest.raises(ValueError, match="hundred years"):
        parse_duration("99999999999d")


def test_half_a_second_is_no_whole_second() -> None:
    assert parse_whole_seconds("1500ms" + "500ms") == 2
    with pytest.raises(ValueError, match="whole seconds"):
        parse_whole_seconds("1500ms")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64MiB", 64 << 20),
        ("5GB", 5_000_000_000),
        ("1KB", 1000),
        ("1KiB", 1024),
        ("2TB", 2 * 10**12),
        ("1.5GiB", 3 << 29),
        ("64mib", 64 << 20),
        ("5 MiB", 5 << 20),
        ("100B", 100),
        ("100", 100),
        (100, 100),
        (0, 0),
    ],
)
def test_a_size_is_read_in_bytes(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "64M", "64K", "1MiBs", "-1B", "1e3B", True, None, -5, "9" * 30])
def test_what_is_no_size_is_refused_with_examples(text: object) -> None:
    """64M is among them: some tools read it as 1000 and some as 1024 a step."""
    with pytest.raises(ValueError, match='such as "64MiB"'):
        parse_size(text)


@pytest.mark.parametrize("text", ["0.3B", "0.0001KiB", 1.5])
def test_a_size_comes_to_whole_bytes(text: object) -> None:
    with pytest.raises(ValueError, match="whole bytes"):
        parse_size(text)


@pytest.mark.parametrize(
    ("seconds", "text"), [(3600, "1h"), (900, "15m"), (90, "90s"), (604800, "7d"), (0.5, "500ms"), (0, "0s")]
)
def test_a_duration_is_written_in_its_largest_exact_unit(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"), [(64 << 20, "64MiB"), (5_000_000_000, "5GB"), (1025, "1025B"), (0, "0B"), (1_024_000, "1000KiB")]
)
def test_a_size_is_written_in_its_largest_exact_unit(size: int, text: str) -> None:
    assert format_size(size) == text


@given(st.integers(0, 10**12).map(lambda ms: ms / 1000) | st.floats(0, 1e9))
def test_every_duration_written_is_read_back_the_same(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == seconds


@given(st.integers(0, (1 << 63) - 1))
def test_every_size_written_is_read_back_the_same(size: int) -> None:
    assert parse_size(format_size(size)) == size


@given(st.text(max_size=12))
def test_any_text_is_a_duration_and_a_size_or_a_value_error(text: str) -> None:
    for parse in (parse_duration, parse_size):
        with contextlib.suppress(ValueError):
            assert parse(text) >= 0


def test_times_are_written_in_utc_with_all_their_microseconds() -> None:
    east = timezone(timedelta(hours=2))
    assert rfc3339(datetime(2026, 3, 4, 5, 6, 7, tzinfo=east)) == "2026-03-04T03:06:07.000000Z"


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (123_456, "123 kB"),
        (4.3e9, "4.3 GB"),
        (5e15, "5000 TB"),
    ],
)
def test_sizes_in_words(number: float, words: str) -> None:
    assert short_size(number) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (90, "90 s"),
        (119, "119 s"),
        (120, "2 min"),
        (150, "2 min"),
        (7199, "119 min"),
        (7200, "2 h"),
        (200_000, "2 d"),
        (400_000, "4 d"),
    ],
)
def test_times_in_words(seconds: float, words: str) -> None:
    assert short_duration(seconds) == words
