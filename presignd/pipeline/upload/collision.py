"""What to do about an object that may stand at a version's key already. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import Enum
from typing import Literal

from presignd.model import FileVersion
from presignd.pipeline.upload.bucket import StoredObject
from presignd.store.probe import Support

Policy = Literal["update", "rename", "refuse", "overwrite"]


class Act(Enum):
    """The ways on."""

    PUT = "put"
    ADOPT = "adopt"
    NEXT_KEY = "next_key"
    REFUSE = "refuse"


class Whose(Enum):
    """What an object that is there is, seen from the version that goes under its key (see ``whose.py``)."""

    SAME = "same"
    """It holds the same bytes."""
    OURS = "ours"
    """Its path put it there, with other content."""
    ANOTHERS = "another's"


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do, what must be under the key for it (nothing, or this ETag), and the object to adopt or replace."""

    act: Act
    found: StoredObject | None = None
    if_none_match: bool = False
    if_match: str = ""


def is_md5(etag: str) -> bool:
    """Tell whether an ETag has the shape of an MD5 (S3 API, "Object": not so under SSE-KMS, SSE-C, multipart)."""
    return re.fullmatch(r"[0-9a-fA-F]{32}", etag) is not None


def must_look(version: FileVersion, previous: FileVersion | None, checksum: str, honours: Support) -> bool:
    """Tell whether to HEAD before the PUT.

    After an unclear attempt, for content that was there already, and always where the store doesn't
    honour the condition that the PUT would carry.
    """
    honoured = honours.if_match if previous is not None and previous.etag else honours.if_none_match
    return not honoured or version.attempt > 1 or (previous is not None and previous.checksum == checksum)


def plan_unseen(previous: FileVersion | None, policy: Policy) -> Plan:
    """Plan a PUT whose condition looks for us: a store that honours conditions answers 412 on a surprise."""
    if policy == "overwrite":
        return Plan(Act.PUT)
    if previous is not None and previous.etag:
        return Plan(Act.PUT, if_match=previous.etag)
    return Plan(Act.PUT, if_none_match=True)


def plan_seen(found: StoredObject | None, whose: Whose, policy: Policy) -> Plan:
    """Plan after a HEAD. Our own object is replaced while the store calls it what it does now."""
    if found is None:
        return Plan(Act.PUT, if_none_match=policy != "overwrite")
    if whose is Whose.SAME:
        return Plan(Act.ADOPT, found)
    if policy == "overwrite":
        return Plan(Act.PUT)
    if whose is Whose.OURS:
        return Plan(Act.PUT, found, if_match=found.etag)
    return Plan(Act.REFUSE if policy == "refuse" else Act.NEXT_KEY)


def as_honoured(plan: Plan, honours: Support) -> Plan:
    """Return the plan with the conditions that the store holds to: others mean nothing there, or are refused."""
    if_match = plan.if_match if honours.if_match else ""
    return replace(plan, if_none_match=plan.if_none_match and honours.if_none_match, if_match=if_match)


def is_sure(plan: Plan, sure: Plan) -> bool:
    """Tell whether the store itself sees to all that the plan needs; what it names by no ETag it can't compare."""
    return sure == plan and not (plan.found and not plan.found.etag)


def still_holds(plan: Plan, found: StoredObject | None) -> bool:
    """Tell whether what a HEAD finds is what the plan was made for; without an ETag its size and date tell."""
    if plan.if_none_match:
        return found is None
    if plan.found and not plan.found.etag:
        return found == plan.found
    return not plan.if_match or (found is not None and found.etag == plan.if_match)
