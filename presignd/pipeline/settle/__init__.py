"""settle: a candidate is probed until it is complete, then recorded in the ledger."""
