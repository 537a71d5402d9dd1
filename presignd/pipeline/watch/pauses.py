"""How long the loops of a watch wait, in seconds."""

from __future__ import annotations

from dataclasses import dataclass

from presignd.pipeline.watch.source import TICK_SECONDS


@dataclass(frozen=True, slots=True)
class Pauses:
    """The waits of one watch."""

    tick: float = TICK_SECONDS
    """Between two looks for a root that is away; also the longest wait of each loop."""
    source_first: float = 0.05
    """Before the event source is started again; each further pause is twice as long, up to ``source_last``."""
    source_last: float = 5.0
    source_stable: float = 60.0
    """After a source has run for so long, the pause is ``source_first`` again."""
    without_inotify: float = 600.0
    """Of polling before inotify is tried again after one of its limits was met."""
    scan_retry: float = 2.0
    """Until everything is scanned again after a scan for which too many files were open."""
    leftovers: float = 1.0
    """Between two looks at names of presignd's own that are still in use."""


PAUSES = Pauses()
