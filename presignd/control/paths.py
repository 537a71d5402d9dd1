"""Find what a command's paths mean: the watch of each, its version, and whether it has a link or can get one.

``wait``, ``status``, ``link``, ``put`` and ``retry`` all use this, so that they agree. A path in no watch is only
looked up in the ledger: a client must not learn by the daemon's permissions what lies elsewhere.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import unicodedata
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from presignd.errors import Refused
from presignd.model import Fingerprint, State
from presignd.pipeline.files.ignore import FOLDERS_ONLY
from presignd.states import LEFT
from presignd.system.trust import FOLDER, parent_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from presignd.config import WatchConfig
    from presignd.control.view import View
    from presignd.model import FileVersion
    from presignd.pipeline.unit.folders import UnitLook

    Present = Mapping["WatchPath", Fingerprint | OSError | None]

OUTSIDE = "it is in no watched folder"
NOT_SENT = 'it was there before the first start, and existing = "ignore": recorded, not sent'
LINKED_STATES = frozenset({State.LINKED, State.FINISHED})
NOTHING_THERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})


# --- where a path is ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WatchPath:
    """An absolute path, the watch it is in ("" for none) and its path below that watch's root."""

    absolute: bytes
    watch: str
    path: bytes


def locate(absolute: bytes, watches: Iterable[WatchConfig]) -> WatchPath:
    """Return the watch whose folder holds ``absolute``, by the configured path or the real one, and the path in it."""
    for watch in watches:
        configured = os.fsencode(watch.path)
        for root in {configured, os.path.realpath(configured)}:
            if absolute.startswith(root.rstrip(b"/") + b"/"):
                return WatchPath(absolute, watch.name, absolute[len(root.rstrip(b"/")) + 1 :])
    return WatchPath(absolute, "", absolute)


def forms(absolute: bytes) -> list[bytes]:
    """Return ``absolute`` and the paths that look the same: folder and name each composed (NFC) or decomposed (NFD).

    macOS, and files copied from it, have decomposed names; a keyboard types composed ones.
    """
    try:
        folder, slash, name = absolute.decode().rpartition("/")
    except UnicodeDecodeError:
        return [absolute]
    looks_so = [(above + slash + below).encode() for above in _forms(folder) for below in _forms(name)]
    return list(dict.fromkeys(looks_so))


def _forms(text: str) -> list[str]:
    return [text, unicodedata.normalize("NFC", text), unicodedata.normalize("NFD", text)]


def fingerprint_at(absolute: bytes) -> Fingerprint | None:
    """Return the fingerprint of the regular file at ``absolute``, None where there is none.

    No symlink is followed, in any component and even if one is swapped in meanwhile: a path through one is in no
    watch. Raises ``OSError`` where the folder can't be read.
    """
    *folders, name = absolute.split(b"/")
    if {b".", b".."} & {*folders, name}:
        return None
    root = os.open("/", FOLDER)
    try:
        with parent_of(root, [*filter(None, folders), name]) as (at, _):
            found = os.stat(name, dir_fd=at, follow_symlinks=False)
    except OSError as error:
        if error.errno in NOTHING_THERE:
            return None
        raise
    finally:
        os.close(root)
    return Fingerprint.of(found) if stat.S_ISREG(found.st_mode) else None


# --- whether it has a link ------------------------------------------------------------------------------


class WaitOutcome(StrEnum):
    """What ``wait`` found for one path; all but ``PENDING`` are final."""

    LINKED = "linked"
    PENDING = "pending"
    QUARANTINED = "quarantined"
    MISSING = "missing"
    IGNORED = "ignored"
    UNREADABLE = "unreadable"
    OUTSIDE = "outside"


def wait_outcome(
    version: FileVersion | None, now: Fingerprint | None, *, leaves: bool, ignored: bool = False
) -> WaitOutcome:
    """Return whether a path's current content has its link, by its version and the file's fingerprint (None: no file).

    ``leaves``: the watch moves or deletes what it has linked, so a file that is gone may be done. ``ignored``: a rule
    of the watch ignores the path, so a file that the ledger does not know gets no link. ``now`` must have been read
    before ``version``: a file that ``after`` took away is then known as linked.
    """
    if now is None:
        return WaitOutcome.LINKED if leaves and version and version.state in LINKED_STATES else WaitOutcome.MISSING
    if version is None or version.fingerprint != now:
        return WaitOutcome.IGNORED if ignored else WaitOutcome.PENDING
    if version.state in LINKED_STATES:
        return WaitOutcome.LINKED
    return _STOPPED.get(version.state, WaitOutcome.PENDING)


def unit_outcome(version: FileVersion | None, look: UnitLook) -> WaitOutcome:
    """Return whether a folder that is linked as a whole has its link, by its manifest's version and what is on disk."""
    if version is not None and version.state is State.QUARANTINED:
        return WaitOutcome.QUARANTINED
    if version is not None and version.state in LINKED_STATES and not look.anew:
        return WaitOutcome.LINKED
    waits = version is not None and version.state not in LEFT
    return WaitOutcome.PENDING if look.there or waits else WaitOutcome.MISSING


_STOPPED = {State.QUARANTINED: WaitOutcome.QUARANTINED, State.IGNORED: WaitOutcome.IGNORED}


# --- for a command's paths ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Named:
    """A path as the request gave it (``asked``), its place in a watch, and the current version there."""

    asked: bytes
    place: WatchPath
    version: FileVersion | None


