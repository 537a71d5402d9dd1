"""What an event source gives, and how it ends: the port that watchfiles and inotify stand behind.

A source is an async iterator of batches of absolute paths (``Hints``, or a plain list). Its first batch, an empty
one, says that from now on changes are seen; it yields at least once a second. It raises ``SourceEnded`` when it
can't go on: then events may be lost, and only a scan tells what is there. One that just ends saw its root go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from presignd.errors import PresigndError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

WATCHES, INSTANCES = "fs.inotify.max_user_watches", "fs.inotify.max_user_instances"


class Hints(list[bytes]):
    """Paths to look at; ``closed`` (below the root) are those that a writer just closed, or that were moved in."""

    def __init__(self, paths: Iterable[bytes] = (), closed: Collection[bytes] = ()) -> None:
        super().__init__(paths)
        self.closed = closed


class SourceEnded(PresigndError):
    """The source can't go on: events may be lost from here to the next scan. ``limit``: a system limit stops it."""

    code = "source_ended"

    def __init__(self, message: str, *, limit: str = "") -> None:
        super().__init__(message)
        self.limit = limit
