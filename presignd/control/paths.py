"""Finds what the paths of a command mean: where each lies, its version, or why there can be none.

One piece for ``wait``, ``status``, ``link``, ``put`` and ``retry``, so that they agree. A path in no watch is looked
up in the ledger alone: the daemon's rights tell nobody what lies elsewhere.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from presignd.control.locate import fingerprint_at, forms, locate
from presignd.control.waiting import Outcome, outcome
from presignd.errors import Refused
from presignd.model import State

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from presignd.control.locate import Place
    from presignd.control.view import View
    from presignd.model import FileVersion, Fingerprint

    Present = Mapping[Place, Fingerprint | OSError | None]

OUTSIDE = "it is in no watched folder"
NOT_SENT = 'it was there before the first start, and existing = "ignore": recorded, not sent'


@dataclass(frozen=True, slots=True)
class Named:
    """One path as it was ``asked`` for, the place it means, and the current version there."""

    asked: bytes
    place: Place
    version: FileVersion | None


class Finder:
    """Finds over one ``View``."""

    def __init__(self, view: View) -> None:
        self._view = view

    async def find(self, absolute: Sequence[bytes]) -> list[Named]:
        """Return what each path means, in order.

        A name that is neither there nor known stands for the same name in its other Unicode form, where that one is.
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

    async def exactly(self, absolute: bytes) -> Place:
        """Return where a path lies, of a file that whoever asks has opened by this very name."""
        return await asyncio.to_thread(locate, absolute, self._view.config.watches)

    async def versions(self, places: Iterable[Place]) -> dict[Place, FileVersion]:
        """Return the current versions, of files put from elsewhere too: those are known by absolute path."""
        wanted = list(places)
        found: dict[Place, FileVersion] = {}
        for watch in self._view.config.watches:
            ours = {p.path if p.watch == watch.name else p.absolute: p for p in wanted if p not in found}
            known = await self._view.ledger.known(watch.name, list(ours)) if ours else {}
            found |= {ours[path]: version for path, version in known.items()}
        return found

    async def present(self, places: Iterable[tuple[Place, FileVersion | None]]) -> Present:
        """Return the fingerprints of what lies there, or why it can't be seen.

        What is outside and unknown is not looked at, and not in the answer.
        """
        ours = [place for place, version in places if place.watch or version is not None]
        return await asyncio.to_thread(_fingerprints, ours)

    # --- what can come of it --------------------------------------------------------------------
    async def outcomes(self, places: Sequence[Place]) -> dict[Place, tuple[Outcome, FileVersion | None]]:
        """Judge each place: first what lies there, then what the ledger says (see ``waiting.outcome``)."""
        before = await self.versions(place for place in places if not place.watch)
        present = await self.present((place, before.get(place)) for place in places)
        versions = await self.versions(places)
        return {place: (self._outcome(place, versions.get(place), present), versions.get(place)) for place in places}

    def _outcome(self, place: Place, version: FileVersion | None, present: Present) -> Outcome:
        if place not in present:
            return Outcome.OUTSIDE
        if isinstance(now := present[place], OSError):
            return Outcome.UNREADABLE
        leaves = any(watch.name == place.watch and watch.after != "keep" for watch in self._view.config.watches)
        return outcome(version, now, leaves=leaves, ignored=bool(self.rule(place)))

    def rule(self, place: Place) -> str:
        """Return the rule of its watch that ignores a place; "" where none does."""
        return self._view.ignored(place.watch, place.path) if place.watch else ""

    def why(self, place: Place, version: FileVersion | None) -> str:
        """Return why nothing will come of a place: it is in no watch, or ignored; "" where something may."""
        if not place.watch:
            return "" if version else OUTSIDE
        if version and version.state is State.IGNORED:
            return NOT_SENT
        return self.rule(place)

    def unknown(self, named: Named) -> Refused:
        """Refuse a path that the ledger doesn't know, with the reason where there is one."""
        path = os.fsdecode(named.asked)
        why = self.why(named.place, None)
        if not named.place.watch:
            return Refused(f"{path}: {why}", fix="presignd status lists those; presignd put uploads others")
        if why:
            return Refused(
                f"{path}: the watch {named.place.watch} ignores it: {why}", fix="presignd put uploads it all the same"
            )
        return Refused(
            f"{path}: nothing is known of it in the watch {named.place.watch}",
            fix="it is missing, no regular file, or not noticed yet",
        )


def _likeliest(places: Sequence[Place], present: Present, versions: Mapping[Place, FileVersion]) -> Place:
    """Choose the first that is there, else the first that is known, else the first."""
    there = (place for place in places if present.get(place) is not None)
    known = (place for place in places if place in versions)
    return next(there, None) or next(known, None) or places[0]


def _fingerprints(places: Iterable[Place]) -> dict[Place, Fingerprint | OSError | None]:
    found: dict[Place, Fingerprint | OSError | None] = {}
    for place in places:
        try:
            found[place] = fingerprint_at(place.absolute)
        except OSError as error:
            found[place] = error
    return found
