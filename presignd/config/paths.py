"""Paths as users write them: "~", relative ones, and the XDG base directories.

A container's user may have no home folder, so it is looked up only when a path needs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from presignd.errors import UsageError

STATE = ("XDG_STATE_HOME", ".local/state")
"""``base_folder``'s arguments for the state: ledgers by default, and a control socket without a folder of its own."""


def current_folder() -> Path:
    """Return the folder that relative paths outside a file start from; "/" if it was removed."""
    try:
        return Path.cwd()
    except OSError:
        return Path("/")


def home(environ: Mapping[str, str]) -> Path | None:
    """Return $HOME, else the home folder in passwd, else None."""
    if given := environ.get("HOME", ""):
        return Path(given)
    try:
        return Path("~").expanduser()
    except RuntimeError:  # this uid is not in passwd
        return None


def base_folder(environ: Mapping[str, str], variable: str, below_home: str) -> Path | None:
    """Return an XDG base directory, None without a home folder. The specification says to ignore relative ones."""
    given = Path(environ.get(variable, ""))
    if given.is_absolute():
        return given
    at_home = home(environ)
    return at_home / below_home if at_home else None


def expanded(path: Path, environ: Mapping[str, str]) -> Path:
    """Return ``path`` with the home folder for "~"; raise ``UsageError`` when there is none.

    "~name" is that user's home folder, or a plain name when there is no such user.
    """
    first, *rest = path.parts or (".",)
    if first == "~":
        if found := home(environ):
            return found.joinpath(*rest)
        raise UsageError(
            f"{path}: this user has no home folder: $HOME is not set, and passwd has no entry",
            fix="write the whole path, or set HOME",
        )
    try:
        return path.expanduser()
    except RuntimeError:
        return path


@dataclass(frozen=True, slots=True)
class PathBase:
    """The base of relative paths and "~": a folder, and the environment that names the home folder."""

    folder: Path
    environ: Mapping[str, str]

    def resolve(self, value: Any) -> Any:
        """Return a text as an absolute path; anything else unchanged, for validation to refuse.

        Raises ``UsageError`` for "~" when the user has no home folder.
        """
        if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
            return value
        return self.folder / expanded(Path(value), self.environ)
