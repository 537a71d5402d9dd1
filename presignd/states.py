"""The life of a version: one table of states and transitions, pure, no I/O.

A version is ``queued`` once settled; a worker claims it (``uploading``, committed before the request is
sent); a verified upload makes it ``verified`` together with its receipt and the link's signing date; the
link's line in ``links.jsonl`` makes it ``linked``; when its file is kept, moved or deleted, as ``after`` says, it is
``finished``. Every effect stands between two commits: a crash leaves the earlier state, and the step is done again,
which is harmless because each step first checks whether it was done. A move that is not in the table is a bug and
raises.

A file of a folder that is linked as a whole stays ``verified`` until that folder is linked; if it changes or leaves
before the folder is complete, it ends as superseded or vanished.
"""

from __future__ import annotations

import random
from enum import StrEnum

from presignd.model import FileVersion, Fingerprint, State


class Event(StrEnum):
    """What can happen to a version."""

    CLAIM = "claim"
    RETRY = "retry"
    RELEASE = "release"
    VERIFY = "verify"
    LINK = "link"
    FINISH = "finish"
    QUARANTINE = "quarantine"
    REQUEUE = "requeue"
    RESUME = "resume"
    VANISH = "vanish"
    SUPERSEDE = "supersede"


TRANSITIONS: dict[State, dict[Event, State]] = {
    State.QUEUED: {
        Event.CLAIM: State.UPLOADING,
        Event.QUARANTINE: State.QUARANTINED,
        Event.VANISH: State.VANISHED,
        Event.SUPERSEDE: State.SUPERSEDED,
    },
    State.UPLOADING: {
        Event.VERIFY: State.VERIFIED,
        Event.RETRY: State.QUEUED,
        Event.RELEASE: State.QUEUED,
        Event.QUARANTINE: State.QUARANTINED,
        Event.VANISH: State.VANISHED,
        Event.SUPERSEDE: State.SUPERSEDED,
    },
    State.VERIFIED: {
        Event.LINK: State.LINKED,
        Event.QUARANTINE: State.QUARANTINED,
        Event.VANISH: State.VANISHED,
        Event.SUPERSEDE: State.SUPERSEDED,
    },
    State.LINKED: {Event.FINISH: State.FINISHED, Event.QUARANTINE: State.QUARANTINED},
    State.QUARANTINED: {
        Event.REQUEUE: State.QUEUED,
        Event.RESUME: State.LINKED,
        Event.VANISH: State.VANISHED,
        Event.SUPERSEDE: State.SUPERSEDED,
    },
    State.FINISHED: {},
    State.VANISHED: {},
    State.SUPERSEDED: {},
    State.IGNORED: {},
}

IN_FLIGHT = frozenset({State.UPLOADING, State.VERIFIED, State.LINKED})
"""States of a version at work: a newer version of its path waits for it."""

ENDED = frozenset({State.FINISHED, State.VANISHED, State.SUPERSEDED})
"""States of a version that has ended: one ``file.done`` is logged for it."""

WAITING = frozenset({State.QUEUED, State.QUARANTINED})
"""States of a version that waits: it ends as vanished when its file is gone."""

LEFT = frozenset({State.VANISHED, State.SUPERSEDED})
"""States of a version that its path no longer holds."""

UNCLEAN_LIMIT = 3
"""A version in flight at this many unclean exits, each time alone, is quarantined: it may be killing the daemon."""


class BadTransition(RuntimeError):
    """The table has no such move from this state: a bug."""


def after(state: State, event: Event) -> State:
    """Return the state that ``event`` leads to; raise ``BadTransition`` where the table has none."""
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        raise BadTransition(f"{event} in state {state}") from None


def is_recorded(version: FileVersion | None, fingerprint: Fingerprint) -> bool:
    """Return whether a file is recorded as it is by ``version``, the current one of its path.

    False where that version is recorded as gone, or was quarantined as unreadable: the file is there again, or may be
    readable now. ``Ledger.differing`` asks the same of many files in SQL; a property test compares the two.
    """
    if version is None or version.state in LEFT or version.gone_at is not None:
        return False
    return version.fingerprint == fingerprint and not was_unreadable(version)


def was_unreadable(version: FileVersion) -> bool:
    """Return whether the version waits only because its file could not be read."""
    return version.state is State.QUARANTINED and version.error_code == "unreadable"


def retry_event(version: FileVersion) -> Event:
    """Return the event that takes a quarantined version back: to its link where that was made, else to the queue."""
    return Event.RESUME if version.linked else Event.REQUEUE


def done_status(version: FileVersion) -> str:
    """Return the ``status`` of ``file.done``: linked, adopted, vanished or superseded."""
    if version.state is State.FINISHED:
        return "adopted" if version.adopted else "linked"
    return str(version.state)


def backoff(attempt: int, *, base: float = 1.0, cap: float = 300.0, rng: random.Random | None = None) -> float:
    """Return full-jitter exponential backoff in seconds for the ``attempt``-th failure (from 1).

    "Full jitter": uniform between 0 and min(cap, base * 2 ** (attempt - 1)).
    """
    ceiling = min(cap, base * 2.0 ** min(attempt - 1, 32))
    return (rng or random).uniform(0.0, ceiling)
