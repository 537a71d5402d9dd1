"""Who may have how many of a server's connections at a time. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field


@dataclass
class Seats:
    """Counts connections by who has them: ``each`` at most for one, and ``kept`` of ``total`` for the privileged alone.

    The privileged may have all that is free.
    """

    total: int
    kept: int
    each: int
    taken: Counter[Hashable] = field(default_factory=Counter)
    others: int = 0
    """How many are taken by those who aren't privileged."""

    def take(self, who: Hashable, *, privileged: bool) -> bool:
        """Take one for ``who``; False where there is none for him."""
        full = self.taken.total() >= self.total
        if not privileged:
            full = full or self.taken[who] >= self.each or self.others >= self.total - self.kept
        if full:
            return False
        self.taken[who] += 1
        self.others += not privileged
        return True

    def give(self, who: Hashable, *, privileged: bool) -> None:
        """Give back one that ``take`` gave."""
        self.taken[who] -= 1
        self.others -= not privileged
        if not self.taken[who]:
            del self.taken[who]
