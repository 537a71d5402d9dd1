"""The last hour's throughput as a chart, and in words for screen readers. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from presignd.pages.chart import Bar, bars
from presignd.pages.html import Html, count
from presignd.units import short_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from presignd.web.snapshots import Minute


def chart(minutes: Sequence[Minute]) -> Html:
    """Return one bar a minute, as high as the bytes sent."""
    return bars([Bar(minute.sent, _figures(minute)) for minute in minutes], in_words(minutes))


def in_words(minutes: Sequence[Minute]) -> str:
    """Return what the chart shows, in words."""
    files, sent = sum(m.files for m in minutes), sum(m.sent for m in minutes)
    if not files and not sent:
        return "Nothing was uploaded in the last hour."
    best = max(minutes, key=lambda minute: minute.sent)
    busiest = f", {short_size(best.sent)} in the busiest minute, {_clock(best)} UTC" if best.sent else ""
    return f"{count(files, 'file')} with {short_size(sent)} in the last hour{busiest}."


def _figures(minute: Minute) -> str:
    return f"{_clock(minute)} UTC: {short_size(minute.sent)}, {count(minute.files, 'file')}"


def _clock(minute: Minute) -> str:
    return datetime.fromtimestamp(minute.began, UTC).strftime("%H:%M")
