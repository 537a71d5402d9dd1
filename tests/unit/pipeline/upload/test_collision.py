"""Collisions: no other object is overwritten by surprise, and our own bytes are recognised."""

from __future__ import annotations

from dataclasses import replace

import pytest

from presignd.model import FileVersion, State
from presignd.pipeline.upload.bucket import StoredObject
from presignd.pipeline.upload.collision import (
    Action,
    Decision,
    Occupant,
    Policy,
    decide_seen,
    decide_unseen,
    is_still_true,
    needs_head,
    supported_conditions,
)
from presignd.store.support import Support
from tests.versions import in_state

MD5 = "0123456789abcdef0123456789abcdef"
OTHER = "f" * 32
VERSION = in_state(State.UPLOADING, bucket="b", attempt=1)
ALL = Support(if_none_match=True, if_match=True)
NONE = Support(if_none_match=False, if_match=False)
OURS_BEFORE = VERSION._replace(file_id="0", state=State.FINISHED, etag=OTHER, checksum=f"md5:{OTHER}")


FOUND = StoredObject(9, OTHER)


@pytest.mark.parametrize("policy", ["update", "rename", "refuse", "overwrite"])
def test_the_same_bytes_are_adopted_under_every_policy(policy: Policy) -> None:
    assert decide_seen(FOUND, Occupant.SAME, policy) == Decision(Action.ADOPT, FOUND)


@pytest.mark.parametrize(
    ("policy", "act"),
    [("update", Action.NEXT_KEY), ("rename", Action.NEXT_KEY), ("refuse", Action.REFUSE), ("overwrite", Action.PUT)],
)
def test_another_s_object_is_answered_by_the_policy(policy: Policy, act: Action) -> None:
    assert decide_seen(FOUND, Occupant.FOREIGN, policy).action is act


def test_our_own_object_is_replaced_only_while_it_is_still_ours() -> None:
    assert decide_seen(FOUND, Occupant.OURS, "update") == Decision(Action.PUT, FOUND, if_match=OTHER)


def test_a_free_key_must_still_be_free() -> None:
    assert decide_seen(None, Occupant.FOREIGN, "update") == Decision(Action.PUT, if_none_match=True)
    assert decide_seen(None, Occupant.FOREIGN, "overwrite") == Decision(Action.PUT)


@pytest.mark.parametrize(
    "plan", [Decision(Action.PUT, if_none_match=True), Decision(Action.PUT, if_match=OTHER), Decision(Action.PUT)]
)
def test_conditions_are_sent_only_where_each_is_honoured(plan: Decision) -> None:
    assert supported_conditions(plan, ALL) == plan
    assert supported_conditions(plan, NONE) == Decision(Action.PUT)
    assert supported_conditions(plan, replace(NONE, if_match=True)) == plan._replace(if_none_match=False)


def test_a_plan_holds_while_the_key_is_as_it_was_seen() -> None:
    free, ours = Decision(Action.PUT, if_none_match=True), Decision(Action.PUT, if_match=OTHER)
    assert is_still_true(free, None)
    assert not is_still_true(free, StoredObject(5, OTHER))
    assert is_still_true(ours, StoredObject(9, OTHER))
    assert not is_still_true(ours, StoredObject(9, MD5))
    assert not is_still_true(ours, None)
    assert is_still_true(Decision(Action.PUT), StoredObject(5, OTHER))


def test_without_a_look_the_condition_looks_for_us() -> None:
    assert decide_unseen(None, "update") == Decision(Action.PUT, if_none_match=True)
    assert decide_unseen(OURS_BEFORE, "update") == Decision(Action.PUT, if_match=OTHER)
    assert decide_unseen(OURS_BEFORE, "overwrite") == Decision(Action.PUT)


def test_a_first_attempt_where_conditions_hold_needs_no_look() -> None:
    assert not needs_head(VERSION, None, ALL, same_content=False)


@pytest.mark.parametrize(
    ("version", "previous", "same", "honours"),
    [
        (VERSION._replace(attempt=2), None, False, ALL),
        (VERSION, OURS_BEFORE, True, ALL),
        (VERSION, None, False, NONE),
        (VERSION, None, False, Support(if_none_match=False, if_match=True)),
        (VERSION, OURS_BEFORE, False, Support(if_none_match=True, if_match=False)),
    ],
    ids=[
        "after an unclear attempt",
        "content that was there already",
        "conditions not honoured",
        "If-None-Match not honoured",
        "If-Match not honoured",
    ],
)
def test_looks_first(version: FileVersion, previous: FileVersion | None, same: bool, honours: Support) -> None:
    assert needs_head(version, previous, honours, same_content=same)
