"""HTML elements: every text is escaped, unless it is ``Html`` already. Pure."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import TypeVar

from presignd.redaction.redact import redact
from presignd.units import seconds_until, short_duration

_VOID = frozenset({"img", "input", "link", "meta"})
_T = TypeVar("_T")


class Html(str):
    """Text that is markup."""

    __slots__ = ()


def tag(element: str, /, *children: str | None, **attributes: str | float | bool | None) -> Html:
    """Return an element: ``class_`` and ``data_x`` stand for ``class`` and ``data-x``; False and None leave out."""
    given = "".join(_attribute(key, value) for key, value in attributes.items() if value is not None)
    closing = "" if element in _VOID else f"{join(*children)}</{element}>"
    return Html(f"<{element}{given}>{closing}")


def join(*parts: str | None) -> Html:
    """Concatenate the parts; texts are escaped."""
    return Html("".join(part if isinstance(part, Html) else html.escape(part) for part in parts if part))


def _attribute(key: str, value: str | float | bool) -> str:
    name = key.rstrip("_").replace("_", "-")
    if isinstance(value, bool):
        return f" {name}" if value else ""
    return f' {name}="{html.escape(str(value))}"'


def shown(name: str) -> str:
    r"""Return a file's name for display: redacted, with invalid UTF-8 and unprintable characters as escapes."""
    text = redact(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() or c == "\u200d" else ascii(c)[1:-1] for c in text)


def name_of(path: str) -> Html:
    """Return a file's name in ``<bdi>``, so that it can't change the direction of the text around it."""
    return tag("bdi", shown(path), class_="name")


def ago(time: str | None, now: datetime) -> Html | None:
    """Return how long ago an RFC 3339 time was, or None; JavaScript keeps it up to date."""
    return _time(time, now, 1) if time else None


def until(time: str | None, now: datetime) -> Html | None:
    """Return how long it is until a time, or None; JavaScript counts down."""
    return _time(time, now, -1) if time else None


def _time(time: str, now: datetime, direction: int) -> Html:
    seconds = -seconds_until(time, now) * direction
    kind = "ago" if direction > 0 else "until"
    whole = datetime.fromisoformat(time).astimezone(UTC).isoformat(" ", "seconds")
    return tag("time", short_duration(max(0.0, seconds)), datetime=time, data_kind=kind, title=whole)


def count(number: int, noun: str) -> str:
    """Return "1 file", "1,234 files"."""
    return f"{number:,} {noun}" + "s" * (number != 1)


def titled(title: str, *content: Html | None) -> Html:
    """Return a title and its content, or nothing if there is no content."""
    return join(tag("h2", title), *content) if any(content) else Html("")


def listed(
    found: Sequence[_T],
    item: Callable[[_T], Html],
    *,
    most: int,
    more: str,
    total: int = 0,
    class_: str | None = None,
) -> Html:
    """Return a list of the first ``most``, and how many more of ``total`` there are: ``more`` is where they are."""
    items: Iterable[Html] = (tag("li", item(each)) for each in found[:most])
    left = max(total, len(found)) - most
    below = tag("p", f"and {left:,} more: ", tag("code", more)) if left > 0 else None
    return join(tag("ul", *items, class_=class_), below) if found else Html("")


def figure(words: str, value: str) -> Html:
    """Return one figure of a ``<dl>``."""
    return tag("div", tag("dt", words), tag("dd", value))