class Finder:
    """Finds paths in the watches and the ledger of one ``View``."""

    def __init__(self, view: View) -> None:
        self._view = view

    async def find(self, absolute: Sequence[bytes]) -> list[Named]:
        """Return what each path means, in order.

        A name that is neither on disk nor in the ledger means the same name in its other Unicode form, if that one is.
        """
        watches = self._view.config.watches
        places = await asyncio.to_thread(
            lambda: {path: [locate(form, watches) for form in forms(path)] for path in absolute}
        )
        versions = await self.versions(place for several in places.values() for place in several)
        doubtful = [place for several in places.values() for place in several if len(several) > 1]
        present = await self.present([(place, versions.get(place)) for place in doubtful])
        chosen = {path: _likeliest(several, present, versions) for path, several in places.items()}
        return [Named(path, place, versions.get(place)) for path, place in chosen.items()]

    async def exactly(self, absolute: bytes) -> WatchPath:
        """Return the place of a path, taken literally: the client has opened the file by this name."""
        return await asyncio.to_thread(locate, absolute, self._view.config.watches)

    async def versions(self, places: Iterable[WatchPath]) -> dict[WatchPath, FileVersion]:
        """Return the current versions; a file that was put from elsewhere is known by its absolute path."""
        wanted = list(places)
        found: dict[WatchPath, FileVersion] = {}
        for watch in self._view.config.watches:
            ours = {p.path if p.watch == watch.name else p.absolute: p for p in wanted if p not in found}
            known = await self._view.ledger.known(watch.name, list(ours)) if ours else {}
            found |= {ours[path]: version for path, version in known.items()}
        return found

    async def present(self, places: Iterable[tuple[WatchPath, FileVersion | None]]) -> Present:
        """Return the fingerprints of the files there, or the error of each that can't be read.

        A path outside of all watches and not in the ledger is not looked at, and not in the result.
        """
        ours = [place for place, version in places if place.watch or version is not None]
        return await asyncio.to_thread(_fingerprints, ours)

    async def outcomes(self, places: Sequence[WatchPath]) -> dict[WatchPath, tuple[WaitOutcome, FileVersion | None]]:
        """Return the outcome for each path: the disk is read first, then the ledger (see ``wait_outcome``)."""
        before = await self.versions(place for place in places if not place.watch)
        present = await self.present((place, before.get(place)) for place in places)
        units = await asyncio.to_thread(lambda: {p: self._view.unit_at(p.watch, p.path) for p in places})
        versions = await self.versions(places)
        return {
            place: (self._outcome(place, versions.get(place), present, units[place]), versions.get(place))
            for place in places
        }

    def _outcome(
        self, place: WatchPath, version: FileVersion | None, present: Present, unit: UnitLook | None
    ) -> WaitOutcome:
        if place not in present:
            return WaitOutcome.OUTSIDE
        if unit is not None and (unit.there or (version is not None and version.is_made)):
            return unit_outcome(version, unit)
        if isinstance(now := present[place], OSError):
            return WaitOutcome.UNREADABLE
        leaves = any(watch.name == place.watch and watch.after != "keep" for watch in self._view.config.watches)
        return wait_outcome(version, now, leaves=leaves, ignored=bool(self.rule(place)))

    def rule(self, place: WatchPath) -> str:
        """Return the rule of its watch that ignores a path; "" where none does."""
        return self._view.ignored(place.watch, place.path) if place.watch else ""

    def why(self, place: WatchPath, version: FileVersion | None) -> str:
        """Return why a path will get no link: it is in no watch, or ignored; "" where it may get one."""
        if not place.watch:
            return "" if version else OUTSIDE
        if version and version.state is State.IGNORED:
            return NOT_SENT
        return self.rule(place)

    def unknown(self, named: Named) -> Refused:
        """Return the refusal of a path that the ledger doesn't know, with the reason if there is one."""
        reason = self.why_unknown(named)
        return Refused(f"{os.fsdecode(named.asked)}: {reason.message}", fix=reason.fix)

    def why_unknown(self, named: Named) -> Refused:
        """Return the same for where the path is shown already."""
        watch, why = named.place.watch, self.why(named.place, None)
        if not watch:
            return Refused(why, fix="presignd status lists those; presignd put uploads others")
        if why == FOLDERS_ONLY:
            fix = "presignd status lists what a folder waits for; presignd put uploads a single file"
            return Refused(f"there is no link to it: {why}", fix=fix)
        if why:
            return Refused(f"the watch {watch} ignores it: {why}", fix="presignd put uploads it all the same")
        return Refused(
            f"the watch {watch} does not know it", fix="it is missing, is no regular file, or was not seen yet"
        )


def _likeliest(
    places: Sequence[WatchPath],
    present: Present,
    versions: Mapping[WatchPath, FileVersion],
) -> WatchPath:
    """Return the first path with a file, else the first in the ledger, else the first."""
    there = (place for place in places if present.get(place) is not None)
    known = (place for place in places if place in versions)
    return next(there, None) or next(known, None) or places[0]


def _fingerprints(places: Iterable[WatchPath]) -> dict[WatchPath, Fingerprint | OSError | None]:
    found: dict[WatchPath, Fingerprint | OSError | None] = {}
    for place in places:
        try:
            found[place] = fingerprint_at(place.absolute)
        except OSError as error:
            found[place] = error
    return found
