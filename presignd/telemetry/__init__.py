"""What the program tells: the event log, metrics."""
