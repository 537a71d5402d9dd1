"""The user's home folder, which a container's user may not have: looked for only where something lies in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from presignd.errors import UsageError

STATE = ("XDG_STATE_HOME", ".local/state")
"""Where ledgers lie by default, and a control socket that has no folder of its own: as ``base_folder`` takes it."""


def home(environ: Mapping[str, str]) -> Path | None:
    """Return $HOME, else what passwd says, else None: a container's user may have neither."""
    if given := environ.get("HOME", ""):
        return Path(given)
    try:
        return Path("~").expanduser()
    except RuntimeError:  # this uid is not in passwd
        return None


def base_folder(environ: Mapping[str, str], variable: str, below_home: str) -> Path | None:
    """Return a base directory; the XDG specification has a relative one ignored. None where there is no home."""
    given = Path(environ.get(variable, ""))
    if given.is_absolute():
        return given
    at_home = home(environ)
    return at_home / below_home if at_home else None


def expanded(path: Path, environ: Mapping[str, str]) -> Path:
    """Return ``path`` with the home folder for "~"; raise ``UsageError`` where there is none.

    "~name" is that user's; of nobody here, it is a name like any other.
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
