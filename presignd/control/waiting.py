"""Does a path's current content have its link? Pure: what lies there now, against what the ledger says."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from presignd.model import State

if TYPE_CHECKING:
    from presignd.model import FileVersion, Fingerprint

LINKED_STATES = frozenset({State.LINKED, State.FINISHED})


class Outcome(StrEnum):
    """What ``wait`` learned of one path; all but ``PENDING`` are answers."""

    LINKED = "linked"
    PENDING = "pending"
    QUARANTINED = "quarantined"
    MISSING = "missing"
    IGNORED = "ignored"
    UNREADABLE = "unreadable"
    OUTSIDE = "outside"


def outcome(version: FileVersion | None, now: Fingerprint | None, *, leaves: bool, ignored: bool = False) -> Outcome:
    """Judge one path by its current version and the fingerprint that lies there (None: nothing does).

    ``leaves`` says that the watch moves or deletes what it has linked, so a file that is gone may be done;
    ``ignored`` that a rule of it ignores the path, so nothing will come of what isn't known yet.
    ``now`` must have been read before ``version``: a file that ``after`` took away is then known as linked.
    """
    if now is None:
        return Outcome.LINKED if leaves and version and version.state in LINKED_STATES else Outcome.MISSING
    if version is None or version.fingerprint != now:
        return Outcome.IGNORED if ignored else Outcome.PENDING
    if version.state in LINKED_STATES:
        return Outcome.LINKED
    return _STOPPED.get(version.state, Outcome.PENDING)


_STOPPED = {State.QUARANTINED: Outcome.QUARANTINED, State.IGNORED: Outcome.IGNORED}


def pause(waited: float, took: float = 0.0) -> float:
    """Return how many seconds to let pass before looking again: 50 ms at first, at most half a second.

    A look at very many files that ``took`` long is paid for by a longer pause: nobody who waits costs the uploads
    more than a tenth of a core.
    """
    return max(min(0.05 + waited * 0.02, 0.5), took * 10)
