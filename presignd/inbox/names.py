"""Names for guests' files: their own, made safe for a folder. Pure.

A guest chooses a path. It must not lead out of the folder or mislead a reader, and must be valid on every filesystem in
common use: a folder may be shared with Windows machines.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from itertools import chain, count

NAME_MAX = 255
"""Bytes in one name, on every filesystem in common use (limits.h)."""

_LONGEST_SUFFIX = 32

_UNSAFE = re.compile(r'[\\:*?"<>|]')
"""Characters that Windows allows in no name; a backslash separates there."""

_HIDING = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories of control characters, marks that reverse or hide text, and code points that are no character."""

_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
"""Names of devices on Windows (learn.microsoft.com, "Naming Files")."""

FALLBACK = "file"


def safe_path(path: str) -> list[str]:
    """Return the names of a guest's path, from the outermost folder to the file; each is safe, none is hidden.

    Empty and dot segments are left out; ``..`` is one, so nothing leads up.
    """
    names = [_safe_name(name) for name in path.split("/") if name.strip(". \t") or name.strip()]
    return [name for name in names if name] or [FALLBACK]


def _safe_name(name: str) -> str:
    shown = "".join("_" if unicodedata.category(each) in _HIDING else each for each in name)
    shown = _UNSAFE.sub("_", shown).strip().rstrip(". ")
    if not shown:
        return ""
    # A hidden name may be a program's setting (.ssh, .bashrc), and one of presignd's own.
    if shown.startswith(".") or _RESERVED.fullmatch(shown):
        shown = f"_{shown}"
    return _cut(shown, NAME_MAX)


def numbered(name: str) -> Iterator[str]:
    """Yield ``name.ext``, ``name (2).ext``, ``name (3).ext`` …, each within 255 bytes."""
    stem, suffix = _split(name)
    return chain([name], (f"{_cut_to(stem, f' ({n}){suffix}')} ({n}){suffix}" for n in count(2)))


def _split(name: str) -> tuple[str, str]:
    stem, dot, suffix = name.rpartition(".")
    return (stem, dot + suffix) if stem and len(suffix.encode()) < _LONGEST_SUFFIX else (name, "")


def _cut(name: str, most: int) -> str:
    """Return a name of ``most`` bytes of UTF-8 at most, with its suffix."""
    if len(name.encode()) <= most:
        return name
    stem, suffix = _split(name)
    return _cut_to(stem, suffix) + suffix


def _cut_to(stem: str, rest: str) -> str:
    """Return a stem that leaves room for ``rest``; no character is cut in two."""
    return stem.encode()[: NAME_MAX - len(rest.encode())].decode("utf-8", "ignore")
