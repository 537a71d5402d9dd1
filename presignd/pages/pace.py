"""How often the status page does something, and how long it waits, in seconds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pace:
    """The intervals and deadlines of the status page."""

    look: float = 1.0
    """Between two looks of an open page."""
    longest_stream: float = 900.0
    """After this a stream ends; a browser opens it again by itself."""
    snapshot: float = 1.0
    """For which a snapshot is shown again."""
    snapshot_share: float = 0.05
    """The share of a core that snapshots may take: a ledger of a million files is counted less often."""
    patience: float = 5.0
    """That a client waits for a snapshot."""
    sample: float = 2.0
    """Between two looks at the uploads' progress."""
    links: float = 30.0
    """Between two questions to the broker which links of an open page were revoked."""
    idle: float = 15.0
    """That a connection may be idle, and a request's head may take."""
    restart: float = 30.0
    """Until the page is started again after its port was taken, or after a bug."""


PACE = Pace()
