"""How many descriptors this process has open."""

from __future__ import annotations

from pathlib import Path


def open_descriptors() -> int:
    """Return the number of open descriptors, including the one used to count them."""
    return len(list(Path("/proc/self/fd").iterdir()))
