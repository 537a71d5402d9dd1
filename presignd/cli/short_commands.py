"""The commands that send one request to the daemon: ``presignd retry``, ``presignd web``, ``presignd health``."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from presignd.cli import loop, show
from presignd.cli.ask import ask_daemon, ask_once
from presignd.cli.options import AsJson, ConfigFile, absolute
from presignd.errors import Unavailable, UsageError

PATIENCE = 5.0
"""Seconds until a daemon that does not answer counts as hung."""


def retry_command(
    paths: Annotated[
        list[Path] | None, typer.Argument(metavar="PATH", readable=False, help="Quarantined files.")
    ] = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="All quarantined files.")] = False,
    watch: Annotated[str, typer.Option(metavar="NAME", help="The quarantined files of one watch.")] = "",
    error: Annotated[str, typer.Option(metavar="CODE", help='The files with one error code, e.g. "too_large".')] = "",
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Put quarantined files back into the queue.

    Prints how many. With both --watch and --error, a file must match both.

    Example: presignd retry --error unreadable
    """
    if not (paths or every or watch or error):
        raise UsageError("retry: which files?", fix="name paths, or give --all, --watch NAME or --error CODE")
    named = [absolute(path) for path in paths or []]
    request = {"op": "retry", "paths": named, "all": every, "watch": watch, "error": error}
    found = loop.run(ask_once(request, config))
    if as_json:
        show.document(found)
        return
    show.result(str(found["count"]))


def web_command(as_json: AsJson = False, config: ConfigFile = None) -> None:
    """Print an address that opens the status page.

    The address works once, within five minutes. Whoever opens it sees links and may retry files. Only root, the
    daemon's user and the links group may ask for one. The page is off until web.listen is set. Programs send
    the token of web.token_file as Authorization: Bearer.

    Example: xdg-open "$(presignd web)"
    """
    found = loop.run(ask_once({"op": "web"}, config))
    if as_json:
        show.document(found, as_is=True)
    else:
        show.result(found["url"], as_is=True)


def health_command(config: ConfigFile = None) -> None:
    """Show by the exit code whether the daemon works.

    Ends with 0 if each of its loops takes its turns; with 3 if not, or if no daemon answers within 5 s. A store that is
    away is no fault of the daemon: see status.

    Example: presignd health
    """
    try:
        found = loop.run(asyncio.wait_for(ask_daemon({"op": "ping"}, config), PATIENCE))
    except TimeoutError:
        raise Unavailable(f"the daemon does not answer within {PATIENCE:.0f} s", fix="restart it") from None
    if late := found.get("late"):
        raise Unavailable(f"no turn in time: {', '.join(late)}", fix="restart the daemon, and see its log")
