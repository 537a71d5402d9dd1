"""A link as one line of ``links.jsonl``, and the cursor in which a reader keeps its position."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import lru_cache
from json.encoder import encode_basestring_ascii as quoted
from pathlib import Path
from typing import Any

from presignd.errors import UsageError
from presignd.model import Link
from presignd.system.durable import write_file
from presignd.units import rfc3339

# --- lines --------------------------------------------------------------------------------------
_LINE = (
    '{"time":"%s","file_id":%s,"watch":%s,"path":%s,"bucket":%s,"key":%s,"size":%d,"content_type":%s,"etag":%s,'
    '"checksum":%s,"url":%s,"expires_at":%s%s}\n'
)
"""One line; json's encoder would take five times as long."""

_time = lru_cache(maxsize=16)(rfc3339)  # the links of one list have the same date, and mostly the same end


def encode(link: Link) -> bytes:
    """Return ``link`` as one line with its newline: fields always in this order, times RFC 3339 UTC.

    ASCII only, and control characters escaped: a file name can't forge a line. Holds the secret URL.
    """
    line = _LINE % (
        _time(link.time),
        quoted(link.file_id),
        quoted(link.watch),
        quoted(link.path),
        quoted(link.bucket),
        quoted(link.key),
        link.size,
        quoted(link.content_type),
        quoted(link.etag),
        quoted(link.checksum),
        quoted(link.url),
        f'"{_time(link.expires_at)}"' if link.expires_at else "null",
        f',"version_id":{quoted(link.version_id)}' if link.version_id else "",
    )
    return line.encode("ascii")


def decode(line: bytes) -> dict[str, Any] | None:
    """Return one parsed line, None where it is no JSON object, as on a damaged disk: the others are still read."""
    try:
        document = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def to_link(document: dict[str, Any]) -> Link | None:
    """Return the link of a parsed line, None where a field is missing or has the wrong type."""
    try:
        fields = {name: value for name, value in document.items() if name in Link._fields}
        ends = document["expires_at"]
        times = {
            "time": datetime.fromisoformat(document["time"]),
            "expires_at": None if ends is None else datetime.fromisoformat(ends),
        }
        return Link(**fields | times)
    except (KeyError, TypeError, ValueError):
        return None


# --- cursors ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cursor:
    """The position after one line: the file's inode and the offset (bytes) after the line's newline.

    It survives rotation. Filesystems reuse an inode number soon after a file was removed, so ``file_id`` names the
    line that ends there; "" leaves that unchecked.
    """

    inode: int
    offset: int
    file_id: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the cursor as JSON, for ``from_json``."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Any) -> Cursor:
        """Return the cursor in parsed JSON; raise ``UsageError`` for anything else."""
        match document:
            case {"inode": int(inode), "offset": int(offset)} if inode >= 0 and offset >= 0:
                return cls(inode, offset, str(document.get("file_id", "")))
        raise UsageError("that is no cursor of presignd links", fix="begin without one")


def load_cursor(path: Path) -> Cursor | None:
    """Return the cursor in a file, None where it is missing or empty (as mktemp makes it).

    Raises ``UsageError`` where it can't be read or holds something else, so that no other file is overwritten.
    """
    try:
        text = path.read_bytes()
        return Cursor.from_json(json.loads(text)) if text.strip() else None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"--cursor-file {path}: {error.strerror}") from None
    except (ValueError, RecursionError, UsageError):
        raise UsageError(
            f"--cursor-file {path}: not a cursor that presignd wrote",
            fix="name another file, or remove it to begin with the oldest link",
        ) from None


def save_cursor(path: Path, cursor: Cursor) -> None:
    """Write a cursor file (0600) durably; raise ``UsageError`` where it can't be written."""
    try:
        write_file(path, json.dumps(cursor.to_json()).encode("ascii") + b"\n")
    except OSError as error:
        raise UsageError(
            f"--cursor-file {path}: {error.strerror}", fix="name a file in a folder you may write to"
        ) from None
