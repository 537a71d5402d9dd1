"""Whether the ledger's files are still those that were opened.

SQLite writes on into a file whose name was taken away, without a word: every commit after that would be lost
with the process (sqlite.org/howtocorrupt.html, "Unlinking or renaming a database file while in use"). Only the
names are looked at: opening and closing the file again would drop SQLite's own locks on it (the same page).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from presignd.errors import LedgerLost

_FILES = ("", "-wal", "-shm")


def presence(path: Path) -> Callable[[], None]:
    """Return a look at the open database ``path``: it raises ``LedgerLost`` once its files are not what they were.

    Deleted, moved away, another in its place, or cut shorter than it ever was.
    """
    files = {Path(f"{path}{suffix}"): _seen(Path(f"{path}{suffix}")) for suffix in _FILES}
    least = path.stat().st_size

    def look() -> None:
        for file, before in files.items():
            try:
                now = _seen(file)
            except OSError:  # it tells nothing of the file: what the disk has, SQLite meets too, and that is waited for
                continue
            if before and (now is None or now[:2] != before[:2]):
                raise _lost(file, "is not there any more" if now is None else "was replaced by another file")
            if now and file == path and now[2] < least:
                raise _lost(file, "was cut short")

    return look


def _seen(file: Path) -> tuple[int, int, int] | None:
    """Return a file's device, inode and size; None when it isn't there."""
    try:
        st = file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return st.st_dev, st.st_ino, st.st_size


def _lost(file: Path, how: str) -> LedgerLost:
    return LedgerLost(
        f"the ledger's file {file} {how}, and what is recorded from now on would be lost",
        fix="start presignd again: it goes on with the ledger that is there, or makes a new one; what is uploaded"
        " already is found in the store, and links.jsonl keeps its lines",
    )
