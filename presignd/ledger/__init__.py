"""The ledger: the durable record of every version and where it stands."""

from presignd.ledger.ledger import FILE, Ledger, Patience, open_ledger
from presignd.ledger.rows import Enqueued, LostUpdate, Selection, Suspect, WatchSummary

__all__ = [
    "FILE",
    "Enqueued",
    "Ledger",
    "LostUpdate",
    "Patience",
    "Selection",
    "Suspect",
    "WatchSummary",
    "open_ledger",
]
