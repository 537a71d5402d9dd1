"""Versions for tests of the ledger and of its users."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from presignd.ledger import Ledger
from presignd.ledger.changes import Change, Claim
from presignd.model import FileVersion, Fingerprint, LinksMark, NewVersion, State
from presignd.states import Event

NOW = datetime(2026, 3, 4, 5, 6, 7, 891011, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)
MARK = LinksMark(inode=7, offset=100)
PRINT = Fingerprint(ino=11, size=5, mtime_ns=1_700_000_000_123_456_789, ctime_ns=1_700_000_000_123_456_790)

_count = iter(range(10**9))


def new(path: bytes = b"a.txt", **given: Any) -> NewVersion:
    """Make a settled version; its key is its path unless one is given."""
    defaults: dict[str, Any] = {
        "file_id": f"id-{next(_count)}",
        "watch": "drop",
        "fingerprint": PRINT,
        "bucket": "bucket",
        "key": path.decode("utf-8", "backslashreplace"),
        "content_type": "text/plain",
        "priority": 0,
        "queued_at": NOW,
    }
    return NewVersion(path=path, **(defaults | given))


def in_state(state: State, path: bytes = b"a.txt", **given: Any) -> FileVersion:
    """Make a version as the ledger would have it; its key is its path unless one is given."""
    key = given.pop("key", path.decode("utf-8", "backslashreplace"))
    defaults: dict[str, Any] = {
        "file_id": "id",
        "watch": "drop",
        "fingerprint": PRINT,
        "bucket": "bucket",
        "base_key": key,
        "key": key,
        "content_type": "text/plain",
        "priority": 0,
        "queued_at": NOW,
    }
    return FileVersion(path=path, state=state, **(defaults | given))


def linking(version: FileVersion, **fields: Any) -> Change:
    """Return the change of a version whose link was made, and that is finished as well if it is given ``done_at``."""
    return Change(version, (Event.LINK, Event.FINISH) if "done_at" in fields else (Event.LINK,), fields)


async def claim(ledger: Ledger, watch: str, limit: int, now: datetime, **more: Any) -> list[FileVersion]:
    """Claim up to ``limit`` due versions of ``watch``, as the dispatcher does; return them."""
    due = await ledger.due(watch, limit, now, **more)
    return [claimed.version for claimed in await ledger.claim([Claim(version) for version in due]) if claimed]
