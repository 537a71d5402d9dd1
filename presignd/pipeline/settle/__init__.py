"""settle: a candidate is looked at until it is complete, then recorded in the ledger."""
