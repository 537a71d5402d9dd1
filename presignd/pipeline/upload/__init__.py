"""A claimed version is uploaded under its key and verified."""
