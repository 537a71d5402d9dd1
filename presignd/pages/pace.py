"""The intervals and deadlines of the status page, in seconds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pace:
    """The intervals and deadlines of the status page."""

    look: float = 1.0
    """Time between two checks of an open page for changes."""
    longest_stream: float = 900.0
    """Duration of a stream; a browser then opens it again by itself."""
    snapshot: float = 1.0
    """How long a snapshot is reused."""
    snapshot_share: float = 0.05
    """The share of a core that snapshots may take: a ledger of a million files is counted less often."""
    patience: float = 5.0
    """Longest time that a client waits for a snapshot."""
    sample: float = 2.0
    """Time between two samples of the uploads' progress."""
    links: float = 30.0
    """Time between two queries to the broker: which links of an open page were revoked."""
    idle: float = 15.0
    """Longest time that a connection may be idle, and that a request's head may take."""
    restart: float = 30.0
    """Pause before the page is started again after its port was taken, or after a bug."""


PACE = Pace()
