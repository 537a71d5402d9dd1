"""Text that no terminal and no reader of lines acts on: names and answers come from others. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any


def one_line(text: str) -> str:
    r"""Escape what would break the line, play with a terminal or turn the reading direction.

    A byte of a name that is no UTF-8 is told as ``\xff``, as in the log.
    """
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def json_text(value: Any, *, indent: int | None = None, default: Callable[[Any], Any] | None = None) -> str:
    r"""Return JSON in which names stay readable; every other character is a ``\u`` escape, which parses to the same."""
    text = json.dumps(value, ensure_ascii=False, indent=indent, default=default)
    return text if text.isprintable() else "".join(map(_json_escaped, text))


def _json_escaped(char: str) -> str:
    """Escape a character that is not printable; a line's end is the document's own, for none is left in a string."""
    return char if char.isprintable() or char == "\n" else json.dumps(char)[1:-1]
