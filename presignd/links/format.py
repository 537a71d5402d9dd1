"""One line of ``links.jsonl``: a link as JSON, and back. Pure."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from presignd.model import Link
from presignd.units import rfc3339


def encode(link: Link) -> bytes:
    """Render ``link`` as one line with its newline, fields in the contract's order, times RFC 3339 UTC.

    ASCII only and control characters escaped: a file name can't forge a line. Holds the secret URL.
    """
    return json.dumps(_document(link), ensure_ascii=True, separators=(",", ":")).encode("ascii") + b"\n"


def _document(link: Link) -> dict[str, Any]:
    document = {
        "time": rfc3339(link.time),
        "file_id": link.file_id,
        "watch": link.watch,
        "path": link.path,
        "bucket": link.bucket,
        "key": link.key,
        "size": link.size,
        "content_type": link.content_type,
        "etag": link.etag,
        "checksum": link.checksum,
        "url": link.url,
        "expires_at": rfc3339(link.expires_at),
    }
    return document | ({"version_id": link.version_id} if link.version_id else {})


def decode(line: bytes) -> dict[str, Any] | None:
    """Parse one line; None for what is no JSON object (a damaged disk's work: others must still be read)."""
    try:
        document = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def to_link(document: dict[str, Any]) -> Link | None:
    """Turn a parsed line back into its link; None where a field is missing or of another kind."""
    times = {"time", "expires_at"}
    try:
        fields = {name: value for name, value in document.items() if name in Link.__dataclass_fields__}
        return Link(**fields | {name: datetime.fromisoformat(document[name]) for name in times})
    except (KeyError, TypeError, ValueError):
        return None
