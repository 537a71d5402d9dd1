"""The pauses of a watch's loops, in seconds."""

from __future__ import annotations

from dataclasses import dataclass

from presignd.pipeline.watch.source import TICK_SECONDS


@dataclass(frozen=True, slots=True)
class Pauses:
    """The pauses of one watch."""

    tick: float = TICK_SECONDS
    """Pause between two looks for a root that is away, and the longest wait of each loop."""
    source_first: float = 0.05
    """Pause before the event source is started again; each further one is twice as long, up to ``source_last``."""
    source_last: float = 5.0
    source_stable: float = 60.0
    """Once a source has run for so long, the next pause is ``source_first`` again."""
    without_inotify: float = 600.0
    """How long to poll before inotify is tried again, after one of its limits was met."""
    scan_retry: float = 2.0
    """Pause before everything is scanned again, after a scan for which too many files were open."""
    leftovers: float = 1.0
    """Pause between two looks at names of presignd's own that are still in use."""


PAUSES = Pauses()
