"""Decide which folder a file is a member of, and whether it may be in that folder's unit now. Pure."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from presignd.ledger.units import MEMBER_STATES
from presignd.model import Source, State
from presignd.pipeline.intake import UPLOAD_PRIORITIES

if TYPE_CHECKING:
    from presignd.model import FileVersion, Fingerprint


def folder_of(path: bytes) -> bytes:
    """Return the folder (below the watch's root) whose unit the file at ``path`` belongs to."""
    return path.partition(b"/")[0]


def is_member(version: FileVersion) -> bool:
    """Return whether a version of a watch with ``unit = "folder"`` belongs to its folder's unit, so has no own link.

    A file that ``put`` sent has a link of its own.
    """
    if version.is_made or version.path.startswith(b"/"):
        return False
    return version.priority != UPLOAD_PRIORITIES[Source.PUT]


class Membership(Enum):
    """Whether a file may be in its folder's unit, by its version."""

    MEMBER = "it is stored as it is"
    CHANGED = "what is stored is not what it holds now"
    MISSING = "it is not stored yet"


def membership(version: FileVersion | None, found: Fingerprint) -> Membership:
    """Return whether a file with the fingerprint ``found`` may be in its folder's unit.

    ``CHANGED`` is a version that waits for the unit: it must end, because a newer version of its path waits for that.
    """
    if version is None or version.state not in MEMBER_STATES:
        return Membership.MISSING
    if version.fingerprint == found and version.gone_at is None:
        return Membership.MEMBER
    return Membership.CHANGED if version.state is State.VERIFIED and is_member(version) else Membership.MISSING


class Gathered(NamedTuple):
    """What a folder holds: the file_ids of its members, versions that must end, and why it is not complete, or ""."""

    members: list[str]
    changed: list[FileVersion]
    why: str


class Gathering:
    """Judges the files of one folder, in any order."""

    def __init__(self) -> None:
        self._members: list[str] = []
        self._changed: list[FileVersion] = []
        self._lacking, self._first, self._stopped = 0, "", ""

    def add(self, path: bytes, found: Fingerprint, version: FileVersion | None) -> None:
        """Judge one file by the current version of its path."""
        kind = membership(version, found)
        if version is not None and kind is Membership.MEMBER:
            self._members.append(version.file_id)
            return
        if version is not None and kind is Membership.CHANGED:
            self._changed.append(version)
        self._lacking += 1
        name = path.decode("utf-8", "backslashreplace")
        self._first = self._first or name
        if version is not None and version.state in (State.QUARANTINED, State.IGNORED):
            self._stopped = self._stopped or f"{name} is {version.state}"

    def result(self, problem: str = "") -> Gathered:
        """Return what was found; ``problem``: what could not be listed."""
        why = problem
        if not why and self._lacking:
            total = self._lacking + len(self._members)
            which = self._stopped or f"the first is {self._first}"
            why = f"{self._lacking} of its {total} files are not uploaded yet: {which}"
        return Gathered(self._members, self._changed, why)
