"""``rate``: a token bucket for each token, in this broker alone: several brokers allow as many times the rate."""

from __future__ import annotations

from math import ceil


class Rates:
    """Counts grants by token name.

    A second's worth may be saved up. A batch goes as a whole once anything is left, however large, and what
    it takes too much is waited for afterwards: so a batch of any size gets through, and the rate holds over
    time.
    """

    def __init__(self) -> None:
        self._left: dict[str, tuple[float, float]] = {}

    def take(self, name: str, rate: float | None, count: int, now: float) -> int:
        """Take ``count`` grants at ``now`` (monotonic seconds); return 0, or in how many seconds to ask again."""
        if rate is None:
            return 0
        most = max(rate, 1.0)
        left, at = self._left.get(name, (most, now))
        left = min(most, left + (now - at) * rate)
        if left < 1.0:
            self._left[name] = left, now
            return max(1, ceil((1.0 - left) / rate))
        self._left[name] = left - count, now
        return 0
