"""``presignd link`` and ``presignd unlink``: make a link for something uploaded, and revoke stable ones."""

import getpass
import os
import secrets
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from presignd.cli import loop, show
from presignd.cli.ask import ask_once
from presignd.cli.options import AsJson, ConfigFile, Expires, absolute, expiry
from presignd.errors import UsageError

PIN_DIGITS = 6
"""A broker allows ten tries an hour."""

LONGEST_LINE = 8192


def link_command(
    named: Annotated[
        str, typer.Argument(metavar="PATH-or-KEY", help="A file in a watched folder, a key, or s3://bucket/key.")
    ],
    *,
    expires: Expires = None,
    days: Annotated[
        int | None, typer.Option(metavar="N", min=1, max=36500, help="A new stable link that opens for N days.")
    ] = None,
    downloads: Annotated[
        int | None, typer.Option(metavar="N", min=1, max=1_000_000, help="A new stable link for N downloads.")
    ] = None,
    pin: Annotated[bool, typer.Option("--pin", help="A new stable link with a PIN, which is printed once.")] = False,
    pin_from: Annotated[
        str, typer.Option(metavar="FILE", help="The same with your own PIN, from a file; - asks for it.")
    ] = "",
    name: Annotated[
        str, typer.Option(metavar="NAME", help="A new stable link that saves the file under this name.")
    ] = "",
    as_json: AsJson = False,
    as_qr: Annotated[bool, typer.Option("--qr", help="Print the link's QR code, too.")] = False,
    config: ConfigFile = None,
) -> None:
    """Make a link for something uploaded.

    Prints the link on stdout, and with --qr its QR code below. Where the watch gives stable links, that is the
    file's own as long as it opens; --expires makes a presigned one. --days, --downloads, --pin and --name
    make another stable link, which needs a broker with links. Only root, the daemon's user and the links
    group may ask for one.

    Example: presignd link report.pdf --days 30 --downloads 5 --pin
    """
    if as_json and as_qr:
        raise UsageError("link: --json and --qr exclude each other")
    terms = {"days": days, "downloads": downloads, "name": name, "pin": _pin(made=pin, given=pin_from)}
    request: dict[str, Any] = {"op": "link", **_file(named), "expires": expiry(expires)}
    if any(terms.values()):
        if expires is not None:
            raise UsageError("link: --expires makes a presigned link, the other options a stable one", fix="use --days")
        request |= {"op": "stable_link", **terms}
    found = loop.run(ask_once(request, config))["link"]
    if as_json:
        show.document(found | ({"pin": terms["pin"]} if pin else {}), as_is=True)
        return
    show.result(found["url"], as_is=True)
    if as_qr:
        show.qr_code(found["url"])
    if pin:
        show.say(f"PIN: {terms['pin']} (shown only now; send it another way than the link)")


def unlink_command(
    named: Annotated[
        str,
        typer.Argument(metavar="LINK, REF or FILE", help="A stable link, its ref, or a file: then all links to it."),
    ],
    config: ConfigFile = None,
) -> None:
    """Revoke stable links.

    A revoked link is refused from then on, at every broker; a download that began before may go on for an hour
    (target_expires of the broker). Presigned links can't be revoked: they end by themselves. With - the link is read
    from stdin, so that it is in no list of processes. `presignd links --issued` lists links with their refs.

    Example: presignd unlink report.pdf
    """
    link = sys.stdin.readline(LONGEST_LINE).strip() if named == "-" else named
    if not link:
        raise UsageError("unlink: stdin has no link")
    show.say(_revoked(loop.run(ask_once({"op": "unlink", "link": _text(link), **_file(link)}, config))))


def _revoked(found: dict[str, Any]) -> str:
    """Return what was revoked, in words. A broker answers the same whether there was such a link or not."""
    what = found["revoked"]
    if "ref" in what:
        return f"revoked the link {what['ref']}, if the broker's token has it"
    if "key" in what:
        return f"revoked all stable links to {what['bucket']}/{what['key']}"
    return "revoked the link, if the broker's token has it"


def _file(named: str) -> dict[str, Any]:
    """Return how a request names a file. A key is UTF-8: a name with other bytes can only be a path."""
    return {"path": absolute(Path(named)), "key": _text(named)}


def _text(named: str) -> str:
    return "" if any("\ud800" <= c <= "\udfff" for c in named) else named


def _pin(*, made: bool, given: str) -> str:
    """Return the PIN of a new link, "" for none."""
    if made and given:
        raise UsageError("link: --pin and --pin-from exclude each other")
    if made:
        return f"{secrets.randbelow(10**PIN_DIGITS):0{PIN_DIGITS}}"
    return _own_pin(given) if given else ""


def _own_pin(file: str) -> str:
    """Return the first line of a file; with - that of stdin, read without echo on a terminal."""
    from presignd.presign.stable import pin_problem  # noqa: PLC0415 - help must be fast

    try:
        if file != "-":
            with Path(file).open(encoding="utf-8") as opened:
                line = opened.readline(LONGEST_LINE)
        elif os.isatty(0):
            line = getpass.getpass("PIN: ")
        else:
            line = sys.stdin.readline(LONGEST_LINE)
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"--pin-from {file}: {getattr(error, 'strerror', None) or 'is no text'}") from None
    pin = line.strip("\r\n")
    if problem := pin_problem(pin):
        raise UsageError(f"--pin-from {file}: {problem if pin else 'is empty'}")
    return pin
