"""Who may have how many connections."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from presignd.runtime.seats import Seats


def test_each_has_its_share_and_others_have_theirs() -> None:
    seats = Seats(total=4, kept=1, each=2)
    assert [seats.take("a", privileged=False) for _ in range(3)] == [True, True, False]
    assert seats.take("b", privileged=False)
    assert not seats.take("c", privileged=False), "the last one is kept"
    assert seats.take("root", privileged=True)
    assert not seats.take("root", privileged=True), "and there are no more than there are"


def test_what_is_given_back_is_there_again() -> None:
    seats = Seats(total=2, kept=1, each=1)
    assert seats.take("a", privileged=False)
    seats.give("a", privileged=False)
    assert seats.take("a", privileged=False)
    assert dict(seats.taken) == {"a": 1}


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans())))
def test_whatever_the_others_take_the_privileged_find_what_is_kept(wishes: list[tuple[int, bool]]) -> None:
    seats, had = Seats(total=8, kept=3, each=4), list[int]()
    for who, takes in wishes:
        if takes and seats.take(who, privileged=False):
            had.append(who)
        elif not takes and who in had:
            had.remove(who)
            seats.give(who, privileged=False)
    assert [seats.take("root", privileged=True) for _ in range(3)] == [True] * 3
