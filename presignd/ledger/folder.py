"""The ledger's folder: private, and on a filesystem where locks and shared memory hold."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from presignd.errors import UsageError
from presignd.system import filesystem
from presignd.system.durable import make_folder
from presignd.system.trust import Place, require_owner, walked


def prepare(folder: Path) -> None:
    """Make ``folder`` (0700, whatever the umask) where it is missing, and refuse an unfit one.

    Raises ``UsageError`` for one that can't be made, or that lies on a network filesystem: SQLite's WAL
    needs memory that every opener shares (sqlite.org/wal.html), and locks there hold one host at most.
    """
    try:
        make_folder(folder, 0o700)
        name = filesystem.kind(folder) if filesystem.is_network(folder) else ""
    except OSError as error:
        raise UsageError(
            f"ledger.path: {folder} can't be used: {_reason(error)}",
            fix="make that folder for the daemon's user, or set ledger.path to another one",
        ) from None
    if name:
        raise UsageError(
            f"ledger.path: {folder} lies on {name}, where neither locks nor SQLite's WAL can be trusted",
            fix="set ledger.path to a folder on a local filesystem",
        )


def make_private(path: Path) -> None:
    """Make the file ``path`` (0600, whatever the umask) where it is missing; raises ``OSError``.

    Somebody else's is refused, as is one that SQLite would take for a part of it (sqlite.org/tempfiles.html).
    """
    with walked(path.parent) as place:
        for beside in ("-wal", "-shm", "-journal"):
            with suppress(FileNotFoundError):
                _require_ours(place, path.with_name(path.name + beside))
        try:
            fd = os.open(path.name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=place.fd)
        except FileExistsError:
            _require_ours(place, path)
            return
    try:
        os.fchmod(fd, 0o600)
    finally:
        os.close(fd)


def _require_ours(place: Place, path: Path) -> None:
    """Refuse a file of somebody else's, and a symlink to one."""
    for follow in (False, True):
        require_owner(os.stat(path.name, dir_fd=place.fd, follow_symlinks=follow), path)


def _reason(error: OSError) -> str | None:
    return "a file is in the way" if isinstance(error, (FileExistsError, NotADirectoryError)) else error.strerror
