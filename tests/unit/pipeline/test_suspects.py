"""Which suspect goes when, and whether others may go with it."""

from __future__ import annotations

from presignd.ledger import Suspect
from presignd.model import State
from presignd.pipeline.suspects import LONGEST_WAIT, Suspects, Turn
from tests.versions import in_state


def suspect(file_id: str, *, due: bool = True, uploading: bool = False, watch: str = "drop") -> Suspect:
    state = State.UPLOADING if uploading else State.QUEUED
    return Suspect(in_state(state, file_id=file_id, watch=watch), due and not uploading)


def suspects(*file_ids: str) -> Suspects:
    made = Suspects()
    made.add(file_ids)
    return made


def may_send(watch: str) -> bool:
    return watch != "blocked"


OTHERS, NOTHING = Turn(others=True), Turn()


def test_they_go_in_their_order_not_in_that_of_the_answer() -> None:
    one, two = suspect("1"), suspect("2")
    assert suspects("2", "1").turn([one, two], 0, may_send, 0) == Turn(two.version)


def test_nothing_is_claimed_while_one_is_alone() -> None:
    assert suspects("1", "2").turn([suspect("1", uploading=True), suspect("2")], 1, may_send, 0) == NOTHING


def test_those_that_got_on_or_ended_are_forgotten() -> None:
    ours = suspects("1", "2")
    ours.turn([suspect("2")], 0, may_send, 0)
    assert [*ours.file_ids] == ["2"]
    assert ours.turn([], 1, may_send, 0) == OTHERS
    assert not ours


def test_one_that_is_not_due_or_may_not_be_sent_holds_up_neither_others_nor_suspects() -> None:
    ours = suspects("later", "blocked", "now")
    waiting = [suspect("later", due=False), suspect("blocked", watch="blocked")]
    assert ours.turn([*waiting, suspect("now")], 0, may_send, 0) == Turn(suspect("now").version)
    assert ours.turn(waiting, 5, may_send, 0) == OTHERS


def test_one_that_meets_others_waits_for_them_but_not_for_ever() -> None:
    ours, found = suspects("1"), [suspect("1")]
    assert ours.turn(found, 3, may_send, 100) == NOTHING
    assert ours.turn(found, 1, may_send, 100 + LONGEST_WAIT - 1) == NOTHING
    assert ours.turn(found, 1, may_send, 100 + LONGEST_WAIT) == OTHERS
    assert ours.turn([suspect("1", uploading=True)], 2, may_send, 200) == OTHERS, "it went with them"


def test_one_that_is_retried_again_and_again_makes_others_wait_no_longer_in_all() -> None:
    ours, found = suspects("1"), [suspect("1")]
    assert ours.turn(found, 3, may_send, 0) == NOTHING
    assert ours.turn(found, 0, may_send, 10) == Turn(found[0].version)
    assert ours.turn([suspect("1", due=False)], 3, may_send, 20) == OTHERS
    assert ours.turn(found, 3, may_send, LONGEST_WAIT - 1) == NOTHING
    assert ours.turn(found, 3, may_send, LONGEST_WAIT) == OTHERS
    assert ours.turn(found, 0, may_send, LONGEST_WAIT) == Turn(found[0].version), "where none has to wait"


def test_many_that_meet_others_wait_at_the_same_time() -> None:
    ours, found = suspects("1", "2"), [suspect("1"), suspect("2")]
    assert ours.turn(found, 3, may_send, 0) == NOTHING
    assert ours.turn(found, 3, may_send, LONGEST_WAIT) == OTHERS
    more = suspects("1", "2")
    assert more.turn([found[0], suspect("2", due=False)], 3, may_send, 0) == NOTHING
    assert more.turn(found, 3, may_send, LONGEST_WAIT) == NOTHING, "the second has its own time"
