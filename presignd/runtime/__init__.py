"""What a long-running program needs: signals, systemd, heartbeats, tasks, servers with limits on clients."""
