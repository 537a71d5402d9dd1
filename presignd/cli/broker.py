"""``presignd broker``: the presign broker, and the tokens it believes."""

from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from presignd import log
from presignd.broker import blocks, service
from presignd.broker.check import Line, run_checks
from presignd.broker.config import SYSTEM_FILE, load, read_tokens
from presignd.broker.models import BrokerConfig, TokenConfig
from presignd.broker.tokens import Tokens, hash_of, new_token
from presignd.cli import guard, help_of, loop, show
from presignd.cli.check import LABELS
from presignd.cli.guard import BUG, guarded
from presignd.cli.options import AsJson, seconds
from presignd.errors import PresigndError, Refused, UsageError
from presignd.units import rfc3339
from presignd.web.failure import UNAVAILABLE

THREADS = 8

ConfigFile = Annotated[
    Path, typer.Option("-c", "--config", metavar="FILE", help="Configuration file of the broker.", show_default=True)
]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Serve grants to uploaders without keys, and make their tokens.\n\n\b\n"
    "Example: presignd broker run -c /etc/presignd-broker/broker.toml",
)
token_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Make, list and revoke tokens.")


def run_command(config: ConfigFile = SYSTEM_FILE) -> None:
    """Serve, in the foreground.

    SIGTERM or Ctrl-C drains and ends with 0; SIGHUP reads the configuration again.

    Example: presignd broker run -c broker.toml
    """
    found = _read(config)
    log.setup(found.log)
    try:
        loop.run_daemon(service.run(found, load=lambda: _read(config)), threads=THREADS)
    except* PresigndError as group:
        raise _first(group) from None
    except* Exception as bugs:  # noqa: BLE001 - what ended a loop ends the process, and its log says why
        log.get_logger().critical("broker.crashed", exc_info=bugs)
        raise SystemExit(BUG) from None


def _first(group: BaseExceptionGroup[Any]) -> PresigndError:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


def _read(file: Path) -> BrokerConfig:
    found = load(file)
    for warning in found.warnings:
        guard.tell([f"presignd: {warning}"], level="warning")
    return found


def check_command(config: ConfigFile = SYSTEM_FILE, as_json: AsJson = False) -> None:
    """Prove each part before it is needed.

    Configuration, certificate, tokens, keys, and each prefix with real requests.

    Ends with 0 when nothing failed, else with 3.

    Example: presignd broker check -c broker.toml
    """
    lines = loop.run(_checked_lines(load(config), as_json=as_json))
    failed = any(line.outcome == "fail" for line in lines)
    if as_json:
        show.document({"ok": not failed, "checks": [asdict(line) for line in lines]})
    if failed:
        raise SystemExit(UNAVAILABLE)


async def _checked_lines(config: BrokerConfig, *, as_json: bool) -> list[Line]:
    lines = []
    async for line in run_checks(config):
        lines.append(line)
        if not as_json:
            fix = f" (fix: {line.fix})" if line.fix else ""
            show.result(f"{LABELS[line.outcome]} {line.name}: {line.detail}{fix}")
    return lines


