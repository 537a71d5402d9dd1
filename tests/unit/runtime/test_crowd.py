"""Which connection makes room for a new one."""

from __future__ import annotations

from presignd.runtime.crowd import Crowd


def crowd_of(*names: str) -> Crowd:
    crowd = Crowd()
    for name in names:
        crowd.came(name)
    return crowd


def test_the_longest_quiet_one_leaves() -> None:
    crowd = crowd_of("a", "b", "c")
    crowd.came("a")
    assert crowd.to_leave(["a", "b", "c"]) == "b"


def test_a_stranger_leaves_before_anybody_known() -> None:
    crowd = crowd_of("a", "b")
    crowd.came("a", known=True)
    crowd.came("b")
    assert crowd.to_leave(["a", "b"]) == "b"
    crowd.came("a")
    assert crowd.to_leave(["a"]) == "a", "and once known it stays so, but no place is for ever"


def test_whoever_is_being_answered_stays() -> None:
    crowd = crowd_of("a", "b")
    with crowd.kept("a"):
        assert crowd.to_leave(["a", "b"]) == "b"
        assert crowd.to_leave(["a"]) is None
    assert crowd.to_leave(["a"]) == "a"


def test_who_has_gone_is_forgotten_and_who_was_never_heard_of_is_new() -> None:
    crowd = crowd_of("a", "b")
    assert crowd.to_leave(["b", "c"]) == "b"
    assert crowd.to_leave(["a", "c"]) == "c"
