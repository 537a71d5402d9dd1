"""Read from a HEAD which headers an object was stored with, and its lock. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

from presignd.s3.responses import Response

_RETURNED = re.compile(
    r"cache-control|content-(disposition|encoding|language|type)|expires|x-amz-meta-.+|x-amz-storage-class"
    r"|x-amz-website-redirect-location|x-amz-server-side-encryption(-customer-(algorithm|key-md5))?",
    re.IGNORECASE,
)
"""Headers of a PUT that a HEAD returns unchanged (S3 API, HeadObject)."""


def lost(sent: Mapping[str, str], found: Response) -> list[str]:
    """Return the headers of an upload that a HEAD of its object lacks or returns changed. Pure.

    S3 omits the storage class STANDARD, returns only the number of tags, and never returns ACLs and the like.
    """
    return [problem for name, value in sent.items() if (problem := _lost(name, value.strip(), found.headers))]


def _lost(name: str, value: str, found: Mapping[str, str]) -> str:
    lower = name.lower()
    if lower == "x-amz-tagging":
        count, wanted = found.get("x-amz-tagging-count"), value.count("&") + 1
        return "" if count == str(wanted) else f"{name} ({count or 'no count'} of {wanted} tags)"
    kept = found.get(lower, "STANDARD" if lower == "x-amz-storage-class" else "").strip()
    if not _RETURNED.fullmatch(name) or kept == value:
        return ""
    return f"{name} ({kept} instead)" if kept else name


def locked_until(found: Response) -> str:
    """Return the end of an object's lock (object lock), from the answer to a HEAD; "" if there is none."""
    held = found.headers.get("x-amz-object-lock-legal-hold", "").upper() == "ON"
    return "its legal hold ends" if held else found.headers.get("x-amz-object-lock-retain-until-date", "")
