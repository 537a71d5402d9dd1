"""How many descriptors this process has open."""

from __future__ import annotations

from pathlib import Path


def open_descriptors() -> int:
    """Count them; the one it takes to count is among them."""
    return len(list(Path("/proc/self/fd").iterdir()))
