"""The two own files of a unit, made from its members: the same bytes each time. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime

from presignd.ledger.units import Member
from presignd.units import rfc3339

MANIFEST, SUMS = "MANIFEST.json", "SHA256SUMS"
"""Their names, below the prefix of the unit's keys."""

MANIFEST_TYPE, SUMS_TYPE = "application/json", "text/plain; charset=utf-8"


def manifest_of(folder: bytes, made: datetime, members: Sequence[Member]) -> bytes:
    """Return ``MANIFEST.json``: the unit's name, when it was made (UTC), and its files, one on each line."""
    begin = f'{{"unit": {json.dumps(_text(folder))}, "made": "{rfc3339(made)}", "files": ['
    files = (json.dumps(_entry(folder, member)) for member in members)
    return (begin + ",".join(f"\n{file}" for file in files) + "\n]}\n").encode()


def _entry(folder: bytes, member: Member) -> dict[str, object]:
    path = _text(_inside(folder, member))
    return {"path": path, "key": member.key, "size": member.size, "checksum": member.checksum}


def sums_of(folder: bytes, members: Sequence[Member]) -> bytes:
    """Return ``SHA256SUMS`` as ``sha256sum -c`` reads it in the folder."""
    return b"".join(_line(member.sha256, _inside(folder, member)) for member in members)


def _line(sha256: str, name: bytes) -> bytes:
    """Return one line; as coreutils does, escape a backslash and a line break in a name, and mark the line."""
    escaped = name.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\r", b"\\r")
    return (b"\\" if escaped != name else b"") + sha256.encode() + b"  " + escaped + b"\n"


def _inside(folder: bytes, member: Member) -> bytes:
    return member.path.removeprefix(folder + b"/")


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")
