"""Collisions: nothing of another's is overwritten by surprise, and our own bytes are known again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from presignd.model import FileVersion, State
from presignd.pipeline.bucket import Found
from presignd.pipeline.collision import Act, Plan, Policy, must_look, plan_seen, plan_unseen, same_bytes
from tests.versions import in_state

MD5 = "0123456789abcdef0123456789abcdef"
OTHER = "f" * 32
VERSION = in_state(State.UPLOADING, bucket="b", attempt=1)
OURS_BEFORE = replace(VERSION, file_id="0", state=State.FINISHED, etag=OTHER, checksum=f"md5:{OTHER}")


def seen(found: Found | None, policy: Policy, previous: FileVersion | None = None, *, conditional: bool = True) -> Plan:
    same = found is not None and same_bytes(found, VERSION.size, MD5)
    ours = {previous.etag} if previous else ()
    return plan_seen(found, ours, policy, same=same, conditional=conditional)


@pytest.mark.parametrize("policy", ["update", "rename", "refuse", "overwrite"])
def test_the_same_bytes_are_adopted_under_every_policy(policy: Policy) -> None:
    assert seen(Found(5, MD5), policy).act is Act.ADOPT


@pytest.mark.parametrize(
    ("policy", "act"),
    [("update", Act.NEXT_KEY), ("rename", Act.NEXT_KEY), ("refuse", Act.REFUSE), ("overwrite", Act.PUT)],
)
def test_another_s_object_is_answered_by_the_policy(policy: Policy, act: Act) -> None:
    assert seen(Found(5, OTHER), policy).act is act
    assert seen(Found(6, MD5), policy).act is act


def test_our_own_object_is_replaced_only_while_it_is_still_ours() -> None:
    assert seen(Found(9, OTHER), "update", OURS_BEFORE) == Plan(Act.PUT, if_match=OTHER)
    assert seen(Found(9, "e" * 32), "update", OURS_BEFORE).act is Act.NEXT_KEY


def test_conditions_are_sent_only_where_they_are_honoured() -> None:
    assert seen(None, "update") == Plan(Act.PUT, if_none_match=True)
    assert seen(None, "update", conditional=False) == Plan(Act.PUT)
    assert seen(Found(9, OTHER), "update", OURS_BEFORE, conditional=False) == Plan(Act.PUT)


def test_without_a_look_the_condition_looks_for_us() -> None:
    assert plan_unseen(None, "update") == Plan(Act.PUT, if_none_match=True)
    assert plan_unseen(OURS_BEFORE, "update") == Plan(Act.PUT, if_match=OTHER)
    assert plan_unseen(OURS_BEFORE, "overwrite") == Plan(Act.PUT)


def test_a_first_attempt_where_conditions_hold_needs_no_look() -> None:
    assert not must_look(VERSION, None, f"md5:{MD5}", conditional=True)


@pytest.mark.parametrize(
    ("version", "previous", "conditional"),
    [
        (replace(VERSION, attempt=2), None, True),
        (VERSION, replace(OURS_BEFORE, checksum=f"md5:{MD5}"), True),
        (VERSION, None, False),
    ],
    ids=["after an unclear attempt", "content that was there already", "conditions not honoured"],
)
def test_looks_first(version: FileVersion, previous: FileVersion | None, *, conditional: bool) -> None:
    assert must_look(version, previous, f"md5:{MD5}", conditional=conditional)


def test_an_etag_of_parts_is_no_proof_of_the_same_bytes() -> None:
    assert not same_bytes(Found(5, f"{MD5}-2"), 5, MD5)
    assert same_bytes(Found(5, MD5.upper()), 5, MD5)
