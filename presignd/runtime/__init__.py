"""What every long-running program here needs: heartbeats, tasks, systemd, outages told once."""
