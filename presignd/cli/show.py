"""How results look: tables on a terminal, tab-separated lines in a pipe, JSON when asked for."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from presignd.cli.guard import one_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def say(text: str) -> None:
    """Print one line for a person, on stderr."""
    print(one_line(text), file=sys.stderr)  # noqa: T201 - human text goes to stderr


def result(text: str) -> None:
    """Print one line of results on stdout, at once."""
    print(one_line(text), flush=True)  # noqa: T201 - results go to stdout


def row(cells: Iterable[str]) -> None:
    """Print one line of results on stdout, its cells apart by tabs."""
    print("\t".join(map(one_line, cells)), flush=True)  # noqa: T201 - results go to stdout


def document(found: Any, *, indent: int | None = 2) -> None:
    """Print one JSON document on stdout; ``indent`` None makes it one line. Names that are no UTF-8 are escaped."""
    text = json.dumps(found, indent=indent, ensure_ascii=False)
    sys.stdout.write(text.encode("utf-8", "backslashreplace").decode() + "\n")
    sys.stdout.flush()


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows on stdout under ``title`` (in a pipe each line begins with it); nothing where there are none."""
    listed = list(rows)
    if not listed:
        return
    if sys.stdout.isatty():
        _rich_table(title, columns, listed)
        return
    for cells in listed:
        row([title, *cells] if title else cells)


def _rich_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from rich.console import Console  # noqa: PLC0415 - only on a terminal
    from rich.table import Table  # noqa: PLC0415 - as above
    from rich.text import Text  # noqa: PLC0415 - as above

    shown = Table(
        title=title or None,
        show_header=any(columns),
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
    )
    for column in columns:
        shown.add_column(column, overflow="fold")
    for cells in rows:
        shown.add_row(*(Text(one_line(cell)) for cell in cells))
    Console().print(shown)


def size(count: float) -> str:
    """Render bytes for a person: "1.2 MB"."""
    from rich.filesize import decimal  # noqa: PLC0415 - only where a person reads

    return decimal(int(count))


def ago(time: str | None, now: datetime | None = None) -> str:
    """Render how long ago an RFC 3339 time was, "" for none: "12 s", "3 min", "2 h", "5 d"."""
    if not time:
        return ""
    passed = ((now or datetime.now(UTC)) - datetime.fromisoformat(time)).total_seconds()
    return span(max(0.0, passed))


def until(time: str | None, now: datetime | None = None) -> str:
    """Render in how long an RFC 3339 time is, "" for none, "now" when it is past."""
    if not time:
        return ""
    left = (datetime.fromisoformat(time) - (now or datetime.now(UTC))).total_seconds()
    return span(left) if left > 0 else "now"


def span(seconds: float) -> str:
    """Render seconds in the largest unit that holds two of them."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
