"""The presign broker: holds the keys, and hands each host the grants it may have."""
