"""``presignd broker invite``: make, list, show and revoke invitations.

A running broker answers over its control socket. Without one, the command opens the state itself.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from presignd.broker.config import SYSTEM_FILE, BrokerConfig
from presignd.broker.invitations.commands import InvitationCommands
from presignd.broker.state.database import Database
from presignd.cli import show
from presignd.cli.broker_state import ask_broker, only
from presignd.cli.options import AsJson, BrokerFile, seconds
from presignd.control.peer import Peer
from presignd.errors import UsageError
from presignd.system.clock import utcnow
from presignd.units import parse_size, short_size

DEFAULT_VALID = "14d"
LIMITS = {"max_files", "max_size", "total"}
SIZES = {"max_size", "total", "bytes"}

Document = dict[str, Any]

Name = Annotated[str, typer.Argument(help="The invitation's name.")]
Size = Annotated[str, typer.Option("--max-size", metavar="SIZE", help='The largest file, e.g. "5GiB".')]
Total = Annotated[str, typer.Option("--total", metavar="SIZE", help='All files together, e.g. "50GiB".')]


def create_command(
    name: Annotated[str, typer.Argument(help="Its name in the log and in commands.")],
    *,
    bucket: Annotated[str, typer.Option("--bucket", help="The bucket that takes the files.")],
    prefix: Annotated[str, typer.Option("--prefix", help='What their keys begin with, a folder with its "/".')],
    valid: Annotated[
        str, typer.Option("--valid", metavar="DURATION", help="How long it takes files.", show_default=True)
    ] = DEFAULT_VALID,
    max_files: Annotated[int | None, typer.Option("--max-files", min=1, help="How many files it takes.")] = None,
    max_size: Size = "",
    total: Total = "",
    note: Annotated[str, typer.Option("--note", metavar="TEXT", help="What the guest reads.")] = "",
    pin: Annotated[bool, typer.Option("--pin", help="Make a PIN, which the guest has to give.")] = False,
    as_qr: Annotated[bool, typer.Option("--qr", help="Print the address's QR code, too.")] = False,
    config: BrokerFile = SYSTEM_FILE,
    as_json: AsJson = False,
) -> None:
    """Make an invitation and print its address, once.

    Whoever has the address may send files with a browser, straight into the bucket, within these limits. The address is
    not stored: send it to the guest, and a PIN by another way.

    Example: presignd broker invite create march --bucket scans --prefix incoming/ --max-files 20 --total 50GiB
    """
    if as_json and as_qr:
        raise UsageError("invite create: --json and --qr exclude each other")
    request = {
        "op": "invite_create",
        "name": name,
        "bucket": bucket,
        "prefix": prefix,
        "note": note,
        "valid": _valid(valid),
        "max_files": max_files,
        "max_size": _size("--max-size", max_size),
        "total": _size("--total", total),
        "pin": pin,
    }
    made = ask(request, config)
    if as_json:
        show.document({**made["invitation"], "url": made["url"], "pin": made["pin"]}, as_is=True)
        return
    show.result(made["url"], as_is=True)
    if made["pin"]:
        show.result(f"PIN {made['pin']}", as_is=True)
    show.say(f"until {made['invitation']['expires_at'][:19]}Z; this is not shown again")
    if as_qr:
        show.qr_code(made["url"])


def list_command(config: BrokerFile = SYSTEM_FILE, as_json: AsJson = False) -> None:
    """List a broker's invitations, with their limits.

    Example: presignd broker invite list -c broker.toml
    """
    invitations = ask({"op": "invite_list"}, config)["invitations"]
    if as_json:
        show.document(invitations)
        return
    columns = ("name", "bucket", "prefix", "files", "bytes", "ends", "state")
    show.table("", columns, [_row(each) for each in invitations])


def show_command(name: Name, config: BrokerFile = SYSTEM_FILE, as_json: AsJson = False) -> None:
    """Show an invitation: what it allows, and what came in.

    Example: presignd broker invite show march -c broker.toml
    """
    shown = ask({"op": "invite_show", "name": name}, config)
    invitation, files = shown["invitation"], shown["files"]
    if as_json:
        show.document({**invitation, "received": [_received(each) for each in files if each["state"] == "received"]})
        return
    show.table("", ("", ""), [[key, _shown(key, value)] for key, value in invitation.items()])
    rows = [[each["path"], short_size(each["size"]), each["state"], each["key"]] for each in files]
    show.table("files", ("path", "size", "state", "key"), rows)


def revoke_command(name: Name, config: BrokerFile = SYSTEM_FILE) -> None:
    """Revoke an invitation: it takes no more files.

    Nothing more is signed for it, and what is under way is aborted. What came in stays.

    Example: presignd broker invite revoke march -c broker.toml
    """
    revoked = ask({"op": "invite_revoke", "name": name}, config)["revoked"]
    show.say(f"revoked {name}" if revoked else f"{name} was revoked before")


# --- whom to ask --------------------------------------------------------------------------------------
def ask(request: Document, file: Path, **places: Path) -> Document:
    """Return the running broker's answer, else this process's own; raise ``PresigndError``."""

    async def here(config: BrokerConfig, database: Database) -> Document:
        return await only(InvitationCommands(config.links.url, database, utcnow).answer(request, Peer.me(), ()))

    return ask_broker(request, file, here, **places)


def _valid(text: str) -> float:
    found = seconds("--valid", text)
    if found < 1:
        raise UsageError(f"--valid: {text!r} is no time to send files")
    return found


def _size(option: str, text: str) -> int | None:
    try:
        return parse_size(text) if text else None
    except ValueError as error:
        raise UsageError(f"{option}: {text!r} {error}") from None


def _row(invitation: Document) -> list[str]:
    files, size = str(invitation["files"]), short_size(invitation["bytes"])
    if invitation["max_files"] is not None:
        files += f" of {invitation['max_files']}"
    if invitation["total"] is not None:
        size += f" of {short_size(invitation['total'])}"
    ends = f"{invitation['expires_at'][:19]}Z"
    return [*(invitation[key] for key in ("name", "bucket", "prefix")), files, size, ends, invitation["state"]]


def _shown(key: str, value: object) -> str:
    """Return a field of an invitation as people read it."""
    if value is None:
        return "no limit" if key in LIMITS else ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return short_size(value) if key in SIZES and isinstance(value, int) else str(value)


def _received(file: Document) -> Document:
    return {key: value for key, value in file.items() if key != "state"}
