"""Make text from outside safe to print: no line breaks, no control characters. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any


def one_line(text: str) -> str:
    r"""Escape what would break the line, control a terminal or change the reading direction.

    A byte of a name that is not UTF-8 becomes ``\xff``, as in the log.
    """
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def json_text(value: Any, *, indent: int | None = None, default: Callable[[Any], Any] | None = None) -> str:
    r"""Return JSON with printable characters as they are; others become ``\u`` escapes, which parse to the same."""
    text = json.dumps(value, ensure_ascii=False, indent=indent, default=default)
    return text if text.isprintable() else "".join(map(_json_escaped, text))


def _json_escaped(char: str) -> str:
    """Escape a character that is not printable; line ends are the document's own, as JSON strings hold none."""
    return char if char.isprintable() or char == "\n" else json.dumps(char)[1:-1]
