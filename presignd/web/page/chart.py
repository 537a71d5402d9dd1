"""The last hour's throughput as an SVG chart, and in words for screen readers. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from presignd.pages.html import Html, count, join, tag
from presignd.units import short_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from presignd.web.snapshots import Minute

WIDTH, HEIGHT, STEP = 600, 80, 10


def chart(minutes: Sequence[Minute]) -> Html:
    """Return one bar a minute, as high as its share of the busiest, each with its figures as a tooltip."""
    highest = max((minute.sent for minute in minutes), default=0)
    bars = join(*(_bar(place, minute, highest) for place, minute in enumerate(minutes)))
    base = tag("line", x1=0, y1=HEIGHT - 0.5, x2=WIDTH, y2=HEIGHT - 0.5, class_="base")
    # Stretched to any width: the words stand beside it.
    return tag(
        "svg",
        base,
        bars,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        preserveAspectRatio="none",
        role="img",
        aria_label=in_words(minutes),
    )


def in_words(minutes: Sequence[Minute]) -> str:
    """Return what the chart shows, in words."""
    files, sent = sum(m.files for m in minutes), sum(m.sent for m in minutes)
    if not files and not sent:
        return "Nothing was uploaded in the last hour."
    best = max(minutes, key=lambda minute: minute.sent)
    busiest = f", {short_size(best.sent)} in the busiest minute, {_clock(best)} UTC" if best.sent else ""
    return f"{count(files, 'file')} with {short_size(sent)} in the last hour{busiest}."


def _bar(place: int, minute: Minute, highest: int) -> Html | None:
    if not minute.sent:
        return None
    height = max(1.5, minute.sent / highest * (HEIGHT - 2))
    words = f"{_clock(minute)} UTC: {short_size(minute.sent)}, {count(minute.files, 'file')}"
    title = tag("title", words)
    return tag("rect", title, x=place * STEP + 1, y=round(HEIGHT - height, 1), width=STEP - 2, height=round(height, 1))


def _clock(minute: Minute) -> str:
    return datetime.fromtimestamp(minute.began, UTC).strftime("%H:%M")
