"""The values that the ledger takes and returns, and their conversion from and to rows of the version table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import itemgetter
from typing import Any, NamedTuple

from presignd.model import FileVersion, Fingerprint, NewVersion, State
from presignd.states import Event, after
from presignd.system.clock import from_micros, to_micros


class LostUpdate(RuntimeError):
    """A version was not in the state that its update named: its state changed before, or there is a bug."""


class Enqueued(NamedTuple):
    """The result of ``enqueue``: the version as recorded, and the one that it superseded, if any.

    ``previous``: for a version that was claimed as well, what ``Claimed`` has.
    """

    version: FileVersion
    superseded: FileVersion | None = None
    previous: FileVersion | None = None


class Claimed(NamedTuple):
    """A version that may be sent now, and the newest verified one before it under its key (``previous_receipt``)."""

    version: FileVersion
    previous: FileVersion | None


class Suspect(NamedTuple):
    """A version that was in flight at an unclean exit and made no progress since, and whether it may be sent now."""

    version: FileVersion
    due: bool


@dataclass(frozen=True, slots=True)
class WatchSummary:
    """One watch's numbers for ``status``: versions by state, and when the oldest queued one was queued."""

    watch: str
    counts: Mapping[State, int]
    oldest_queued_at: datetime | None


@dataclass(frozen=True, slots=True)
class Selection:
    """Which quarantined versions ``retry`` takes back: those that match every given field (``path`` with its watch)."""

    path: tuple[str, bytes] | None = None
    watch: str | None = None
    error_code: str | None = None


FINGERPRINT = Fingerprint._fields
OTHER_COLUMNS = tuple(name for name in FileVersion._fields if name != "fingerprint")
COLUMNS = (*FINGERPRINT, *OTHER_COLUMNS)
_PLACES = {name: place for place, name in enumerate(FileVersion._fields)}
CHANGEABLE = frozenset(FileVersion._fields) - {"state", "file_id"}
"""Fields that a change may name; only events change the state."""

SELECT = f"SELECT {', '.join(COLUMNS)} FROM version"  # noqa: S608 - our own column names

_TIMES = [*map(OTHER_COLUMNS.index, ("queued_at", "not_before", "done_at", "signed_at", "expires_at", "gone_at"))]
_NEW_FIELDS = (
    *("file_id", "watch", "path", "bucket", "base_key", "key", "content_type", "priority"),
    *("attempt", "etag", "error_code", "error"),
)
NEW_COLUMNS = (*_NEW_FIELDS, "state", "queued_at", *FINGERPRINT)
_as_it_is = itemgetter(*map(_PLACES.__getitem__, _NEW_FIELDS))
_FLAGS = [*map(OTHER_COLUMNS.index, ("adopted", "announced", "linked"))]
_STATE = OTHER_COLUMNS.index("state")
_FINGERPRINT_INDEX = FileVersion._fields.index("fingerprint")
_LEAST, _MOST = -(2**63), 2**63 - 1


def version_of(row: tuple[Any, ...]) -> FileVersion:
    """Return the version in a row of ``SELECT``."""
    values = [*row[len(FINGERPRINT) :]]
    for place in _TIMES:
        values[place] = from_micros(values[place])
    for place in _FLAGS:
        values[place] = bool(values[place])
    values[_STATE] = State(values[_STATE])
    values.insert(_FINGERPRINT_INDEX, Fingerprint(*map(int, row[: len(FINGERPRINT)])))
    return FileVersion(*values)


def with_fields(versions: Sequence[FileVersion], fields: Mapping[str, Sequence[Any]]) -> list[FileVersion]:
    """Return versions with new values of their fields, given as columns, as they will be read back."""
    rows = [[*version] for version in versions]
    for name, column in fields.items():
        if name in _PLACES:
            place = _PLACES[name]
            for row, value in zip(rows, column, strict=True):
                row[place] = to_sql(value) if type(value) is str else value
    return [*map(FileVersion._make, rows)]


def as_recorded(new: NewVersion, key: str | None, intent: str | None = None) -> FileVersion:
    """Return a new version with ``key`` as it will be read back: claimed, if it is queued with an ``intent``."""
    state, attempt, etag = new.state, 0, ""
    if intent is not None and state is State.QUEUED:
        state, attempt, etag = after(state, Event.CLAIM), 1, etag_of(intent)
    return FileVersion(
        *(new.file_id, new.watch, new.path, new.fingerprint, state, new.bucket, to_sql(new.key), key),
        *(new.content_type, new.priority, new.queued_at, attempt),
        etag=etag,
        error_code=new.error_code,
        error=to_sql(new.error),
    )


def etag_of(intent: str) -> str:
    """Return an intent as a claimed version's ``etag`` (``FileVersion``)."""
    return intent.removeprefix("md5:")


def row_of_new(version: FileVersion) -> list[Any]:
    """Return the SQL values of a version from ``as_recorded``, in the order of ``NEW_COLUMNS``."""
    converted = (str(version.state), to_micros(version.queued_at), *map(to_sql, version.fingerprint))
    return [*_as_it_is(version), *converted]


def to_sql(value: Any) -> Any:
    """Return what SQLite can hold: microseconds for times, text for integers beyond 64 bits.

    Lone surrogates (from names that are no UTF-8) are escaped: SQLite's text can't hold them.
    """
    if isinstance(value, str):
        return str(value) if value.isascii() else value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, int):  # a bool, too
        return int(value) if _LEAST <= value <= _MOST else str(value)
    return to_micros(value) if isinstance(value, datetime) else value
