"""The limits of S3 and its servers: keys, lifetimes, sizes and numbers of parts. Sizes are bytes, times seconds."""

from __future__ import annotations

import re

MAX_KEY = 1024
"""Most bytes of UTF-8 in a key (S3 user guide, "Naming Amazon S3 objects")."""

MAX_EXPIRES = 7 * 86400
"""Longest lifetime of a presigned request: 7 days (AWS Signature Version 4)."""

MAX_PARTS = 10_000
"""Most parts of one upload (S3 user guide, "Amazon S3 multipart upload limits")."""

FEW_PARTS = 1_000
"""Most parts of one upload on Swift and Scaleway."""

LEAST_PART = 5 << 20
"""Smallest size of a part but the last: 5 MiB (as above)."""

LARGEST_PART = 5 << 30
"""Largest part: 5 GiB (as above)."""

LARGEST_OBJECT = 5 << 40
"""Largest object: 5 TiB (as above)."""

CHECK_NAME = ".presignd-check"
"""Last segment of the check key, which ``presignd check`` and the probes write and remove."""

_UNSTORABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffe\uffff\ud800-\udfff]")
"""Characters that XML 1.0 cannot carry, so no listing can name them; and DEL."""


def key_problem(key: str) -> str | None:  # noqa: PLR0911 - one line a rule
    r"""Return why ``key`` cannot be stored the same on every server; None if it can.

    The rules come from what real servers do: they fold ``//`` and a leading ``/``, lose the body under a key with
    a trailing ``/``, turn ``\`` into ``/``, and refuse or resolve dot segments.
    """
    if not key:
        return "it is empty"
    if _UNSTORABLE.search(key):
        return "it holds a character that XML can't carry, or is no UTF-8"
    if len(key.encode()) > MAX_KEY:
        return f"it is longer than {MAX_KEY} bytes"
    segments = key.split("/")
    if "" in segments:
        return "it has an empty segment (//, a leading or trailing /)"
    if "\\" in key:
        return "it holds a backslash"
    if "." in segments or ".." in segments:
        return "it has a dot segment"
    return None
