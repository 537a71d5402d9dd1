"""How much went through in each minute of the last hour. Pure: times are given, in seconds since 1970."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

MINUTES = 60


@dataclass(frozen=True, slots=True)
class Minute:
    """One minute: when it began, and the bytes and files of it."""

    began: int
    sent: int
    files: int


class Throughput:
    """Each file's bytes count once: as they are seen to move, and what was not seen when its link is there."""

    def __init__(self) -> None:
        self._sent: dict[int, int] = defaultdict(int)
        self._files: dict[int, int] = defaultdict(int)
        self._seen: dict[str, int] = {}

    def moving(self, sent: Mapping[str, int], now: float) -> None:
        """Hear how far each upload under way is, by its file_id; those that are no more there are forgotten."""
        for file_id, total in sent.items():
            self._sent[_minute(now)] += max(0, total - self._seen.get(file_id, 0))
        self._seen = {file_id: max(total, self._seen.get(file_id, 0)) for file_id, total in sent.items()}
        self._forget(now)

    def linked(self, file_id: str, size: int, when: float) -> None:
        """Hear of a link."""
        self._sent[_minute(when)] += max(0, size - self._seen.get(file_id, 0))
        self._files[_minute(when)] += 1
        self._seen[file_id] = size

    def minutes(self, now: float) -> list[Minute]:
        """Return the last hour, oldest first; the last one is still going on."""
        last = _minute(now)
        return [
            Minute(m * 60, self._sent.get(m, 0), self._files.get(m, 0)) for m in range(last - MINUTES + 1, last + 1)
        ]

    def _forget(self, now: float) -> None:
        for counts in (self._sent, self._files):
            for minute in [known for known in counts if known <= _minute(now) - MINUTES]:
                del counts[minute]


def _minute(time: float) -> int:
    return int(time // 60)
