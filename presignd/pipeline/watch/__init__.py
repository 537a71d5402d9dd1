"""watch: hints from events and scans become candidates."""
