"""``presignd broker invite``: make, list, show and revoke invitations."""

import secrets
from datetime import timedelta
from typing import Annotated, Any

import typer

from presignd.broker.config import SYSTEM_FILE
from presignd.broker.invitations.terms import check_terms
from presignd.broker.links.pin import Pins
from presignd.broker.state.database import Database
from presignd.broker.state.invitations import Invitation, Invitations, NewInvitation
from presignd.broker.state.links import hash_of
from presignd.broker.state.tickets import Ticket, Tickets, TicketState
from presignd.cli import show
from presignd.cli.broker_state import read_public, with_state
from presignd.cli.options import AsJson, BrokerFile, seconds
from presignd.errors import Refused, UsageError
from presignd.redaction import redact
from presignd.system.clock import utcnow
from presignd.units import parse_size, rfc3339, short_size

ID_BYTES = 16
PIN_DIGITS = 6
DEFAULT_VALID = "14d"

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
    found = read_public(config)
    secret, digits = secrets.token_urlsafe(ID_BYTES), _new_pin() if pin else ""
    now = utcnow()
    new = NewInvitation(
        id=hash_of(secret),
        name=name,
        bucket=bucket,
        prefix=prefix,
        note=note,
        pin="",
        made_at=now,
        ends_at=now + timedelta(seconds=_valid(valid)),
        max_files=max_files,
        max_size=_size("--max-size", max_size),
        total=_size("--total", total),
    )
    check_terms(new)
    made = with_state(found, lambda database: _make(database, new, digits))
    if made is None:
        raise Refused(f"there is an invitation {name!r} already", fix="choose another name")
    _print_made(f"{found.links.url}/i/{secret}", digits, made, as_qr=as_qr, as_json=as_json)


async def _make(database: Database, new: NewInvitation, digits: str) -> Invitation | None:
    return await Invitations(database).make(new._replace(pin=await Pins().hash_of(digits)))


def _print_made(url: str, digits: str, made: Invitation, *, as_qr: bool, as_json: bool) -> None:
    if as_json:
        show.document({**_document(made), "url": url, "pin": digits or None}, as_is=True)
        return
    show.result(url, as_is=True)
    if digits:
        show.result(f"PIN {digits}", as_is=True)
    show.say(f"until {rfc3339(made.new.ends_at)[:19]}Z; this is not shown again")
    if as_qr:
        show.qr_code(url)


def list_command(config: BrokerFile = SYSTEM_FILE, as_json: AsJson = False) -> None:
    """List a broker's invitations: what each takes, and what it has taken.

    Example: presignd broker invite list -c broker.toml
    """
    invitations = with_state(read_public(config), lambda database: Invitations(database).all())
    if as_json:
        show.document([_document(each) for each in invitations])
        return
    columns = ("name", "bucket", "prefix", "files", "bytes", "ends", "state")
    show.table("", columns, [_row(each) for each in invitations])


def show_command(name: Name, config: BrokerFile = SYSTEM_FILE, as_json: AsJson = False) -> None:
    """Show an invitation: what it allows, and what came in.

    Example: presignd broker invite show march -c broker.toml
    """

    async def look(database: Database) -> tuple[Invitation, list[Ticket]] | None:
        invitation = await Invitations(database).named(name)
        return None if invitation is None else (invitation, await Tickets(database).of(invitation))

    looked = with_state(read_public(config), look)
    if looked is None:
        raise _unknown(name)
    invitation, tickets = looked
    if as_json:
        show.document({**_document(invitation), "received": [_file(each) for each in tickets if _came_in(each)]})
        return
    for key, value in _document(invitation).items():
        show.row([key, "" if value is None else str(value)])
    rows = [[each.new.path, short_size(each.new.size), each.state, each.new.key] for each in tickets]
    show.table("files", ("path", "size", "state", "key"), rows)


def revoke_command(name: Name, config: BrokerFile = SYSTEM_FILE) -> None:
    """Revoke an invitation: nothing more is signed for it, and what is under way is aborted. What came in stays.

    Example: presignd broker invite revoke march -c broker.toml
    """

    async def revoke(database: Database) -> tuple[Invitation | None, Invitation | None]:
        invitations = Invitations(database)
        return await invitations.revoke(name, utcnow()), await invitations.named(name)

    revoked, known = with_state(read_public(config), revoke)
    if known is None:
        raise _unknown(name)
    show.say(f"revoked {name}" if revoked else f"{name} was revoked before")


def _unknown(name: str) -> Refused:
    return Refused(f"there is no invitation {name!r}", fix="see presignd broker invite list")


def _new_pin() -> str:
    pin = f"{secrets.randbelow(10**PIN_DIGITS):0{PIN_DIGITS}}"
    redact.register(pin)
    return pin


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


def _document(invitation: Invitation) -> dict[str, Any]:
    """Return what is shown of an invitation: nothing that opens it. Sizes are bytes, null means no limit."""
    new = invitation.new
    return {
        "name": new.name,
        "ref": invitation.ref,
        "bucket": new.bucket,
        "prefix": new.prefix,
        "note": new.note,
        "pin_needed": bool(new.pin),
        "made_at": rfc3339(new.made_at),
        "expires_at": rfc3339(new.ends_at),
        "max_files": new.max_files,
        "max_size": new.max_size,
        "total": new.total,
        "files": invitation.files,
        "bytes": invitation.bytes,
        "state": _state(invitation),
    }


def _state(invitation: Invitation) -> str:
    if invitation.revoked_at is not None:
        return "revoked"
    return "open" if invitation.is_open(utcnow()) else "expired"


def _row(invitation: Invitation) -> list[str]:
    new = invitation.new
    files = str(invitation.files) if new.max_files is None else f"{invitation.files} of {new.max_files}"
    size = short_size(invitation.bytes) if new.total is None else f"{short_size(invitation.bytes)} of {new.total} bytes"
    return [new.name, new.bucket, new.prefix, files, size, f"{rfc3339(new.ends_at)[:19]}Z", _state(invitation)]


def _came_in(ticket: Ticket) -> bool:
    return ticket.state is TicketState.RECEIVED


def _file(ticket: Ticket) -> dict[str, Any]:
    new = ticket.new
    return {
        "path": new.path,
        "key": new.key,
        "size": new.size,
        "content_type": new.content_type,
        "checksum": ticket.checksum or None,
        "etag": ticket.etag,
        "received_at": None if ticket.done_at is None else rfc3339(ticket.done_at),
    }
