"""The fields of a request: each of the right kind, or refused."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from presignd.errors import UsageError


def text(request: Mapping[str, Any], name: str) -> str:
    """Return a text field, "" where it is absent or null."""
    value = request.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _wrong(name, "a text")
    if not _encodes(value, "strict"):
        raise _wrong(name, "UTF-8")
    return value


def paths(request: Mapping[str, Any], name: str) -> list[bytes]:
    """Return absolute paths, in order and without repetition: of a text or a list of texts; empty where absent."""
    value = request.get(name) or []
    listed = value if isinstance(value, list) else [value]
    if not all(isinstance(item, str) and _is_path(item) for item in listed):
        raise _wrong(name, "absolute paths")
    return [os.fsencode(item) for item in dict.fromkeys(listed)]


def number(request: Mapping[str, Any], name: str, *, most: float) -> float | None:
    """Return a number from 0 to ``most``, None where the field is absent or null."""
    value = request.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(name, "a number")
    if not 0 <= value <= most:  # nor is NaN
        raise _wrong(name, f"from 0 to {most:g} seconds")
    return float(value)


def whole_number(request: Mapping[str, Any], name: str, *, most: int) -> int | None:
    """Return a whole number from 1 to ``most``, None where the field is absent or null."""
    value = request.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise _wrong(name, f"a whole number from 1 to {most}")
    return value


def flag(request: Mapping[str, Any], name: str) -> bool:
    """Return whether the field is true."""
    return request.get(name) is True


def _is_path(value: str) -> bool:
    return value.startswith("/") and "\0" not in value and _encodes(value, "surrogateescape")


def _encodes(value: str, errors: str) -> bool:
    try:
        value.encode("utf-8", errors)
    except UnicodeEncodeError:
        return False
    return True


def _wrong(name: str, kind: str) -> UsageError:
    return UsageError("the request is not understood", problems=(f"{name}: must be {kind}",))
