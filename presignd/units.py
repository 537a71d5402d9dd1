"""Parse and format durations, sizes, rates and times. Pure.

Durations are seconds, sizes bytes. ``parse_…`` reads ``"90s" "7d" "64MiB" "5GB" "200/s"`` and raises ``ValueError``
with a text for the user; ``format_…`` writes exactly what ``parse_…`` reads back. ``short_…``, ``ago`` and ``until``
round for people, in the status page as in the commands.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from decimal import Decimal

DAY = 86400.0
"""Seconds."""

_DURATIONS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_DURATION = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:ms|d|h|m|s))+")
_DURATION_PART = re.compile(r"([0-9.]+)(ms|d|h|m|s)")
_RATE = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?/ ?(s|m|h)")
_LONGEST = 36500 * DAY

_PREFIXES = "KMGTP"
_SIZES = {f"{prefix}iB": 1024**n for n, prefix in enumerate(_PREFIXES, 1)}
_SIZES |= {f"{prefix}B": 1000**n for n, prefix in enumerate(_PREFIXES, 1)} | {"B": 1}
_SIZES = dict(sorted(_SIZES.items(), key=lambda item: -item[1]))
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]*)")
_LARGEST = 1 << 63


def rfc3339(time: datetime) -> str:
    """Return ``time`` in UTC with microseconds: "2026-03-04T05:06:07.891011Z"."""
    utc = time if time.tzinfo is UTC else time.astimezone(UTC)
    return utc.isoformat(timespec="microseconds")[:26] + "Z"


# --- as people write them -------------------------------------------------------------------------
def parse_duration(value: object) -> float:
    """Return the seconds of ``"500ms" "90s" "15m" "1h30m" "7d"``, or of a plain number of seconds.

    Raises ``ValueError`` for anything else, below zero, or over a hundred years.
    """
    seconds = _number(value) if not isinstance(value, str) else _duration_text(value.strip())
    if seconds is None or seconds < 0:
        raise ValueError('must be a duration such as "90s", "15m", "1h" or "7d"')
    if seconds > _LONGEST:
        raise ValueError("is longer than a hundred years")
    return float(seconds)


def parse_whole_seconds(value: object) -> int:
    """Return ``parse_duration`` where only whole seconds make sense, as in a signed expiry."""
    seconds = parse_duration(value)
    if not seconds.is_integer():
        raise ValueError("must be whole seconds")
    return int(seconds)


def parse_size(value: object) -> int:
    """Return the bytes of ``"64MiB" "5GB" "100B"`` (any case), or of a plain whole number of bytes.

    KiB, MiB, … are powers of 1024; KB, MB, … of 1000. A bare K or M is refused, for it is read both ways.
    Raises ``ValueError``.
    """
    size = _number(value) if not isinstance(value, str) else _size_text(value.strip())
    if size is None or not 0 <= size < _LARGEST:
        raise ValueError('must be a size such as "64MiB", "5GB" or "1000B"')
    if size != int(size):
        raise ValueError("must come to whole bytes")
    return int(size)


def parse_rate(value: object) -> float:
    """Return how many a second ``"200/s" "1000/m" "5000/h"`` are; raises ``ValueError`` for anything else."""
    match = _RATE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None or not float(match[1]):
        raise ValueError('must be a rate such as "200/s", "1000/m" or "5000/h"')
    return float(match[1]) / _DURATIONS[match[2]]


def format_rate(rate: float) -> str:
    """Return ``rate`` (a second) in the unit that has it whole, which ``parse_rate`` reads back."""
    for unit in ("s", "m", "h"):
        if (count := rate * _DURATIONS[unit]).is_integer():
            return f"{int(count)}/{unit}"
    return f"{_plain(Decimal(repr(rate)))}/s"


def format_duration(seconds: float) -> str:
    """Return the shortest exact text in one unit that ``parse_duration`` reads back as ``seconds``."""
    for unit, factor in _DURATIONS.items():
        if seconds and seconds % factor == 0:
            return f"{int(seconds // factor)}{unit}"
    milliseconds = Decimal(repr(float(seconds))) * 1000
    return f"{_plain(milliseconds)}ms" if milliseconds else "0s"


def format_size(size: int) -> str:
    """Return ``size`` in the largest unit that holds it exactly; ``parse_size`` reads it back."""
    for unit, factor in _SIZES.items():
        if size and size % factor == 0:
            return f"{size // factor}{unit}"
    return f"{size}B"


# --- as people read them --------------------------------------------------------------------------
def short_size(size: float) -> str:
    """Return bytes in the largest decimal unit, with three digits at least: "999 bytes", "1.2 MB", "123 kB"."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":  # noqa: PLR2004 - the step between decimal units
            break
        size /= 1000
    if unit == "bytes" or size >= 100:  # noqa: PLR2004 - three digits
        return f"{size:.0f} {'byte' if (size, unit) == (1, 'bytes') else unit}"
    return f"{size:.1f} {unit}"


def short_duration(seconds: float) -> str:
    """Return full units of the largest that fits twice: "119 s", "2 min"; the page's ``live.js`` has the same rule."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{int(seconds // length)} {unit}"
    return f"{int(seconds)} s"


def ago(time: str | None, now: datetime) -> str:
    """Return the time from an RFC 3339 time to ``now``, "" for none."""
    return short_duration(max(0.0, -seconds_until(time, now))) if time else ""


def until(time: str | None, now: datetime) -> str:
    """Return the time from ``now`` to an RFC 3339 time, "" for none, "now" when it has passed."""
    if not time:
        return ""
    left = seconds_until(time, now)
    return short_duration(left) if left > 0 else "now"


def seconds_until(time: str, now: datetime) -> float:
    """Return the seconds from ``now`` to an RFC 3339 time, below zero when it has passed."""
    return (datetime.fromisoformat(time) - now).total_seconds()


# --- parsing ----------------------------------------------------------------------------------------
def _number(value: object) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return Decimal(value)


def _duration_text(text: str) -> Decimal | None:
    if re.fullmatch(r"[0-9]+", text):
        return Decimal(text)
    if not _DURATION.fullmatch(text):
        return None
    return sum((_scaled(number, unit) for number, unit in _DURATION_PART.findall(text)), Decimal(0))


def _scaled(number: str, unit: str) -> Decimal:
    return Decimal(number) / 1000 if unit == "ms" else Decimal(number) * _DURATIONS[unit]


def _size_text(text: str) -> Decimal | None:
    match = _SIZE.fullmatch(text)
    if match is None:
        return None
    number, unit = match.groups()
    factor = {name.lower(): factor for name, factor in _SIZES.items()}.get(unit.lower() or "b")
    return None if factor is None else Decimal(number) * factor


def _plain(number: Decimal) -> str:
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
