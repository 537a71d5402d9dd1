"""Which files a pattern of ``token_files`` names now. ``glob`` takes a folder that can't be opened for an empty one."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

_MAGIC = re.compile(r"[*?\[]")


def named_by(pattern: Path) -> list[Path]:
    """Return the files that an absolute pattern names, as ``glob.glob`` does; what isn't there is not named.

    Raises ``OSError`` where a folder can't be looked into, so that nobody can tell what it holds.
    """
    if not _MAGIC.search(str(pattern)):
        return [pattern] if _is_there(pattern) else []
    folder, name = pattern.parent, pattern.name
    folders = named_by(folder) if _MAGIC.search(str(folder)) else [folder]
    if not _MAGIC.search(name):
        return [each / name for each in folders if _is_there(each / name)]
    return [found for each in folders for found in _matching(each, name)]


def _is_there(path: Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _matching(folder: Path, name: str) -> list[Path]:
    """Return what matches in a folder; a name with a leading dot, as a draft has, only where the pattern has it too."""
    try:
        found = [each for each in folder.iterdir() if fnmatch(each.name, name)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [each for each in found if name.startswith(".") or not each.name.startswith(".")]
