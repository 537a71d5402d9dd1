"""Options that several commands share, and their values in the form that requests to the daemon have.

Arguments that name files are ``readable=False``. Otherwise typer would end with 2 (usage) for a file that this user
can't read, where 4 (refused) is right, or where the daemon may read it.
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
BrokerFile = Annotated[
    Path,
    typer.Option(
        "-c",
        "--config",
        metavar="FILE",
        help="Configuration file of the broker; where the default is not there: presignd/broker.toml in "
        "$XDG_CONFIG_HOME (or ~/.config).",
        show_default=True,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Expires = Annotated[
    str | None,
    typer.Option("--expires", "--expire", metavar="DURATION", help='How long the link lives, e.g. "15m"; 7d at most.'),
]


def seconds(option: str, value: str) -> float:
    """Return the seconds of a duration given as ``option``; raise ``UsageError`` when it is not one."""
    try:
        return parse_duration(value)
    except ValueError as error:
        raise UsageError(f"{option}: {value!r} {error}") from None


def expiry(value: str | None) -> int | None:
    """Return how many seconds a link shall live, None for the default; raise ``UsageError``."""
    if value is None:
        return None
    found = seconds("--expires", value)
    if not 1 <= found <= MAX_EXPIRES:
        raise UsageError(f"--expires: {value!r} is not from 1s to 7d", fix="S3 signs for 7 days at most")
    return int(found)


def absolute(path: Path) -> str:
    """Return the real path of ``path``; a symlink as the last component is not followed."""
    folder, name = os.path.split(os.fspath(path))
    if name in {"", ".", ".."}:
        return os.path.realpath(path)
    return os.fspath(Path(os.path.realpath(folder or "."), name))
