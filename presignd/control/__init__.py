"""The control socket: how commands ask the daemon."""
