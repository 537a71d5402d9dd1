"""``presignd put``: uploads files now, through the daemon or without one, and prints their links."""

from pathlib import Path
from typing import Annotated

import typer

from presignd.cli import loop
from presignd.cli.options import AsJson, ConfigFile, Expires, expiry
from presignd.cli.uploads import put_files
from presignd.errors import UsageError


def put_command(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", readable=False, help="Files to upload.")],
    *,
    watch: Annotated[
        str,
        typer.Option(metavar="NAME", help="Whose bucket and policy they take; the file's own, else the only one."),
    ] = "",
    key: Annotated[str, typer.Option(metavar="KEY", help="The key in the bucket; for one FILE only.")] = "",
    expires: Expires = None,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Upload files now and print their links.

    One link a line on stdout, in the order of the files; with --json one object a line. A file that
    fails stops no other.

    Example: presignd put report.pdf --expires 1h
    """
    if key and len(files) > 1:
        raise UsageError("put: --key names one object, so it goes with one FILE", fix="put the files one by one")
    if Path("-") in files:
        raise UsageError("put: standard input is not taken", fix="write it to a file first; a file named - is ./-")
    request = {"op": "put", "watch": watch, "key": key, "expires": expiry(expires)}
    code = loop.run(put_files(files, request, config, as_json=as_json))
    if code:
        raise SystemExit(code)
