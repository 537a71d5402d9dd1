"""Decide from observations whether the file of a linked version may be moved or deleted. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from presignd.config import WatchConfig
    from presignd.errors import Fault
    from presignd.model import FileVersion, Fingerprint


class FinishOutcome(StrEnum):
    """How ``keep_move_or_delete`` ended."""

    KEPT = "kept"
    DELETED = "deleted"
    MOVED = "moved"
    GONE = "gone"
    CHANGED = "changed"
    BUSY = "busy"


@dataclass(frozen=True, slots=True)
class Finished:
    """What happened to the file.

    ``path`` is where it is now: absolute when moved; below the watch's root when changed or busy, where it may be
    ``name~2.ext`` because a new file took its name meanwhile; else empty. ``problem`` is the fault for which a busy
    file waits, None where it waits for a writer.
    """

    outcome: FinishOutcome
    path: bytes = b""
    problem: Fault | None = None

    @property
    def changed(self) -> bool:
        """Whether the file has other content now: the version is finished, and ``path`` is a candidate again."""
        return self.outcome is FinishOutcome.CHANGED

    @property
    def busy(self) -> bool:
        """Whether the file is open for writing, or can't be read now: call ``keep_move_or_delete`` again later."""
        return self.outcome is FinishOutcome.BUSY


class Safety(StrEnum):
    """Whether the file may be moved or deleted."""

    SAFE = "safe"
    CHANGED = "changed"
    BUSY = "busy"


@dataclass(frozen=True, slots=True)
class Observation:
    """The file at one moment: its fingerprint, and whether it has a writer (None: the kernel can't tell)."""

    fingerprint: Fingerprint
    writer: bool | None


def check_fingerprint(version: FileVersion, seen: Observation) -> Safety:
    """Return SAFE for the verified inode, size and mtime without a writer; the ctime may differ, as after a rename."""
    verified, now = version.fingerprint, seen.fingerprint
    if now.ino != verified.ino or not now.same_data(verified):
        return Safety.CHANGED
    return Safety.BUSY if seen.writer else Safety.SAFE


def check_content(version: FileVersion, before: Observation, checksum: str, after: Observation) -> Safety:
    """Return SAFE if what was read between the observations is the verified bytes, unchanged, without a writer."""
    if check_fingerprint(version, before) is Safety.CHANGED or after.fingerprint != before.fingerprint:
        return Safety.CHANGED
    if checksum != version.checksum:
        return Safety.CHANGED
    return Safety.BUSY if before.writer or after.writer else Safety.SAFE


def moves_or_deletes(watch: WatchConfig, version: FileVersion) -> bool:
    """Return whether the file is to be moved or deleted; one that ``put`` handed over from outside never is."""
    return watch.after != "keep" and not (version.path.startswith(b"/") or version.is_made)
