"""A bar chart as SVG, with its figures in words for screen readers. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from presignd.pages.html import Html, join, tag

HEIGHT, STEP = 80, 10


class Bar(NamedTuple):
    """One bar: its value, and the words of its tooltip."""

    value: float
    words: str


def bars(found: Sequence[Bar], label: str) -> Html:
    """Return each bar as high as its share of the highest; ``label`` says in words what the chart shows."""
    highest, width = max((bar.value for bar in found), default=0), len(found) * STEP
    drawn = join(*(_bar(place, bar, highest) for place, bar in enumerate(found)))
    base = tag("line", x1=0, y1=HEIGHT - 0.5, x2=width, y2=HEIGHT - 0.5, class_="base")
    # Stretched to any width: the words stand beside it.
    box = f"0 0 {width} {HEIGHT}"
    return tag("svg", base, drawn, viewBox=box, preserveAspectRatio="none", role="img", aria_label=label)


def _bar(place: int, bar: Bar, highest: float) -> Html | None:
    if not bar.value:
        return None
    height = max(1.5, bar.value / highest * (HEIGHT - 2))
    x, y = place * STEP + 1, round(HEIGHT - height, 1)
    return tag("rect", tag("title", bar.words), x=x, y=y, width=STEP - 2, height=round(height, 1))
