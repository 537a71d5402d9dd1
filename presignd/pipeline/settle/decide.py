"""Decide whether a file is complete, and whether it is new to the ledger. Pure.

``decide`` decides after each look whether a file is complete; ``compare_with_ledger`` compares a complete one with the
version that the ledger has.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

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


class Rules(NamedTuple):
    """How many seconds without a change a file of a watch needs: one that the writer check works for, and any other."""

    checked: float
    unchecked: float

    @classmethod
    def of(cls, settle: float | None = None, timestamp_precision: float = LOCAL_PRECISION) -> Rules:
        """Return the rules of a watch's ``settle`` in seconds (None: by default)."""
        checked, unchecked = (LEASE_SETTLE, QUIET_SETTLE) if settle is None else (settle, settle)
        return cls(max(checked, timestamp_precision), max(unchecked, timestamp_precision))


class Wait(NamedTuple):
    """The file is not complete yet: look again in ``after`` seconds; ``why`` is for people."""

    after: float
    why: str


@dataclass(slots=True)
class Look:
    """What one look at a path found, and its result.

    ``read_ns`` (wall clock, UTC) and ``seen_at`` (monotonic, seconds) are taken before anything else, so a write after
    the writer check has a ctime later than ``read_ns``. ``fingerprint`` is None if no regular file is there or, with a
    ``fault``, if that is unknown. It is the same ``since`` the first (monotonic) of so many ``looks`` before this one.
    ``missing`` names the ready marker that is missing, ``download`` the unfinished download beside the file.
    ``fault``: why the file can't be read. A complete file has no ``wait``, and its ``content`` if that was read.
    """

    read_ns: int
    seen_at: float
    since: float
    fingerprint: Fingerprint | None = None
    writer: bool | None = None
    missing: str = ""
    download: str = ""
    fault: Fault | None = None
    looks: int = 0
    wait: Wait | None = None
    content: Prepared | None = None

    def follow(self, before: Look) -> None:
        """Note since when the fingerprint is the same."""
        same = before.fingerprint == self.fingerprint
        self.since, self.looks = (before.since, before.looks + 1) if same else (self.seen_at, 0)


def decide(look: Look, rules: Rules) -> Wait | None:
    """Return why a file must wait; None if it is complete, or if there is no file.

    Where the writer check works, a ctime that is older than the quiet time is enough. A file with a ctime in the
    future (the clock was set back), and one that the kernel can't check, is watched for the whole quiet time.
    """
    if look.fingerprint is None:
        return None if look.fault is None else Wait(_LONGEST_PAUSE, look.fault.message)
    if look.fault is not None and not isinstance(look.fault, FileFault):
        return Wait(pause_after(look.looks), look.fault.message)
    if look.writer:
        return Wait(pause_after(look.looks), "open for writing")
    if look.missing or look.download:
        why = f"waits for {look.missing}" if look.missing else f"waits until {look.download} beside it is gone"
        return Wait(pause_after(look.looks, _LONGEST_MARKER_PAUSE), why)
    needed, quiet = rules.unchecked, look.seen_at - look.since
    if look.writer is not None:
        needed, quiet = rules.checked, max(quiet, (look.read_ns - look.fingerprint.ctime_ns) / _NS)
    return Wait(needed - quiet, f"not yet quiet for {needed:g} s") if quiet < needed else None


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


def compare_with_ledger(  # noqa: PLR0911 - a table
    known: FileVersion | None, fingerprint: Fingerprint, *, readable: bool, takes_away: bool
) -> Verdict:
    """Compare a complete file with the current version of its path.

    ``takes_away``: the watch moves or deletes what is finished, so a file at the path is another drop.
    """
    if known is None or known.state in LEFT:
        return Verdict.NEW
    if is_recorded(known, fingerprint):
        return Verdict.SAME
    if was_unreadable(known) and readable:
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
    return Verdict.COMPARE if readable else Verdict.SAME


def _dropped_again(known: FileVersion, fingerprint: Fingerprint) -> bool:
    """Return whether a file that was seen gone was put there again, though with its old size and time (``cp -p``).

    Only the kernel sets the ctime: a file that was away with its folder or disk has its old one.
    """
    return known.gone_at is not None and known.fingerprint.ctime_ns != fingerprint.ctime_ns
