"""Removes secrets, and characters that control a terminal, from every text that is shown or logged. Pure."""
