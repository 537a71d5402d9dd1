"""The ways in beside the files: the control socket, and what it answers."""
