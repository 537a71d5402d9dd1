"""The two own files of a unit, ``MANIFEST.json`` and ``SHA256SUMS``: the same bytes each time, made from its members.

Each try to upload one makes it anew.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from presignd.ledger.units import Member
from presignd.model import NO_FILE, FileVersion, Fingerprint
from presignd.pipeline.faults import Vanished
from presignd.pipeline.files.folder import os_errors_as_faults
from presignd.pipeline.put import PutRequest
from presignd.system.clock import to_micros
from presignd.system.durable import write_all
from presignd.system.threads import opened
from presignd.units import rfc3339

if TYPE_CHECKING:
    from presignd.ledger import Ledger


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


# --- as files to be uploaded --------------------------------------------------------------------------
def fingerprint_of_made(content: bytes, made: datetime) -> Fingerprint:
    """Return the fingerprint of a unit's own file: no inode, and the time at which the unit was made."""
    made_ns = to_micros(made) * 1000
    return Fingerprint(NO_FILE, len(content), made_ns, made_ns)


async def open_made(ledger: Ledger, version: FileVersion) -> PutRequest:
    """Return the request that sends a unit's own file: an unnamed file of that content, which the caller closes.

    Its mtime is the version's. Raises ``Vanished`` if no unit has this version.
    """
    unit = await ledger.units.of_made(version)
    if unit is None:
        raise Vanished
    members = await ledger.units.members_of(unit.id)

    def make() -> int:
        content = manifest_of(unit.folder, unit.made, members) if version.is_manifest else sums_of(unit.folder, members)
        with os_errors_as_faults():
            fd = _new_file()
            write_all(fd, content, 0)
            os.utime(fd, ns=(version.fingerprint.mtime_ns, version.fingerprint.mtime_ns))
        return fd

    return PutRequest(await opened(make, os.close), None, lambda _: None)  # ``status`` shows the progress


def _new_file() -> int:
    if sys.platform == "linux":
        return os.memfd_create("presignd-unit", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:  # pragma: no cover - macOS
        return os.dup(file.fileno())
