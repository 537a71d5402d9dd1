"""presign, upload, verify: a claimed version goes under its key."""
