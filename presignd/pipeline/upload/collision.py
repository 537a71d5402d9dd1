"""Decide what to do about an object that may be under a version's key already. No I/O."""

from __future__ import annotations

from enum import Enum
from typing import Literal, NamedTuple

from presignd.model import FileVersion
from presignd.pipeline.upload.bucket import StoredObject
from presignd.store.support import Support

Policy = Literal["update", "rename", "refuse", "overwrite"]


class Action(Enum):
    """What to do with the version."""

    PUT = "put"
    ADOPT = "adopt"
    NEXT_KEY = "next_key"
    REFUSE = "refuse"


class Occupant(Enum):
    """What the object under a version's key is (see ``identify.py``)."""

    SAME = "same"
    """It holds the same bytes."""
    OURS = "ours"
    """The version's path wrote it, with other content."""
    FOREIGN = "foreign"


class Decision(NamedTuple):
    """What to do, on which condition, and the object to adopt or replace.

    ``if_none_match``: no object may be under the key. ``if_match``: the object there must have this ETag.
    """

    action: Action
    found: StoredObject | None = None
    if_none_match: bool = False
    if_match: str = ""


def needs_head(version: FileVersion, previous: FileVersion | None, support: Support, *, same_content: bool) -> bool:
    """Return whether to HEAD the key before the PUT.

    It is needed after an unclear attempt, for content that was stored before (``same_content``), and always if the
    store doesn't check the condition that the PUT would have.
    """
    supported = support.if_match if previous is not None and previous.etag else support.if_none_match
    return not supported or version.attempt > 1 or same_content


def decide_unseen(previous: FileVersion | None, policy: Policy) -> Decision:
    """Decide without a HEAD: a store that checks the PUT's condition returns 412 if another object is there."""
    if policy == "overwrite":
        return Decision(Action.PUT)
    if previous is not None and previous.etag:
        return Decision(Action.PUT, if_match=previous.etag)
    return Decision(Action.PUT, if_none_match=True)


def decide_seen(found: StoredObject | None, occupant: Occupant, policy: Policy) -> Decision:
    """Decide after a HEAD. Our own object is replaced only while it has the ETag that the HEAD saw."""
    if found is None:
        return Decision(Action.PUT, if_none_match=policy != "overwrite")
    if occupant is Occupant.SAME:
        return Decision(Action.ADOPT, found)
    if policy == "overwrite":
        return Decision(Action.PUT)
    if occupant is Occupant.OURS:
        return Decision(Action.PUT, found, if_match=found.etag)
    return Decision(Action.REFUSE if policy == "refuse" else Action.NEXT_KEY)


def supported_conditions(decision: Decision, support: Support) -> Decision:
    """Return the decision with only the conditions that the store checks: it ignores or refuses others."""
    if support.if_none_match and support.if_match:
        return decision
    if_match = decision.if_match if support.if_match else ""
    return decision._replace(if_none_match=decision.if_none_match and support.if_none_match, if_match=if_match)


def store_checks_it(decision: Decision, supported: Decision) -> bool:
    """Return whether the store checks all conditions of the decision; it can't compare an object without an ETag."""
    return supported == decision and not (decision.found and not decision.found.etag)


def is_still_true(decision: Decision, found: StoredObject | None) -> bool:
    """Return whether a later HEAD found the object that the decision assumed, by ETag, else by size and date."""
    if decision.if_none_match:
        return found is None
    if decision.found and not decision.found.etag:
        return found == decision.found
    return not decision.if_match or (found is not None and found.etag == decision.if_match)
