"""What a broker remembers of its tokens: the last call, an hour of counts, and no more than that."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from presignd.broker.fleet.activity import LONGEST_AGENT, LONGEST_DATE, MINUTES, Activity, Call, Hour

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def call(**given: str) -> Call:
    return Call(NOW, **{"client": "192.0.2.7", "user_agent": "", "date": "", **given})


# --- counts -----------------------------------------------------------------------------------------
def test_grants_and_refusals_are_counted_for_an_hour() -> None:
    hour = Hour()
    hour.add(NOW, 5, 1)
    hour.add(NOW + timedelta(seconds=1), 2, 0)
    hour.add(NOW + timedelta(minutes=59), 1, 0)
    assert hour.total(NOW + timedelta(minutes=59)) == (8, 1)
    assert hour.total(NOW + timedelta(minutes=60)) == (1, 0)
    assert hour.total(NOW + timedelta(minutes=119)) == (0, 0)


def test_each_minute_of_the_hour_is_there_and_the_last_is_this_one() -> None:
    hour = Hour()
    hour.add(NOW - timedelta(minutes=3), 4, 2)
    minutes = hour.minutes(NOW)
    assert len(minutes) == MINUTES
    assert minutes[-1].began == NOW.replace(second=0).timestamp()
    assert [minute[1:] for minute in minutes[-5:]] == [(0, 0), (4, 2), (0, 0), (0, 0), (0, 0)]
    assert {later.began - earlier.began for earlier, later in pairwise(minutes)} == {60}


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 9), st.integers(0, 9)), max_size=300))
def test_the_counts_are_those_of_the_last_hour_in_bounded_memory(added: list[tuple[int, int, int]]) -> None:
    hour = Hour()
    for minute, granted, refused in sorted(added):
        hour.add(NOW + timedelta(minutes=minute), granted, refused)
    last = max((minute for minute, _, _ in added), default=0)
    recent = [each for each in added if each[0] > last - MINUTES]
    expected = sum(granted for _, granted, _ in recent), sum(refused for _, _, refused in recent)
    assert hour.total(NOW + timedelta(minutes=last)) == expected
    assert (len(hour._granted), len(hour._refused)) == (MINUTES, MINUTES)


def test_a_clock_that_is_set_back_makes_nothing_appear_from_the_future() -> None:
    hour = Hour()
    hour.add(NOW, 5, 0)
    assert hour.total(NOW - timedelta(minutes=10)) == (0, 0)
    hour.add(NOW - timedelta(minutes=10), 1, 0)
    assert hour.total(NOW - timedelta(minutes=10)) == (1, 0)
    hour.add(NOW, 1, 0)
    assert hour.total(NOW) == (7, 0), "and nothing is lost"
    assert sum(minute.granted for minute in hour.minutes(NOW)) == 7


def test_a_clock_that_is_set_back_by_hours_makes_it_count_anew() -> None:
    hour = Hour()
    hour.add(NOW, 5, 0)
    earlier = NOW - timedelta(hours=9)
    hour.add(earlier, 1, 2)
    assert hour.total(earlier) == (1, 2)
    assert hour.total(earlier + timedelta(minutes=30)) == (1, 2)
    assert hour.total(NOW) == (0, 0)


# --- tokens -----------------------------------------------------------------------------------------
def test_the_latest_refusal_is_kept_with_its_code() -> None:
    activity = Activity(NOW)
    activity.answered("one", NOW, granted=1, refused=["too_large", "outside_prefix"])
    activity.answered("one", NOW + timedelta(minutes=1), granted=1, refused=[])
    assert activity.of("one").refused == ("outside_prefix", NOW)
    assert activity.of("one").hour.total(NOW + timedelta(minutes=1)) == (2, 2)
    assert activity.hour.total(NOW + timedelta(minutes=1)) == (2, 2)


def test_of_a_token_that_never_called_nothing_is_known_and_asking_remembers_nothing() -> None:
    activity = Activity(NOW)
    assert (activity.of("one").call, activity.of("one").hour.total(NOW)) == (None, (0, 0))
    assert activity._tokens == {}


def test_beyond_the_limit_the_token_that_called_longest_ago_is_forgotten() -> None:
    activity = Activity(NOW, most=2)
    for name in ("one", "two", "one", "three"):
        activity.called(name, call(client=name))
    assert activity.of("two").call is None
    assert [activity.of(name).call for name in ("one", "three")] == [call(client="one"), call(client="three")]


def test_a_client_cannot_fill_the_memory_with_its_headers() -> None:
    activity = Activity(NOW)
    activity.called("one", call(user_agent="x" * 8000, date="y" * 8000))
    kept = activity.of("one").call
    assert kept is not None
    assert (len(kept.user_agent), len(kept.date)) == (LONGEST_AGENT, LONGEST_DATE)


# --- what a call says -------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("user_agent", "version", "program"),
    [
        ("presignd/0.9.1", "0.9.1", "presignd/0.9.1"),
        ("presignd/1.0.dev1+local Python/3.11", "1.0.dev1+local", "presignd/1.0.dev1+local"),
        ("presignd/" + "1" * 33, "", "presignd/" + "1" * 31),
        ("presignd/", "", "presignd/"),
        ("curl/8.5.0", "", "curl/8.5.0"),
        ("Mozilla/5.0 (X11)", "", "Mozilla/5.0"),
        ("\x7f", "", ""),
        ("", "", ""),
    ],
)
def test_the_daemon_s_version_is_in_its_user_agent(user_agent: str, version: str, program: str) -> None:
    seen = call(user_agent=user_agent)
    assert (seen.version, seen.program) == (version, program)


@pytest.mark.parametrize(
    ("date", "difference"),
    [
        ("Fri, 02 Jan 2026 03:04:05 GMT", 0.5),
        ("Fri, 02 Jan 2026 03:09:05 GMT", 300.5),
        ("Fri, 02 Jan 2026 03:04:02 GMT", -2.5),
        ("Fri, 02 Jan 2026 04:04:05 +0100", 0.5),
        ("Fri, 02 Jan 2026 03:04:05 -0000", 0.5),
        ("", None),
        ("yesterday", None),
        ("Fri, 99 Jan 2026 03:04:05 GMT", None),
        ("Fri, 02 Jan 99999 03:04:05 GMT", None),
    ],
)
def test_the_clock_difference_is_by_the_date_of_the_call(date: str, difference: float | None) -> None:
    assert call(date=date).clock_difference == difference


@given(st.text(max_size=LONGEST_DATE), st.text(max_size=LONGEST_AGENT))
def test_no_header_is_an_error(date: str, user_agent: str) -> None:
    seen = call(date=date, user_agent=user_agent)
    assert seen.clock_difference is None or isinstance(seen.clock_difference, float)
    assert seen.program.isascii()
