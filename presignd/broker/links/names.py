"""Make file names safe to show, to save and to send in a header. Pure."""

from __future__ import annotations

import re

LONGEST_NAME = 255
"""Most bytes of UTF-8 in a name, on filesystems."""

# Separators, control characters, what XML and URLs can't carry, and marks that reverse the text after them:
# "gpj.exe" could be shown as "exe.jpg".
_UNSAFE = re.compile(
    "[/\\\\\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufffe\uffff]"
)


def safe_filename(name: str) -> str:
    """Return a file name that can't leave a folder, end a header or mislead a reader; never empty."""
    name = _UNSAFE.sub("_", name).strip()
    if not name.strip(". "):
        return "download"
    if len(name.encode()) <= LONGEST_NAME:
        return name
    stem, dot, suffix = name.rpartition(".")
    end = f"{dot}{suffix}" if stem and len(suffix.encode()) < LONGEST_NAME // 8 else ""
    return _cut(stem if end else name, LONGEST_NAME - len(end.encode())) + end


def _cut(text: str, size: int) -> str:
    return text.encode()[:size].decode(errors="ignore")
