"""What may not be said, and what acts on a terminal, taken out of every text. Pure."""
