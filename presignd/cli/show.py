"""Print results: tables on a terminal, tab-separated lines in a pipe, JSON on request."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING, Any

from presignd.cli import layout, streams
from presignd.cli.layout import Line
from presignd.cli.streams import clean
from presignd.redaction.redact import redact_texts
from presignd.redaction.text import json_text, one_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.text import Text


def say(text: str, *, as_is: bool = False) -> None:
    """Print one line for a person, on stderr; ``as_is`` does not redact the address that was requested."""
    streams.say(one_line(text) if as_is else clean(text))


def result(text: str, *, as_is: bool = False) -> None:
    """Print one line of results on stdout, at once; ``as_is`` does not redact the link or token that was requested."""
    streams.write(one_line(text) if as_is else clean(text))


def row(cells: Iterable[str]) -> None:
    """Print one line of results on stdout, its cells separated by tabs."""
    streams.write("\t".join(map(clean, cells)))


def document(found: Any, *, indent: int | None = 2, as_is: bool = False) -> None:
    """Print one JSON document on stdout, on one line with ``indent=None``; ``as_is`` as in ``result``."""
    streams.write(json_text(found if as_is else redact_texts(found), indent=indent))


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows on stdout under ``title`` (in a pipe each line begins with it); without rows print nothing."""
    listed = list(rows)
    if not listed:
        return
    if sys.stdout.isatty():
        plain = [[clean(cell) for cell in cells] for cells in listed]
        lines([*([Line(title, "bold")] if title else []), *layout.columns(columns, plain, width())])
        return
    for cells in listed:
        row([title, *cells] if title else cells)


def lines(shown: Iterable[Line]) -> None:
    """Print lines on a terminal's stdout, in colour unless NO_COLOR or the terminal forbids it."""
    from rich.console import Console  # noqa: PLC0415 - only on a terminal

    console = Console(highlight=False, soft_wrap=True)
    with streams.writing():
        for line in shown:
            console.print(text_of(line))


def text_of(line: Line) -> Text:
    """Return a line with its style, as Rich prints it."""
    from rich.text import Text  # noqa: PLC0415 - only on a terminal

    text = Text(line.text)
    text.stylize(line.style, 0, line.styled)
    return text


def qr_code(link: str) -> None:
    """Print the QR code of a link on stdout; on a terminal that is too narrow, say how wide it must be."""
    from presignd import qr  # noqa: PLC0415 - only where one is asked for

    try:
        needed = qr.columns(link)
    except ValueError:
        say(f"the link is too long for a QR code: it has {len(link)} characters")
        return
    if sys.stdout.isatty() and width() < needed:
        say(f"the QR code is {needed} columns wide, this terminal {width()}: make it wider, or its font smaller")
        return
    for line in qr.for_terminal(link):
        streams.write(line)


def width() -> int:
    """Return the width of this terminal in cells."""
    return shutil.get_terminal_size().columns
