"""Durations and sizes as people write them: ``"90s" "15m" "1h" "7d"``, ``"64MiB" "5GB"``. Pure."""
