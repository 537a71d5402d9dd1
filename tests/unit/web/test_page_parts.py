"""The page's pure parts: escaping, numbers in words, and that each file's bytes count once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from presignd.pages import layout
from presignd.pages.html import Html, ago, count, join, shown, tag, until
from presignd.web.page.chart import chart, in_words
from presignd.web.snapshots import Minute, Throughput

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
HOUR = NOW.timestamp()


@given(st.text(), st.text())
def test_no_text_can_leave_its_place(text: str, value: str) -> None:
    markup = tag("p", text, title=value)
    inside = markup.removeprefix("<p title=").removesuffix("</p>")
    assert inside.count("<") == 0
    assert inside.count(">") == 1
    assert inside.count('"') == 2


def test_markup_is_kept_and_what_is_nothing_is_left_out() -> None:
    assert join(Html("<b>x</b>"), None, "", "<") == "<b>x</b>&lt;"
    assert tag("input", hidden=True, disabled=False, name=None, data_x="1", class_="a") == (
        '<input hidden data-x="1" class="a">'
    )


@given(st.binary())
def test_any_file_name_is_shown_and_shows_what_it_is(name: bytes) -> None:
    text = shown(name.decode("utf-8", "surrogateescape"))
    assert text.encode("utf-8", "strict").decode("utf-8") == text
    assert all(c.isprintable() or c == "\N{ZERO WIDTH JOINER}" for c in text)


def test_a_time_that_is_past_is_zero_left() -> None:
    past = (NOW - timedelta(seconds=5)).isoformat()
    assert ">0 s<" in (until(past, NOW) or "")
    assert ">5 s<" in (ago(past, NOW) or "")
    assert ago(None, NOW) is until("", NOW) is None


def test_one_and_many() -> None:
    assert (count(1, "file"), count(0, "file"), count(1234, "file")) == ("1 file", "0 files", "1,234 files")


def test_a_running_time_is_no_change_and_another_word_is() -> None:
    def version(words: str, seconds: int) -> str:
        time = ago((NOW - timedelta(hours=1)).isoformat(), NOW + timedelta(seconds=seconds))
        return layout.versions({"a": tag("p", words, time)})["a"]

    assert version("x", 0) == version("x", 60)
    assert version("x", 0) != version("y", 0)


@pytest.mark.parametrize("name", layout.ASSETS)
def test_what_the_page_loads_is_in_the_package(name: str) -> None:
    assert layout.asset(name)


# --- throughput -------------------------------------------------------------------------------------
def totals(throughput: Throughput, now: float) -> tuple[int, int]:
    minutes = throughput.minutes(now)
    return sum(minute.sent for minute in minutes), sum(minute.files for minute in minutes)


@given(st.lists(st.integers(0, 100), max_size=8), st.integers(0, 100))
def test_a_file_s_bytes_count_once_however_often_it_was_looked_at(seen: list[int], rest: int) -> None:
    throughput, whole = Throughput(), max(seen, default=0) + rest
    for step, sent in enumerate(sorted(seen)):
        throughput.moving({"a": sent}, HOUR + step)
    throughput.linked("a", whole, HOUR + 30)
    throughput.moving({"a": whole}, HOUR + 31)  # still there while it is being finished
    throughput.moving({}, HOUR + 32)
    assert totals(throughput, HOUR + 33) == (whole, 1)


def test_bytes_stand_in_the_minutes_in_which_they_moved() -> None:
    throughput = Throughput()
    throughput.moving({"a": 10}, HOUR)
    throughput.moving({"a": 30}, HOUR + 60)
    throughput.linked("a", 100, HOUR + 120)
    assert [minute.sent for minute in throughput.minutes(HOUR + 120)][-3:] == [10, 20, 70]


def test_what_is_older_than_an_hour_is_forgotten() -> None:
    throughput = Throughput()
    throughput.linked("a", 5, HOUR)
    assert totals(throughput, HOUR + 59 * 60) == (5, 1)
    assert totals(throughput, HOUR + 61 * 60) == (0, 0)
    throughput.moving({}, HOUR + 61 * 60)
    assert throughput._sent == throughput._files == {}


# --- the chart --------------------------------------------------------------------------------------
def test_the_chart_says_in_words_what_it_shows() -> None:
    minutes = [Minute(int(HOUR), 5, 1), Minute(int(HOUR) + 60, 3_000_000, 2)]
    words = "3 files with 3.0 MB in the last hour, 3.0 MB in the busiest minute, 03:05 UTC."
    assert in_words(minutes) == words
    picture = ET.fromstring(chart(minutes))
    assert picture.get("aria-label") == words
    heights = [float(bar.get("height", "")) for bar in picture.iter("rect")]
    assert heights == [1.5, 78.0]
    assert [title.text for title in picture.iter("title")] == [
        "03:04 UTC: 5 bytes, 1 file",
        "03:05 UTC: 3.0 MB, 2 files",
    ]


def test_empty_files_are_files_too() -> None:
    assert in_words([Minute(0, 0, 4)]) == "4 files with 0 bytes in the last hour."
    assert in_words([Minute(0, 0, 0)]) == "Nothing was uploaded in the last hour."
