"""watch → settle → ledger → presign → upload → verify → link → finish: one module a stage."""
