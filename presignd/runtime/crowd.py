"""Which connection makes room for a new one, once a server has as many as it may have. Pure.

Turning the new one away would let whoever holds idle connections keep everybody else out, probes included.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

_T = TypeVar("_T", bound=Hashable)


@dataclass(slots=True)
class _Guest:
    order: int
    is_known: bool = False
    kept: int = 0


class Crowd:
    """Remembers of each connection when it last asked for something, and whether it is somebody's who may."""

    def __init__(self) -> None:
        self._guests: dict[Hashable, _Guest] = {}
        self._order = 0

    def came(self, who: Hashable, *, known: bool = False) -> None:
        """Note that a connection came, or asked for something; once ``known``, it stays so."""
        self._order += 1
        guest = self._guests.setdefault(who, _Guest(self._order))
        guest.order = self._order
        guest.is_known |= known

    @contextmanager
    def kept(self, who: Hashable) -> Iterator[None]:
        """Have a connection stay while its answer is under way: such are bounded elsewhere."""
        self.came(who)
        guest = self._guests[who]
        guest.kept += 1
        try:
            yield
        finally:
            guest.kept -= 1

    def to_leave(self, there: Iterable[_T]) -> _T | None:
        """Return which of the connections ``there`` is to leave: a stranger's before others, the longest quiet first.

        None where all are kept. What is there no more is forgotten.
        """
        present = list(there)
        before, self._guests = self._guests, {}
        for who in present:
            if who in before:
                self._guests[who] = before[who]
            else:
                self.came(who)
        free = [who for who in present if not self._guests[who].kept]
        return min(free, key=lambda who: (self._guests[who].is_known, self._guests[who].order), default=None)
