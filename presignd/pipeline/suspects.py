"""Suspects: versions that were in flight when a run ended uncleanly, any of which may have caused it.

They are sent before all others, one at a time. So if one kills the daemon, that exit counts against no other version
(``Ledger.release``).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

from presignd.ledger import Suspect
from presignd.model import FileVersion, State

LONGEST_WAIT = 30.0
"""How long other versions wait so that a suspect can be alone, in seconds after it was first due while others uploaded.
Only a suspect that waited for a retry or a blocked watch can meet others. After this time it is sent together with
them: a large upload may take hours, and one retry may follow another. At the next start nothing else is uploading."""


class Turn(NamedTuple):
    """What may be claimed now: this suspect and nothing else, or all others, or (neither) nothing."""

    suspect: FileVersion | None = None
    others: bool = False


class Suspects:
    """The suspects that are left, in the order in which they are sent; a reload keeps them.

    ``_waits_until``: when each that was due while others uploaded stops making others wait.
    """

    def __init__(self) -> None:
        self._left: dict[str, None] = {}
        self._waits_until: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._left)

    def add(self, file_ids: Iterable[str]) -> None:
        """Add suspects, by file_id."""
        self._left |= dict.fromkeys(file_ids)

    @property
    def file_ids(self) -> Collection[str]:
        """The file_ids of those that are left."""
        return self._left.keys()

    def turn(self, found: Iterable[Suspect], uploading: int, may_send: Callable[[str], bool], now: float) -> Turn:
        """Decide what is claimed next, and forget versions that are no suspects any more.

        ``found`` are those of ``file_ids`` that still are, ``uploading`` is the number of all versions that upload now,
        ``may_send`` returns whether a watch may send, ``now`` is monotonic, in seconds. A suspect that waits for a
        retry or whose watch may not send holds up nothing.
        """
        by_id = {one.version.file_id: one for one in found}
        self._left = {file_id: None for file_id in self._left if file_id in by_id}
        if uploading == 1 and any(one.version.state is State.UPLOADING for one in by_id.values()):
            return Turn()
        in_order = [by_id[file_id] for file_id in self._left]
        due = [one.version for one in in_order if one.due and may_send(one.version.watch)]
        if due and not uploading:
            return Turn(due[0])
        ends = [self._waits_until.setdefault(version.file_id, now + LONGEST_WAIT) for version in due]
        return Turn(others=all(now >= end for end in ends))