def create_command(
    name: Annotated[str, typer.Argument(help="Names it in the log and in commands.")],
    *,
    bucket: Annotated[str, typer.Option("--bucket", help="The bucket it may use.")],
    prefix: Annotated[
        str | None, typer.Option("--prefix", help='What its keys begin with; NAME/ by default, "" = the whole bucket.')
    ] = None,
    max_size: Annotated[str, typer.Option("--max-size", metavar="SIZE", help='The largest object, e.g. "5GiB".')] = "",
    valid: Annotated[str, typer.Option("--valid", metavar="DURATION", help='How long it is valid, e.g. "90d".')] = "",
    operations: Annotated[
        str, typer.Option("--operations", metavar="LIST", help='E.g. "put,multipart,head"; by default get, too.')
    ] = "",
    headers: Annotated[
        str, typer.Option("--headers", metavar="LIST", help='Headers it may bind, e.g. "x-amz-meta-*".')
    ] = "",
    max_put_expires: Annotated[str, typer.Option("--max-put-expires", metavar="DURATION")] = "",
    max_link_expires: Annotated[str, typer.Option("--max-link-expires", metavar="DURATION")] = "",
    rate: Annotated[str, typer.Option("--rate", metavar="RATE", help='Grants, e.g. "200/s".')] = "",
    certificate: Annotated[
        str, typer.Option("--certificate", metavar="NAME", help="A client certificate's name that stands for it, too.")
    ] = "",
    write: Annotated[
        Path | None,
        typer.Option("--write", metavar="PATH", help="Write the block to this new file (*.toml), or into this folder."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a token, and print it this once.

    Its [[token]] block, which holds only a hash, is for the broker: printed too, or written by --write.

    Example: presignd broker token create scanner-1 --bucket scans --valid 90d --write /etc/presignd-broker/tokens.d
    """
    secret = new_token()
    given = {
        "name": name,
        "hash": hash_of(secret),
        "certificate": certificate,
        "bucket": bucket,
        "prefix": f"{name}/" if prefix is None else prefix,
        "operations": _listed(operations),
        "headers": _listed(headers),
        "max_size": max_size,
        "max_put_expires": max_put_expires,
        "max_link_expires": max_link_expires,
        "rate": rate,
        "valid_until": _ending(valid),
    }
    options = {key: value for key, value in given.items() if value or key == "prefix"}
    _checked(options)
    block = blocks.render(options)
    file = _written(write, name, block) if write else None
    if as_json:
        show.document({"token": secret, "block": block, "file": str(file) if file else None})
        return
    show.result(secret)
    if file:
        show.say(f"wrote {file}; the token above is shown this once")
        return
    show.say("the token, shown this once; the block is for broker.toml, or for a file of token_files:")
    for line in ["", *block.splitlines()]:
        show.result(line)


def _listed(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _ending(valid: str) -> str:
    if not valid:
        return ""
    return rfc3339((datetime.now(UTC) + timedelta(seconds=seconds("--valid", valid))).replace(microsecond=0))


def _checked(options: dict[str, Any]) -> None:
    problems: list[str] = []
    read_tokens({"token": [options]}, problems)
    if problems:
        raise UsageError("token", problems=tuple(problems))


def _written(place: Path, name: str, block: str) -> Path:
    file = place / f"{name}.toml" if place.is_dir() else place
    if file.suffix != ".toml":  # token_files would not find it
        raise UsageError(
            f"{place}: is no folder, and no name of a file of tokens", fix=f"mkdir {place}, or name *.toml"
        )
    if not file.parent.is_dir():
        raise UsageError(f"{file.parent}: is no folder", fix="create it, or name another")
    blocks.create(file, block)
    return file


def list_command(config: ConfigFile = SYSTEM_FILE, as_json: AsJson = False) -> None:
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
        raise SystemExit(2)


def _row(token: TokenConfig, file: Path) -> list[str]:
    ends = rfc3339(token.valid_until)[:19] + "Z" if token.valid_until else "never"
    ended = token.valid_until is not None and token.valid_until <= datetime.now(UTC)
    operations = ",".join(token.operations)
    return [token.name, token.bucket, token.prefix, operations, f"{ends} (ended)" if ended else ends, str(file)]


def _tokens(config: Path) -> Tokens:
    found = _read(config)
    return Tokens(found.file, found.broker.token_files)


def revoke_command(
    name: Annotated[str, typer.Argument(help="The token's name.")], config: ConfigFile = SYSTEM_FILE
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
    blocks.revoke(file, name)
    show.say(f"revoked {name}, in {file}")


def _add(to: typer.Typer, name: str, command: Callable[..., Any]) -> None:
    to.command(name, help=help_of(command))(guarded(command))


_add(app, "run", run_command)
_add(app, "check", check_command)
_add(token_app, "create", create_command)
_add(token_app, "list", list_command)
_add(token_app, "revoke", revoke_command)
app.add_typer(token_app, name="token")
