"""``presignd broker token``: make, list and revoke the tokens that a broker believes."""

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from presignd.broker import token_writer
from presignd.broker.config import SYSTEM_FILE, BrokerConfig, TokenConfig, load, read_tokens
from presignd.broker.tokens import Tokens, hash_of, new_token
from presignd.cli import guard, show
from presignd.cli.options import AsJson, seconds
from presignd.errors import ExitCode, Refused, UsageError
from presignd.redaction.redact import redact
from presignd.system.clock import utcnow
from presignd.units import rfc3339

BrokerFile = Annotated[
    Path, typer.Option("-c", "--config", metavar="FILE", help="Configuration file of the broker.", show_default=True)
]
Bucket = Annotated[str, typer.Option("--bucket", help="The bucket it may use.")]
Prefix = Annotated[
    str | None, typer.Option("--prefix", help='What its keys begin with; NAME/ by default, "" = the whole bucket.')
]
MaxSize = Annotated[str, typer.Option("--max-size", metavar="SIZE", help='The largest object, e.g. "5GiB".')]
Valid = Annotated[str, typer.Option("--valid", metavar="DURATION", help='How long it is valid, e.g. "90d".')]
Operations = Annotated[
    str, typer.Option("--operations", metavar="LIST", help='E.g. "put,multipart,head"; by default get, too.')
]
Headers = Annotated[str, typer.Option("--headers", metavar="LIST", help='Headers it may bind, e.g. "x-amz-meta-*".')]
MaxPutExpires = Annotated[str, typer.Option("--max-put-expires", metavar="DURATION", help="Of its uploads, at most.")]
MaxLinkExpires = Annotated[str, typer.Option("--max-link-expires", metavar="DURATION", help="Of its links, at most.")]
Rate = Annotated[str, typer.Option("--rate", metavar="RATE", help='Grants, e.g. "200/s".')]
Certificate = Annotated[
    str, typer.Option("--certificate", metavar="NAME", help="A client certificate's name that stands for it, too.")
]
Write = Annotated[
    Path | None,
    typer.Option("--write", metavar="PATH", help="Write the block to this new file (*.toml), or into this folder."),
]


def read(file: Path) -> BrokerConfig:
    """Return a broker's configuration, its warnings told; raise ``UsageError``."""
    found = load(file)
    for warning in found.warnings:
        guard.tell([f"presignd: {warning}"], level="warning")
    return found


def create_command(
    name: Annotated[str, typer.Argument(help="Names it in the log and in commands.")],
    *,
    bucket: Bucket,
    prefix: Prefix = None,
    max_size: MaxSize = "",
    valid: Valid = "",
    operations: Operations = "",
    headers: Headers = "",
    max_put_expires: MaxPutExpires = "",
    max_link_expires: MaxLinkExpires = "",
    rate: Rate = "",
    certificate: Certificate = "",
    write: Write = None,
    as_json: AsJson = False,
) -> None:
    """Make a token, and print it this once.

    Its [[token]] block, which holds only a hash, is for the broker: printed too, or written by --write.

    Example: presignd broker token create scanner-1 --bucket scans --valid 90d --write /etc/presignd-broker/tokens.d
    """
    limits = {"max_size": max_size, "max_put_expires": max_put_expires, "max_link_expires": max_link_expires}
    lists = {"operations": _listed(operations), "headers": _listed(headers)}
    secret = new_token()
    block = _block(
        {"name": name, "hash": hash_of(secret), "certificate": certificate, "bucket": bucket}
        | {"prefix": f"{name}/" if prefix is None else prefix, **lists, **limits}
        | {"rate": rate, "valid_until": _ending(valid)}
    )
    _tell_made(secret, block, _written(write, name, block) if write else None, as_json=as_json)


def _block(given: dict[str, Any]) -> str:
    """Return the block without what was not given; raise ``UsageError`` for what a broker would refuse."""
    options = {key: value for key, value in given.items() if value or key == "prefix"}
    problems: list[str] = []
    read_tokens({"token": [options]}, problems)
    if problems:
        raise UsageError("token", problems=tuple(problems))
    block = token_writer.render(options)
    if redact(block) != block:  # it would be printed, and stand in a file that holds hashes alone
        raise UsageError("token: an option holds what looks like a token or a signed URL")
    return block


def _tell_made(secret: str, block: str, file: Path | None, *, as_json: bool) -> None:
    if as_json:
        show.document({"token": secret, "block": block, "file": str(file) if file else None}, as_is=True)
        return
    show.result(secret, as_is=True)
    if file:
        show.say(f"wrote {file}; the token above is shown this once")
        return
    show.say("the token, shown this once; the block is for broker.toml, or for a file of token_files:")
    for line in ["", *block.splitlines()]:
        show.result(line, as_is=True)


def _listed(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _ending(valid: str) -> str:
    if not valid:
        return ""
    return rfc3339((utcnow() + timedelta(seconds=seconds("--valid", valid))).replace(microsecond=0))


def _written(place: Path, name: str, block: str) -> Path:
    file = place / f"{name}.toml" if place.is_dir() else place
    if file.suffix != ".toml":  # token_files would not find it
        raise UsageError(
            f"{place}: is no folder, and no name of a file of tokens", fix=f"mkdir {place}, or name *.toml"
        )
    if not file.parent.is_dir():
        raise UsageError(f"{file.parent}: is no folder", fix="create it, or name another")
    token_writer.create(file, block)
    return file


def list_command(config: BrokerFile = SYSTEM_FILE, as_json: AsJson = False) -> None:
    """List the tokens that a broker believes.

    What each may have, and where it stands, by this configuration.

    Example: presignd broker token list -c broker.toml
    """
    tokens = _tokens(config)
    unknown = tokens.unreadable()
    guard.tell([f"presignd: {problem}" for problem in unknown], level="error")
    if as_json:
        show.document([{**token.model_dump(mode="json"), "file": str(file)} for token, file in tokens.all()])
    else:
        columns = ("name", "bucket", "prefix", "operations", "ends", "file")
        show.table("", columns, [_row(token, file) for token, file in tokens.all()])
    if unknown:
        raise SystemExit(ExitCode.USAGE)


def _row(token: TokenConfig, file: Path) -> list[str]:
    ends = rfc3339(token.valid_until)[:19] + "Z" if token.valid_until else "never"
    ended = token.valid_until is not None and token.valid_until <= utcnow()
    operations = ",".join(token.operations)
    return [token.name, token.bucket, token.prefix, operations, f"{ends} (ended)" if ended else ends, str(file)]


def _tokens(config: Path) -> Tokens:
    found = read(config)
    return Tokens(found.file, found.broker.token_files)


def revoke_command(
    name: Annotated[str, typer.Argument(help="The token's name.")], config: BrokerFile = SYSTEM_FILE
) -> None:
    """Revoke a token: take its block out of its file. Every broker that reads the file refuses it at once.

    Example: presignd broker token revoke scanner-1 -c broker.toml
    """
    tokens = _tokens(config)
    file = next((file for token, file in tokens.all() if token.name == name), None)
    if file is None:
        unknown = "; ".join(tokens.unreadable())
        more = f" in what can be read; this can't: {unknown}" if unknown else ""
        raise Refused(f"there is no token {name!r}{more}", fix="see presignd broker token list")
    token_writer.revoke(file, name)
    show.say(f"revoked {name}, in {file}")
