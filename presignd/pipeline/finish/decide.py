"""May a linked file go, and what became of it? Pure: looks in, verdicts out."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from presignd.config import WatchConfig
    from presignd.errors import Fault
    from presignd.model import FileVersion, Fingerprint


class Outcome(StrEnum):
    """How ``finish`` ended."""

    KEPT = "kept"
    DELETED = "deleted"
    MOVED = "moved"
    GONE = "gone"
    CHANGED = "changed"
    BUSY = "busy"


@dataclass(frozen=True, slots=True)
class Finished:
    """What became of the file.

    ``path`` is where it is now: absolute when moved; below the watch's root when changed or busy, where
    it may be ``name~2.ext`` because a new file took its name meanwhile; else empty. ``problem`` is what keeps
    a busy one waiting, where that is no writer.
    """

    outcome: Outcome
    path: bytes = b""
    problem: Fault | None = None

    @property
    def changed(self) -> bool:
        """Other content is there now: the version is through, and ``path`` is a candidate again."""
        return self.outcome is Outcome.CHANGED

    @property
    def busy(self) -> bool:
        """Somebody has it open for writing, or it can't be looked at now: call ``finish`` again later."""
        return self.outcome is Outcome.BUSY


class Verdict(StrEnum):
    """Whether the file may go."""

    SAFE = "safe"
    CHANGED = "changed"
    BUSY = "busy"


@dataclass(frozen=True, slots=True)
class Look:
    """One look at the file: its fingerprint, and whether it has a writer (None: the kernel can't tell)."""

    fingerprint: Fingerprint
    writer: bool | None


def recognise(version: FileVersion, look: Look) -> Verdict:
    """Judge a first look: the verified inode, size and mtime, and no writer; ctime moves with a rename."""
    verified, now = version.fingerprint, look.fingerprint
    if now.ino != verified.ino or not now.same_data(verified):
        return Verdict.CHANGED
    return Verdict.BUSY if look.writer else Verdict.SAFE


def judge(version: FileVersion, before: Look, checksum: str, after: Look) -> Verdict:
    """Judge with the content read between two looks: only the verified bytes, quiet all along, may go."""
    if recognise(version, before) is Verdict.CHANGED or after.fingerprint != before.fingerprint:
        return Verdict.CHANGED
    if checksum != version.checksum:
        return Verdict.CHANGED
    return Verdict.BUSY if before.writer or after.writer else Verdict.SAFE


def takes_away(watch: WatchConfig, version: FileVersion) -> bool:
    """Tell whether the file is to be moved or deleted; a put from elsewhere never is."""
    return watch.after != "keep" and not version.path.startswith(b"/")
