"""What a long-running program needs: signals, systemd, heartbeats, tasks, servers that clients can't exhaust."""
