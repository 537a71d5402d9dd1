"""How far somebody has read the links: a place that survives rotation, and the file that remembers it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from presignd.errors import UsageError
from presignd.system.durable import write_file


@dataclass(frozen=True, slots=True)
class Cursor:
    """The place after one line: the file's inode and the offset (bytes) behind the line's newline.

    Filesystems give an inode number away again soon after a file was rotated out, so ``file_id`` says
    which line ends there; "" leaves that unchecked.
    """

    inode: int
    offset: int
    file_id: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return what ``from_json`` takes."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Any) -> Cursor:
        """Take a cursor from parsed JSON; raise ``UsageError`` for anything else."""
        match document:
            case {"inode": int(inode), "offset": int(offset)} if inode >= 0 and offset >= 0:
                return cls(inode, offset, str(document.get("file_id", "")))
        raise UsageError("that is no cursor of presignd links", fix="begin without one")


def load_cursor(path: Path) -> Cursor | None:
    """Read a cursor file; None when there is none yet (or an empty one, as mktemp makes it).

    Raises ``UsageError`` when it can't be read or holds something else: nothing is overwritten by mistake.
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
    """Write a cursor file (0600) durably: a crash leaves the old place or the new one, never half of one.

    Raises ``UsageError`` when it can't be written.
    """
    try:
        write_file(path, json.dumps(cursor.to_json()).encode("ascii") + b"\n")
    except OSError as error:
        raise UsageError(
            f"--cursor-file {path}: {error.strerror}", fix="name a file in a folder you may write to"
        ) from None
