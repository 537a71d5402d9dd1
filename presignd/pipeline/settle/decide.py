"""Decide whether a file is complete, and whether it is new to the ledger. Pure.

``decide`` decides after each look whether a file is complete; ``compare_with_ledger`` compares a complete one with the
version that the ledger has.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from presignd.errors import FileFault
from presignd.model import State
from presignd.states import IN_FLIGHT, LEFT, is_recorded, was_unreadable

if TYPE_CHECKING:
    from presignd.errors import Fault
    from presignd.model import FileVersion, Fingerprint
    from presignd.pipeline.files.hash import Prepared

LEASE_SETTLE = 1.0
QUIET_SETTLE = 10.0
"""``settle = "auto"`` (docs/files.md), in seconds: where the writer check works, and where it doesn't."""

LOCAL_PRECISION = 0.02
NETWORK_PRECISION = 2.0
"""The precision of a filesystem's timestamps, in seconds: two changes within that time can look like one."""

_FIRST_PAUSE, _GROWTH = 0.05, 1.5
_LONGEST_PAUSE, _LONGEST_MARKER_PAUSE = 1.0, 10.0
"""The longest pauses, in seconds, while the end can't be foreseen: for a writer or a passing fault; for a marker or a
download, whose event causes a look anyway."""

_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Rules:
    """A watch's rules: ``settle`` in seconds (None: depending on whether the writer check works for the file)."""

    settle: float | None = None
    timestamp_precision: float = LOCAL_PRECISION

    def needed(self, writer: bool | None) -> float:
        """Return how many seconds without a change a file needs; ``writer`` None: the kernel can't check it."""
        default = QUIET_SETTLE if writer is None else LEASE_SETTLE
        return max(default if self.settle is None else self.settle, self.timestamp_precision)


class Look(NamedTuple):
    """What one look at a path found.

    ``fingerprint`` is None if no regular file is there or, with a ``fault``, if that is unknown. ``read_ns`` (wall
    clock, UTC) and ``seen_at`` (monotonic, seconds) were taken before anything else, so a write after the writer check
    has a ctime later than ``read_ns``. ``missing`` names the ready marker that is missing, ``download`` the unfinished
    download beside the file. ``fault``: why the file can't be read.
    """

    fingerprint: Fingerprint | None
    read_ns: int
    seen_at: float
    writer: bool | None = None
    missing: str = ""
    fault: Fault | None = None
    download: str = ""


class History(NamedTuple):
    """What is remembered between looks: the fingerprint, since when it is the same (monotonic), and how many looks."""

    fingerprint: Fingerprint
    since: float
    looks: int = 0


class Wait(NamedTuple):
    """The file is not complete yet: look again in ``after`` seconds; ``why`` is for people.

    ``history``: None before a first look that found a file.
    """

    history: History | None
    after: float
    why: str


class Complete(NamedTuple):
    """The file is complete, with this fingerprint; with a ``fault`` it is unreadable, and unchanged for long enough.

    ``content``: what the file holds, if the look read it.
    """

    history: History
    fault: FileFault | None
    content: Prepared | None = None


Outcome: TypeAlias = Complete | Wait | None


def decide(before: History | None, look: Look, rules: Rules) -> Outcome:
    """Return whether a file is complete or must wait; None if there is no file.

    Where the writer check works, a ctime that is older than the quiet time is enough. A file with a ctime in the
    future (the clock was set back), and one that the kernel can't check, is watched for the whole quiet time.
    """
    if look.fingerprint is None:
        return None if look.fault is None else Wait(before, _LONGEST_PAUSE, look.fault.message)
    history = History(look.fingerprint, look.seen_at)
    if before is not None and before.fingerprint == look.fingerprint:
        history = History(before.fingerprint, before.since, before.looks + 1)
    if look.fault is not None and not isinstance(look.fault, FileFault):
        return Wait(history, pause_after(history.looks), look.fault.message)
    if look.writer:
        return Wait(history, pause_after(history.looks), "open for writing")
    if look.missing or look.download:
        why = f"waits for {look.missing}" if look.missing else f"waits until {look.download} beside it is gone"
        return Wait(history, pause_after(history.looks, _LONGEST_MARKER_PAUSE), why)
    needed, quiet = rules.needed(look.writer), _quiet(history, look)
    if quiet < needed:
        return Wait(history, needed - quiet, f"not yet quiet for {needed:g} s")
    return Complete(history, look.fault)


def _quiet(history: History, look: Look) -> float:
    """Return for how many seconds the file has certainly not changed."""
    watched = look.seen_at - history.since
    if look.writer is None:
        return watched
    age = (look.read_ns - history.fingerprint.ctime_ns) / _NS
    return max(age, watched)


def pause_after(looks: int, last: float = _LONGEST_PAUSE) -> float:
    """Return the pause in seconds, which grows with the number of looks."""
    return min(last, _FIRST_PAUSE * _GROWTH ** min(looks, 32))


class Verdict(Enum):
    """How a complete file compares with the ledger."""

    NEW = "a new version"
    SAME = "recorded already"
    WAIT_FOR_EARLIER = "another version of the path is in flight"
    REFINGERPRINT = "the same version under another fingerprint"
    COMPARE = "the same version if its content is equal"


def compare_with_ledger(known: FileVersion | None, complete: Complete, *, takes_away: bool) -> Verdict:  # noqa: PLR0911 - a table
    """Compare a complete file with the current version of its path.

    ``takes_away``: the watch moves or deletes what is finished, so a file at the path is another drop.
    """
    fingerprint = complete.history.fingerprint
    if known is None or known.state in LEFT:
        return Verdict.NEW
    if is_recorded(known, fingerprint):
        return Verdict.SAME
    if was_unreadable(known) and complete.fault is None:
        return Verdict.NEW
    if known.fingerprint == fingerprint and known.gone_at is None:
        return Verdict.SAME  # still unreadable
    if known.state in IN_FLIGHT:
        return Verdict.WAIT_FOR_EARLIER  # also one whose file is back: finish may be about to record it as gone
    if _dropped_again(known, fingerprint) or not known.fingerprint.same_data(fingerprint):
        return Verdict.NEW
    if takes_away and known.state is State.FINISHED:
        return Verdict.NEW
    if known.fingerprint == fingerprint:
        return Verdict.REFINGERPRINT  # its directory was away: the ledger must not forget it
    if not known.checksum:
        # A queued file is read later anyway; of an ignored or quarantined one only the metadata changed.
        return Verdict.REFINGERPRINT
    # Unreadable: its content can't be compared, so its record stays as it is until the file can be read or changes.
    return Verdict.SAME if complete.fault else Verdict.COMPARE


def _dropped_again(known: FileVersion, fingerprint: Fingerprint) -> bool:
    """Return whether a file that was seen gone was put there again, though with its old size and time (``cp -p``).

    Only the kernel sets the ctime: a file that was away with its folder or disk has its old one.
    """
    return known.gone_at is not None and known.fingerprint.ctime_ns != fingerprint.ctime_ns
