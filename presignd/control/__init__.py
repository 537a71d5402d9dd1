"""The control socket: how commands send requests to the daemon."""
