"""Between a row of the version table and a ``FileVersion``; knows columns, not rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import Any

from presignd.model import FileVersion, Fingerprint, State

FINGERPRINT = tuple(field.name for field in fields(Fingerprint))
PLAIN = tuple(field.name for field in fields(FileVersion) if field.name != "fingerprint")
COLUMNS = (*FINGERPRINT, *PLAIN)
SELECT = f"SELECT {', '.join(COLUMNS)} FROM version"  # noqa: S608 - our own column names

_TIMES = ("queued_at", "not_before", "done_at", "signed_at", "expires_at", "gone_at")
_FLAGS = ("adopted", "announced")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_INTEGER = range(-(2**63), 2**63)


def version_of(row: tuple[Any, ...]) -> FileVersion:
    """Read one row of ``SELECT``."""
    values = dict(zip(COLUMNS, row, strict=True))
    fingerprint = Fingerprint(*(int(values.pop(name)) for name in FINGERPRINT))
    values["state"] = State(values["state"])
    for name in _TIMES:
        values[name] = from_micros(values[name])
    for name in _FLAGS:
        values[name] = bool(values[name])
    return FileVersion(fingerprint=fingerprint, **values)


def columns_of(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Turn changed fields of a ``FileVersion`` into columns and their SQL values.

    Raises ``TypeError`` for a name that is no field, or that moves the version.
    """
    changes = dict(changes)
    fingerprint: Fingerprint | None = changes.pop("fingerprint", None)
    if unknown := changes.keys() - PLAIN | changes.keys() & {"state", "file_id"}:
        raise TypeError(f"not to be changed like this: {', '.join(sorted(unknown))}")
    if fingerprint is not None:
        changes |= {name: getattr(fingerprint, name) for name in FINGERPRINT}
    return {name: to_sql(value) for name, value in changes.items()}


def to_sql(value: Any) -> Any:
    """Return what SQLite can hold: microseconds for times, text for integers beyond 64 bits.

    Lone surrogates (from names that are no UTF-8) are escaped: SQLite's text has none.
    """
    match value:
        case datetime():
            return to_micros(value)
        case bool():
            return int(value)
        case int() if value not in _INTEGER:
            return str(value)
        case str():
            return value.encode("utf-8", "backslashreplace").decode()
        case _:
            return value


def to_micros(time: datetime) -> int:
    """Return microseconds since 1970 UTC; a naive datetime raises ``TypeError``."""
    return (time - _EPOCH) // _MICROSECOND


def from_micros(micros: int | None) -> datetime | None:
    """Return the time in UTC, None for None."""
    return None if micros is None else _EPOCH + micros * _MICROSECOND
