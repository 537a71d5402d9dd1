"""The decisions of settling, apart from how it looks and acts. Pure.

``decide`` decides after each look whether a file is complete; ``against`` compares a complete one with the version
that the ledger has.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from presignd.errors import FileFault
from presignd.model import State
from presignd.states import IN_FLIGHT, LEFT, is_recorded, was_unreadable

if TYPE_CHECKING:
    from presignd.errors import Fault
    from presignd.model import FileVersion, Fingerprint

LEASE_SETTLE = 1.0
QUIET_SETTLE = 10.0
"""``settle = "auto"`` (contract §3), in seconds: where the writer check works, and where it doesn't."""

LOCAL_GRAIN = 0.02
NETWORK_GRAIN = 2.0
"""How coarse a filesystem's timestamps may be, in seconds: two changes within that time can look like one."""

_FIRST_STEP, _GROWTH = 0.05, 1.5
_LAST_STEP, _LAST_MARKER_STEP = 1.0, 10.0
"""Longest pauses, in seconds, while the end can't be foreseen: for a writer or a passing fault; for a marker or a
download, whose event brings a look anyway."""

_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Rules:
    """A watch's rules: ``settle`` in seconds (None: depending on whether the writer check works for the file)."""

    settle: float | None = None
    grain: float = LOCAL_GRAIN

    def needed(self, writer: bool | None) -> float:
        """Return how many seconds without a change a file needs; ``writer`` None: the kernel can't check it."""
        default = QUIET_SETTLE if writer is None else LEASE_SETTLE
        return max(default if self.settle is None else self.settle, self.grain)


@dataclass(frozen=True, slots=True)
class Sight:
    """One look at a path. ``fingerprint`` None: no regular file is there or, with a ``fault``, this is unknown.

    ``read_ns`` (wall clock, UTC) and ``seen_at`` (monotonic, seconds) were taken before anything else, so a write
    after the writer check has a ctime later than ``read_ns``. ``missing`` names the ready marker that is missing,
    ``partner`` the unfinished download beside the file. ``fault``: why the file can't be read.
    """

    fingerprint: Fingerprint | None
    read_ns: int
    seen_at: float
    writer: bool | None = None
    missing: str = ""
    fault: Fault | None = None
    partner: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """What is remembered between looks: the fingerprint, since when it is the same (monotonic), and how many looks."""

    fingerprint: Fingerprint
    since: float
    looks: int = 0


@dataclass(frozen=True, slots=True)
class Wait:
    """Not complete yet: look again in ``after`` seconds; ``why`` is for people. ``seen``: None before a first look."""

    seen: Seen | None
    after: float
    why: str


@dataclass(frozen=True, slots=True)
class Settled:
    """Complete, with this fingerprint; with a ``fault``: unreadable, and unchanged for long enough."""

    seen: Seen
    fault: FileFault | None


def decide(before: Seen | None, sight: Sight, rules: Rules) -> Settled | Wait | None:
    """Decide whether a file is settled or must wait; None where there is no file.

    Where the writer check works, a ctime that is older than the quiet time is enough. A file with a ctime in the
    future (the clock was set back), and one that the kernel can't check, is watched for the whole quiet time.
    """
    if sight.fingerprint is None:
        return None if sight.fault is None else Wait(before, _LAST_STEP, sight.fault.message)
    seen = Seen(sight.fingerprint, sight.seen_at)
    if before is not None and before.fingerprint == sight.fingerprint:
        seen = Seen(before.fingerprint, before.since, before.looks + 1)
    if obstacle := _obstacle(sight):
        return Wait(seen, step(seen.looks), obstacle)
    if sight.missing:
        return Wait(seen, step(seen.looks, _LAST_MARKER_STEP), f"waits for {sight.missing}")
    if sight.partner:
        return Wait(seen, step(seen.looks, _LAST_MARKER_STEP), f"waits until {sight.partner} beside it is gone")
    needed, quiet = rules.needed(sight.writer), _quiet(seen, sight)
    if quiet < needed:
        return Wait(seen, needed - quiet, f"not yet quiet for {needed:g} s")
    return Settled(seen, sight.fault if isinstance(sight.fault, FileFault) else None)


def _obstacle(sight: Sight) -> str:
    """Return what must end before the quiet time begins to count; "" for nothing."""
    if sight.fault is not None and not isinstance(sight.fault, FileFault):
        return sight.fault.message
    return "open for writing" if sight.writer else ""


def _quiet(seen: Seen, sight: Sight) -> float:
    """Return for how many seconds the file has certainly not changed."""
    watched = sight.seen_at - seen.since
    if sight.writer is None:
        return watched
    age = (sight.read_ns - seen.fingerprint.ctime_ns) / _NS
    return max(age, watched)


def step(looks: int, last: float = _LAST_STEP) -> float:
    """Return the pause in seconds, which grows with the number of looks."""
    return min(last, _FIRST_STEP * _GROWTH ** min(looks, 32))


class Verdict(Enum):
    """How a settled file compares with the ledger."""

    NEW = "a new version"
    SAME = "recorded already"
    HOLD = "another version of the path is in flight"
    REFINGERPRINT = "the same version under another fingerprint"
    COMPARE = "the same version if its content is"


def against(known: FileVersion | None, settled: Settled, *, takes_away: bool) -> Verdict:  # noqa: PLR0911 - a table
    """Compare a settled file with the current version of its path.

    ``takes_away``: the watch moves or deletes what is finished, so a file at the path is another drop.
    """
    fingerprint = settled.seen.fingerprint
    if is_recorded(known, fingerprint):
        return Verdict.SAME
    now_readable = known is not None and was_unreadable(known) and settled.fault is None
    if known is None or known.state in LEFT or now_readable:
        return Verdict.NEW
    if known.fingerprint == fingerprint:
        # Still unreadable; or back after it was gone (its directory was away): the ledger must not forget it.
        return Verdict.SAME if known.gone_at is None else Verdict.REFINGERPRINT
    if known.state in IN_FLIGHT:
        return Verdict.HOLD
    if _dropped_again(known, fingerprint) or not known.fingerprint.same_data(fingerprint):
        return Verdict.NEW
    if takes_away and known.state is State.FINISHED:
        return Verdict.NEW
    if not known.checksum:
        # A queued file is read later anyway; of an ignored or quarantined one only the metadata changed.
        return Verdict.REFINGERPRINT
    # Unreadable: its content can't be compared, so it stays as it is until it can be read or changes.
    return Verdict.SAME if settled.fault else Verdict.COMPARE


def _dropped_again(known: FileVersion, fingerprint: Fingerprint) -> bool:
    """Return whether a file that was seen gone was put there again, though with its old size and time (``cp -p``).

    The kernel sets the ctime, and no program can: a file that was only away with its folder or disk has its old one.
    """
    return known.gone_at is not None and known.fingerprint.ctime_ns != fingerprint.ctime_ns
