"""Which ready markers are new: those that were written since the folder's last unit.

A unit holds what was there when its marker was written. So a file that changes later waits until the marker is written
again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from presignd.ledger.units import Marker


class WatchMarkers:
    """The markers of the newest units of one watch, by folder. May be called in any thread."""

    def __init__(self) -> None:
        self._used: dict[bytes, Marker] | None = None

    def load(self, used: Mapping[bytes, Marker]) -> None:
        """Load the markers that the ledger has; until then no marker is new."""
        self._used = dict(used)

    def note(self, folder: bytes, marker: Marker) -> None:
        """Note that a unit of the folder was made by this marker."""
        assert self._used is not None, "units are made once the ledger was read"
        self._used[folder] = marker

    def is_new(self, folder: bytes, found: Marker) -> bool:
        """Return whether the marker of a folder was written since the folder's newest unit."""
        return self._used is not None and self._used.get(folder) != found


class Markers:
    """The markers of all watches; they outlive a reload."""

    def __init__(self) -> None:
        self._watches: dict[str, WatchMarkers] = {}

    def of(self, watch: str) -> WatchMarkers:
        """Return the markers of one watch."""
        return self._watches.setdefault(watch, WatchMarkers())


def marker_of(st: os.stat_result) -> Marker:
    """Return the marker in a stat result."""
    return Marker(st.st_size, st.st_mtime_ns)
