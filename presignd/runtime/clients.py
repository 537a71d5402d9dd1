"""Decide how many clients a server accepts, which it refuses, and which it closes for a new one. Pure.

A server has two ways to stay usable while strangers connect. If an exchange may be long and must not be cut off (on the
control socket, or a stream of the status page), a ``Quota`` limits each client, and reserves places for the privileged.
If connections may be idle (HTTP), refusing the new one would let a stranger's idle connections lock out everybody,
probes included: so ``Connections`` names the one to close.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

_T = TypeVar("_T", bound=Hashable)


@dataclass
class Quota:
    """At most ``total`` places at a time, ``reserved`` of them for the privileged, and ``each`` for any other client.

    The privileged may take all free places.
    """

    total: int
    reserved: int
    each: int
    taken: Counter[Hashable] = field(default_factory=Counter)
    others: int = 0
    """Places taken by clients that are not privileged."""

    def take(self, who: Hashable, *, privileged: bool) -> bool:
        """Take a place for ``who``; return False if there is none."""
        full = self.taken.total() >= self.total
        if not privileged:
            full = full or self.taken[who] >= self.each or self.others >= self.total - self.reserved
        if full:
            return False
        self.taken[who] += 1
        self.others += not privileged
        return True

    def give_back(self, who: Hashable, *, privileged: bool) -> None:
        """Give back a place that was taken."""
        self.taken[who] -= 1
        self.others -= not privileged
        if not self.taken[who]:
            del self.taken[who]


@dataclass(slots=True)
class _Use:
    order: int
    is_known: bool = False
    answers: int = 0


class Connections:
    """Remembers when each connection was last used, and whether by a known client (one with a token)."""

    def __init__(self) -> None:
        self._uses: dict[Hashable, _Use] = {}
        self._order = 0

    def used(self, connection: Hashable, *, known: bool = False) -> None:
        """Note a new connection, or a request on it; once ``known``, it stays known."""
        self._order += 1
        use = self._uses.setdefault(connection, _Use(self._order))
        use.order = self._order
        use.is_known |= known

    @contextmanager
    def answering(self, connection: Hashable) -> Iterator[None]:
        """Keep a connection open while its answer is in progress; the number of these is limited elsewhere."""
        self.used(connection)
        use = self._uses[connection]
        use.answers += 1
        try:
            yield
        finally:
            use.answers -= 1

    def to_close(self, present: Iterable[_T]) -> _T | None:
        """Return which of the connections ``present`` must be closed: strangers' first, then the one idle longest.

        Returns None if all have an answer in progress. Connections that are gone are forgotten.
        """
        there = list(present)
        before, self._uses = self._uses, {}
        for connection in there:
            if connection in before:
                self._uses[connection] = before[connection]
            else:
                self.used(connection)
        free = [connection for connection in there if not self._uses[connection].answers]
        return min(free, key=lambda one: (self._uses[one].is_known, self._uses[one].order), default=None)
