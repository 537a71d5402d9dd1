"""The ledger: the durable record of every version and where it stands."""

from presignd.ledger.arrivals import Arrival, ArrivalRecords, InboxSummary, NewArrival
from presignd.ledger.ledger import FILE, Ledger, open_ledger
from presignd.ledger.rows import Enqueued, LostUpdate, Selection, Suspect, WatchSummary
from presignd.ledger.writer import Patience

__all__ = [
    "FILE",
    "Arrival",
    "ArrivalRecords",
    "Enqueued",
    "InboxSummary",
    "Ledger",
    "LostUpdate",
    "NewArrival",
    "Patience",
    "Selection",
    "Suspect",
    "WatchSummary",
    "open_ledger",
]
