"""Read and write TOML: the configuration of the daemon and of the broker."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

from presignd.errors import UsageError

_SHORT_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def read_document(file: Path, *, fix: str = "give -c FILE") -> dict[str, Any]:
    """Return the TOML document in ``file``; raise ``UsageError``, with ``fix`` if the file can't be read."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UsageError(f"{file}: can't be read: {error.strerror}", fix=fix) from None
    return parse_document(file, data)


def parse_document(file: Path, data: bytes) -> dict[str, Any]:
    """Return the TOML document ``data``, which was read from ``file``; raise ``UsageError``."""
    try:
        return tomllib.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UsageError(f"{file}: is not UTF-8 (byte {error.start + 1})", fix="save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(
            f"{file}: is no valid TOML: {_reason(error)}", fix='put text in quotes: key = "value"'
        ) from None
    except ValueError:  # Python's limit of the digits of an integer
        raise UsageError(f"{file}: is no valid TOML: a number has too many digits", fix="shorten it") from None


def _reason(error: tomllib.TOMLDecodeError) -> str:
    """Return ``line 3, column 7: Invalid value``."""
    match = re.fullmatch(r"(.*) \(at (.*)\)", str(error), re.DOTALL)
    return f"{match[2]}: {match[1]}" if match else str(error)


def toml_value(value: Any) -> str:
    """Return a value of JSON's types as TOML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml_text(key)} = {toml_value(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    return toml_text(value) if isinstance(value, str) else json.dumps(value)


def toml_text(text: str) -> str:
    """Return a TOML basic string in which every character that is not printable is escaped."""
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(char: str) -> str:
    if char in _SHORT_ESCAPES:
        return _SHORT_ESCAPES[char]
    if char.isprintable():
        return char
    return f"\\u{ord(char):04x}" if ord(char) <= 0xFFFF else f"\\U{ord(char):08x}"  # noqa: PLR2004 - \u has four digits
