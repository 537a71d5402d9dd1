"""The limits on clients, and which connection is closed for a new one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from presignd.runtime.clients import Connections, Quota


def connected(*names: str) -> Connections:
    connections = Connections()
    for name in names:
        connections.used(name)
    return connections


def test_the_longest_quiet_one_leaves() -> None:
    connections = connected("a", "b", "c")
    connections.used("a")
    assert connections.to_close(["a", "b", "c"]) == "b"


def test_a_stranger_leaves_before_anybody_known() -> None:
    connections = connected("a", "b")
    connections.used("a", known=True)
    connections.used("b")
    assert connections.to_close(["a", "b"]) == "b"
    connections.used("a")
    assert connections.to_close(["a"]) == "a", "and once known it stays so, but no place is for ever"


def test_whoever_is_being_answered_stays() -> None:
    connections = connected("a", "b")
    with connections.answering("a"):
        assert connections.to_close(["a", "b"]) == "b"
        assert connections.to_close(["a"]) is None
    assert connections.to_close(["a"]) == "a"


def test_who_has_gone_is_forgotten_and_who_was_never_heard_of_is_new() -> None:
    connections = connected("a", "b")
    assert connections.to_close(["b", "c"]) == "b"
    assert connections.to_close(["a", "c"]) == "c"


def test_each_has_its_share_and_others_have_theirs() -> None:
    quota = Quota(total=4, reserved=1, each=2)
    assert [quota.take("a", privileged=False) for _ in range(3)] == [True, True, False]
    assert quota.take("b", privileged=False)
    assert not quota.take("c", privileged=False), "the last one is kept"
    assert quota.take("root", privileged=True)
    assert not quota.take("root", privileged=True), "and there are no more than there are"


def test_what_is_given_back_is_there_again() -> None:
    quota = Quota(total=2, reserved=1, each=1)
    assert quota.take("a", privileged=False)
    quota.give_back("a", privileged=False)
    assert quota.take("a", privileged=False)
    assert dict(quota.taken) == {"a": 1}


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans())))
def test_whatever_the_others_take_the_privileged_find_what_is_kept(wishes: list[tuple[int, bool]]) -> None:
    quota, had = Quota(total=8, reserved=3, each=4), list[int]()
    for who, takes in wishes:
        if takes and quota.take(who, privileged=False):
            had.append(who)
        elif not takes and who in had:
            had.remove(who)
            quota.give_back(who, privileged=False)
    assert [quota.take("root", privileged=True) for _ in range(3)] == [True] * 3
