"""Lay out lines for a terminal: lines break between words, and columns line up where they fit. Pure.

Widths are in terminal cells (a Chinese character takes two). A word wider than the terminal, such as a long path,
stays whole: the terminal wraps it, and it can still be copied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

GAP = 2
"""Cells between two columns."""

BAR = 20
"""Cells of a progress bar, without its brackets."""


class Line(NamedTuple):
    """One line without its line end; Rich shows its first ``styled`` characters (None: all) in ``style``."""

    text: str
    style: str = ""
    styled: int | None = None


def cells(text: str) -> int:
    """Return how many cells ``text`` takes."""
    from rich.cells import cell_len  # noqa: PLC0415 - only on a terminal

    return cell_len(text)


def wrapped(text: str, width: int, *, indent: int = 0, hang: int | None = None, style: str = "") -> list[Line]:
    """Wrap ``text`` between words; later lines are indented by ``hang``, by default as the first."""
    lines, current = list[str](), " " * indent
    room = width - indent
    for word in text.split(" "):
        taken = cells(word)
        started = bool(current.strip())
        if started and taken + 1 > room:
            lines.append(current)
            current, started = " " * (indent if hang is None else hang), False
            room = width - len(current)
        current += f" {word}" if started else word
        room -= taken + started
    return [Line(line.rstrip(), style) for line in [*lines, current]]


def columns(titles: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[Line]:
    """Return rows in columns where they fit ``width``; else each row as a block, with a name and a value on each line.

    Rows of two cells without titles are names and values already: the values stand beside the names.
    """
    widths = [max(cells(row[at]) for row in [titles, *rows]) for at in range(len(titles))]
    if not any(titles) and len(titles) == 2:  # noqa: PLR2004 - a name and a value
        return _named(rows, widths[0], width)
    if sum(widths) + GAP * (len(widths) - 1) <= width:
        return [Line(_aligned(titles, widths), "bold"), *(Line(_aligned(row, widths)) for row in rows)]
    name_width = max(map(cells, titles)) + GAP
    blocks = ([Line(row[0], "bold"), *_named(_filled(titles, row), name_width, width, indent=GAP)] for row in rows)
    return [line for block in blocks for line in block]


def bar(part: float) -> str:
    """Return a progress bar for a part from 0 to 1."""
    full = int(max(0.0, min(1.0, part)) * BAR)
    return f"[{'#' * full}{'.' * (BAR - full)}]"


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    padded = (cell + " " * (width - cells(cell) + GAP) for cell, width in zip(row, widths, strict=True))
    return "".join(padded).rstrip()


def _filled(titles: Sequence[str], row: Sequence[str]) -> list[tuple[str, str]]:
    """Return the row's other cells with their titles, leaving out empty ones."""
    return [(title, cell) for title, cell in zip(titles[1:], row[1:], strict=True) if cell]


def _named(rows: Sequence[Sequence[str]], name_width: int, width: int, *, indent: int = 0) -> list[Line]:
    hang = indent + name_width + GAP
    lines = list[Line]()
    for name, value in rows:
        start = " " * indent + name + " " * (name_width - cells(name) + GAP)
        first, *others = wrapped(value, width, indent=hang)
        lines += [Line((start + first.text[hang:]).rstrip()), *others]
    return lines
