"""Options that several commands share, and their values turned into what requests hold.

Arguments that name files are ``readable=False``: typer would refuse as bad usage (2) a file that may not be read
here, where it is this file that is refused (4), or only the daemon's to read.
"""

import os
from pathlib import Path
from typing import Annotated

import typer

from presignd.errors import UsageError
from presignd.s3.limits import MAX_EXPIRES
from presignd.units import parse_duration

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "-c",
        "--config",
        metavar="FILE",
        help="Configuration file; by default $PRESIGND_CONFIG, then presignd/config.toml in "
        "$XDG_CONFIG_HOME (or ~/.config), then /etc/presignd/config.toml.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Expires = Annotated[
    str | None,
    typer.Option("--expires", "--expire", metavar="DURATION", help='How long the link lives, e.g. "15m"; at most 7d.'),
]


def seconds(option: str, value: str) -> float:
    """Return the seconds of a duration given as ``option``; raise ``UsageError`` for what is none."""
    try:
        return parse_duration(value)
    except ValueError as error:
        raise UsageError(f"{option}: {value!r} {error}") from None


def expiry(value: str | None) -> int | None:
    """Return the whole seconds a link is to live, None for the default; raise ``UsageError``."""
    if value is None:
        return None
    found = seconds("--expires", value)
    if not 1 <= found <= MAX_EXPIRES:
        raise UsageError(f"--expires: {value!r} is not from 1s to 7d", fix="7 days are the most that S3 signs for")
    return int(found)


def absolute(path: Path) -> str:
    """Return where ``path`` really is; the file itself is not followed when it is a symlink."""
    folder, name = os.path.split(os.fspath(path))
    if name in {"", ".", ".."}:
        return os.path.realpath(path)
    return os.fspath(Path(os.path.realpath(folder or "."), name))
