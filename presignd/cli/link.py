"""``presignd link``: a fresh link for something uploaded."""

from pathlib import Path
from typing import Annotated

import typer

from presignd.cli import loop, show
from presignd.cli.one import only
from presignd.cli.options import AsJson, ConfigFile, Expires, absolute, expiry


def link_command(
    named: Annotated[
        str, typer.Argument(metavar="PATH-or-KEY", help="A file in a watched folder, a key, or s3://bucket/key.")
    ],
    expires: Expires = None,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Make a fresh link for something uploaded.

    Prints the link on stdout. It is for root, the daemon's user, and the links group.

    Example: presignd link report.pdf --expires 1d
    """
    # What is no UTF-8 can be no key.
    key = "" if any("\ud800" <= c <= "\udfff" for c in named) else named
    request = {"op": "link", "path": absolute(Path(named)), "key": key, "expires": expiry(expires)}
    found = loop.run(only(request, config))["link"]
    if as_json:
        show.document(found, as_is=True)
    else:
        show.result(found["url"], as_is=True)
