"""One table holds the life of a version; these are the promises that the pipeline relies on."""

from __future__ import annotations

import random
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from presignd.model import FileVersion, Fingerprint, State
from presignd.states import (
    ENDED,
    IN_FLIGHT,
    TRANSITIONS,
    BadTransition,
    Event,
    after,
    backoff,
    done_status,
    retry_event,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def version(state: State, **fields: object) -> FileVersion:
    fixed = FileVersion("id", "drop", b"a", Fingerprint(1, 2, 3, 4), state, "b", "a", "a", "text/plain", 0, NOW)
    return FileVersion(**({name: getattr(fixed, name) for name in FileVersion._fields} | fields))


def reachable(start: State) -> set[State]:
    found, todo = {start}, [start]
    while todo:
        fresh = set(TRANSITIONS[todo.pop()].values()) - found
        found |= fresh
        todo += fresh
    return found


def test_every_state_has_a_row_and_every_event_a_use() -> None:
    assert set(TRANSITIONS) == set(State)
    assert {event for row in TRANSITIONS.values() for event in row} == set(Event)


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", Event)
def test_a_move_is_in_the_table_or_a_bug(state: State, event: Event) -> None:
    if event in TRANSITIONS[state]:
        assert after(state, event) is TRANSITIONS[state][event]
    else:
        with pytest.raises(BadTransition, match=f"{event} in state {state}"):
            after(state, event)


@pytest.mark.parametrize("state", sorted(ENDED | {State.IGNORED}))
def test_an_ended_version_moves_no_more(state: State) -> None:
    assert TRANSITIONS[state] == {}


@pytest.mark.parametrize("state", sorted(set(State) - ENDED - {State.IGNORED}))
def test_no_version_is_stuck(state: State) -> None:
    """Wherever one stands, it can still be finished: nothing but an end is a dead end."""
    assert State.FINISHED in reachable(state)


@pytest.mark.parametrize("state", sorted(IN_FLIGHT))
def test_newer_content_can_wait_for_what_is_in_flight(state: State) -> None:
    """Each state in flight can leave it, for the newer version to take its place."""
    assert reachable(state) - IN_FLIGHT


@pytest.mark.parametrize("state", [State.LINKED, State.FINISHED])
def test_what_was_linked_is_never_called_vanished_or_superseded_straight_away(state: State) -> None:
    """One that is verified may, if it is a member of a folder that is not complete yet: it has no link of its own."""
    assert not {State.VANISHED, State.SUPERSEDED} & set(TRANSITIONS[state].values())


def test_only_a_claim_leads_to_uploading_and_only_a_verified_upload_to_a_link() -> None:
    into = {(state, event) for state, row in TRANSITIONS.items() for event in row if row[event] is State.UPLOADING}
    assert into == {(State.QUEUED, Event.CLAIM)}
    into = {(state, event) for state, row in TRANSITIONS.items() for event in row if row[event] is State.VERIFIED}
    assert into == {(State.UPLOADING, Event.VERIFY)}


def test_a_version_with_a_link_is_retried_after_it_and_one_without_from_the_queue() -> None:
    assert retry_event(version(State.QUARANTINED)) is Event.REQUEUE
    assert retry_event(version(State.QUARANTINED, signed_at=NOW)) is Event.REQUEUE
    assert retry_event(version(State.QUARANTINED, linked=True)) is Event.RESUME


@pytest.mark.parametrize(
    ("state", "adopted", "status"),
    [
        (State.FINISHED, False, "linked"),
        (State.FINISHED, True, "adopted"),
        (State.VANISHED, False, "vanished"),
        (State.SUPERSEDED, True, "superseded"),
    ],
)
def test_each_end_has_its_word_in_file_done(state: State, *, adopted: bool, status: str) -> None:
    assert done_status(version(state, adopted=adopted)) == status


@given(attempt=st.integers(1, 10**9), seed=st.integers(), base=st.floats(0.1, 10), cap=st.floats(10, 1000))
def test_backoff_is_within_its_exponential_bound_and_the_cap(attempt: int, seed: int, base: float, cap: float) -> None:
    wait = backoff(attempt, base=base, cap=cap, rng=random.Random(seed))
    assert 0 <= wait <= min(cap, base * 2.0 ** min(attempt - 1, 64))


def test_backoff_spreads_over_the_whole_span() -> None:
    """Full jitter: many clients that failed together must not come back together."""
    rng = random.Random(1)
    waits = [backoff(6, base=1.0, cap=300.0, rng=rng) for _ in range(1000)]
    assert min(waits) < 1.0
    assert max(waits) > 31.0
    assert 14.0 < sum(waits) / len(waits) < 18.0
