"""The status page, health and metrics over HTTP."""
