"""Which keys no store can be trusted with, and the name of the one that proves a bucket. Pure."""

from __future__ import annotations

import re

from presignd.s3.limits import MAX_KEY

CHECK_NAME = ".presignd-check"
"""The last segment of the fixed check key: ``presignd check`` and the probes write and remove it."""

_UNSTORABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffe\uffff\ud800-\udfff]")
"""Characters that XML 1.0 can't carry, so no listing can name them; and DEL."""


def key_problem(key: str) -> str | None:  # noqa: PLR0911 - one line a rule
    r"""Say why ``key`` can't be stored the same on every server; None when it can.

    The rules are what real servers were seen to do with such keys: ``//`` and a leading ``/`` are folded,
    a trailing ``/`` loses the body, ``\`` becomes ``/``, dot segments are refused or resolved.
    """
    if not key:
        return "it is empty"
    if _UNSTORABLE.search(key):
        return "it holds a character that XML can't carry, or is no UTF-8"
    if len(key.encode()) > MAX_KEY:
        return f"it is longer than {MAX_KEY} bytes"
    if key.startswith("/") or key.endswith("/") or "//" in key:
        return "it has an empty segment (//, a leading or trailing /)"
    if "\\" in key:
        return "it holds a backslash"
    if {".", ".."} & set(key.split("/")):
        return "it has a dot segment"
    return None
