"""``presignd broker``: run the presign broker, check it, and make, list and revoke its tokens."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from presignd.broker import service, token_writer
from presignd.broker.config import SYSTEM_FILE, BrokerConfig, FleetSection, TokenConfig
from presignd.broker.load import load, read_tokens
from presignd.broker.state.links import Links
from presignd.broker.tokens import Tokens, hash_of, new_token
from presignd.cli import broker_webhook, guard, help_of, invite, loop, show
from presignd.cli.broker_state import with_state
from presignd.cli.check import print_result
from presignd.cli.guard import guarded
from presignd.cli.options import AsJson, BrokerFile, seconds
from presignd.config.addresses import parse_listen
from presignd.errors import ExitCode, Refused, Unavailable, UsageError
from presignd.pages.access import Access, SignedCodes, load_token
from presignd.pages.serving import url_of
from presignd.redaction.redact import redact
from presignd.system.clock import utcnow
from presignd.telemetry import log
from presignd.units import rfc3339

if TYPE_CHECKING:
    from presignd.checks import CheckResult

THREADS = 8

Bucket = Annotated[str, typer.Option("--bucket", help="The bucket that the token may use.")]
Prefix = Annotated[
    str | None, typer.Option("--prefix", help='What its keys begin with; default NAME/, "" = the whole bucket.')
]
MaxSize = Annotated[
    str, typer.Option("--max-size", metavar="SIZE", help='The largest object it may upload, e.g. "5GiB".')
]
Valid = Annotated[str, typer.Option("--valid", metavar="DURATION", help='How long the token is valid, e.g. "90d".')]
Operations = Annotated[
    str,
    typer.Option(
        "--operations",
        metavar="LIST",
        help='What it may do, e.g. "put,head"; default: "put,multipart,head,get"; "link" for stable links.',
    ),
]
Headers = Annotated[str, typer.Option("--headers", metavar="LIST", help='Headers it may sign, e.g. "x-amz-meta-*".')]
MaxPutExpires = Annotated[
    str, typer.Option("--max-put-expires", metavar="DURATION", help="How long its uploads may be valid, at most.")
]
MaxLinkExpires = Annotated[
    str, typer.Option("--max-link-expires", metavar="DURATION", help="How long its links may live, at most.")
]
MaxStableLink = Annotated[
    str, typer.Option("--max-stable-link", metavar="DURATION", help='How long its stable links live, e.g. "90d".')
]
KeepLinks = Annotated[bool, typer.Option("--keep-links", help="Keep its stable links open.")]
Rate = Annotated[str, typer.Option("--rate", metavar="RATE", help='How many grants it may ask for, e.g. "200/s".')]
Certificate = Annotated[
    str, typer.Option("--certificate", metavar="NAME", help="The name of a client certificate that works in its place.")
]
Write = Annotated[
    Path | None,
    typer.Option("--write", metavar="PATH", help="Write the block to this new file (*.toml), or into this folder."),
]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Sign requests for uploaders without keys, and make their tokens.\n\n\b\n"
    "Example: presignd broker run -c /etc/presignd-broker/broker.toml",
)
token_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Make, list and revoke tokens.")
invite_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Invite people to send files with a browser."
)


def read(file: Path) -> BrokerConfig:
    """Return a broker's configuration and print its warnings; raise ``UsageError``."""
    found = load(file)
    guard.warn(found.warnings)
    return found


def run_command(config: BrokerFile = SYSTEM_FILE) -> None:
    """Run the broker, in the foreground.

    SIGTERM or Ctrl-C drains and ends with 0; SIGHUP reads the configuration again.

    Example: presignd broker run -c broker.toml
    """
    found = read(config)
    log.setup(found.log)
    with guard.logging_bugs("broker.crashed"):
        loop.run_daemon(service.run(found, load=lambda: read(found.file or config)), threads=THREADS)


def check_command(config: BrokerFile = SYSTEM_FILE, as_json: AsJson = False) -> None:
    """Check each part before it is needed.

    Checks the configuration, certificate, tokens and keys, and each prefix with real requests.

    Ends with 0 when nothing failed, else with 3.

    Example: presignd broker check -c broker.toml
    """
    if code := check(config, as_json=as_json):
        raise SystemExit(code)


def check(file: Path, *, as_json: bool = False) -> int:
    """Run the checks, print each as it ends (or one JSON document at the end), and return the exit code."""
    results = loop.run(_checked(load(file), as_json=as_json))
    failed = any(result.outcome == "fail" for result in results)
    if as_json:
        show.document({"ok": not failed, "checks": [_entry(result) for result in results]})
    return ExitCode.UNAVAILABLE if failed else ExitCode.DONE


async def _checked(config: BrokerConfig, *, as_json: bool) -> "list[CheckResult]":
    from presignd.checks.broker import check_broker  # noqa: PLC0415 - a broker that runs needs no checks

    results = []
    async for result in check_broker(config):
        results.append(result)
        if not as_json:
            print_result(result)
    return results


def _entry(result: "CheckResult") -> dict[str, str]:
    fields = {"outcome": str(result.outcome), "name": result.name}
    return {**fields, "detail": result.detail, "fix": result.fix}


def health_command(config: BrokerFile = SYSTEM_FILE) -> None:
    """Show by the exit code whether the broker runs.

    Ends with 0 if so, with 3 if it does not answer within 5 s.

    Example: presignd broker health -c broker.toml
    """
    from presignd.broker.health import require_answer  # noqa: PLC0415 - a broker that runs needs no client

    require_answer(load(config).broker)


# --- the fleet page -----------------------------------------------------------------------------
def fleet_command(config: BrokerFile = SYSTEM_FILE, as_json: AsJson = False) -> None:
    """Print an address that opens the fleet page.

    The address works once, within five minutes. The page shows what the broker has seen of each token; it is off
    until fleet.listen is set. Only root and the broker's user may ask for an address, because it is made from
    fleet.token_file. Programs send the token in that file as Authorization: Bearer.

    Example: xdg-open "$(sudo presignd broker fleet)"
    """
    url = fleet_url(read(config).fleet)
    if as_json:
        show.document({"url": url}, as_is=True)
    else:
        show.result(url, as_is=True)


def fleet_url(fleet: FleetSection) -> str:
    """Return an address that logs in once, soon; raise ``Refused`` where the page is off or never ran."""
    assert fleet.token_file is not None, "load() names one"
    if not fleet.listen:
        raise Refused("the fleet page is off", fix="set fleet.listen, e.g. 127.0.0.1:8422, and restart the broker")
    token = load_token(fleet.token_file, "fleet.token_file", make=False)
    if not token:
        raise Refused(f"{fleet.token_file} is not there yet", fix="start the broker, which makes it")
    listen = parse_listen(fleet.listen)
    access = Access(token, None if listen.path else listen.port, "fleet", SignedCodes(token))
    return access.login_url(url_of(listen, fleet.listen))


# --- tokens -------------------------------------------------------------------------------------
def create_command(
    name: Annotated[str, typer.Argument(help="Its name in the log and in commands.")],
    *,
    bucket: Bucket,
    prefix: Prefix = None,
    max_size: MaxSize = "",
    valid: Valid = "",
    operations: Operations = "",
    headers: Headers = "",
    max_put_expires: MaxPutExpires = "",
    max_link_expires: MaxLinkExpires = "",
    max_stable_link: MaxStableLink = "",
    rate: Rate = "",
    certificate: Certificate = "",
    write: Write = None,
    as_json: AsJson = False,
) -> None:
    """Make a token and print it, once.

    The token's [[token]] block goes into the broker's configuration. The block holds only a hash. It is
    printed too, or --write writes it to a file.

    Example: presignd broker token create scanner-1 --bucket scans --valid 90d --write /etc/presignd-broker/tokens.d
    """
    limits = {"max_size": max_size, "max_put_expires": max_put_expires, "max_link_expires": max_link_expires}
    limits["max_stable_link"] = max_stable_link
    lists = {"operations": _words(operations), "headers": _words(headers)}
    secret = new_token()
    block = _block(
        {"name": name, "hash": hash_of(secret), "certificate": certificate, "bucket": bucket}
        | {"prefix": f"{name}/" if prefix is None else prefix, **lists, **limits}
        | {"rate": rate, "valid_until": _end_after(valid)}
    )
    _print_token(secret, block, _write_block(write, name, block) if write else None, as_json=as_json)


def _block(given: dict[str, Any]) -> str:
    """Return the ``[[token]]`` block of the options given; raise ``UsageError`` for what a broker would refuse."""
    options = {key: value for key, value in given.items() if value or key == "prefix"}
    problems: list[str] = []
    read_tokens({"token": [options]}, problems)
    if problems:
        raise UsageError("token", problems=tuple(problems))
    block = token_writer.render(options)
    if redact(block) != block:  # it would be printed, and stored in a file that holds only hashes
        raise UsageError("token: an option looks like a token or a signed URL")
    return block


def _print_token(secret: str, block: str, file: Path | None, *, as_json: bool) -> None:
    if as_json:
        show.document({"token": secret, "block": block, "file": str(file) if file else None}, as_is=True)
        return
    show.result(secret, as_is=True)
    if file:
        show.say(f"wrote {file}; the token is on stdout, and is not shown again")
        return
    show.say("This token is not shown again. Put the block into broker.toml, or into a file of token_files:")
    for row in ["", *block.splitlines()]:
        show.result(row, as_is=True)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _end_after(valid: str) -> str:
    if not valid:
        return ""
    return rfc3339((utcnow() + timedelta(seconds=seconds("--valid", valid))).replace(microsecond=0))


def _write_block(place: Path, name: str, block: str) -> Path:
    file = place / f"{name}.toml" if place.is_dir() else place
    if file.suffix != ".toml":  # token_files would not find it
        raise UsageError(f"{place}: is neither a folder nor a *.toml file", fix=f"mkdir {place}, or name a *.toml file")
    if not file.parent.is_dir():
        raise UsageError(f"{file.parent}: is not a folder", fix="create it, or name another")
    token_writer.create(file, block)
    return file


def list_command(config: BrokerFile = SYSTEM_FILE, as_json: AsJson = False) -> None:
    """List a broker's tokens: what each may do, and the file it is in.

    Example: presignd broker token list -c broker.toml
    """
    tokens = _tokens(config)
    unknown = tokens.unreadable()
    guard.print_lines([f"presignd: {problem}" for problem in unknown], level="error")
    if as_json:
        show.document(
            [{**token.model_dump(mode="json"), "file": str(file) if file else None} for token, file in tokens.all()]
        )
    else:
        columns = ("name", "bucket", "prefix", "operations", "ends", "file")
        show.table("", columns, [_row(token, file) for token, file in tokens.all()])
    if unknown:
        raise SystemExit(ExitCode.USAGE)


def _row(token: TokenConfig, file: Path | None) -> list[str]:
    ends = rfc3339(token.valid_until)[:19] + "Z" if token.valid_until else "never"
    ended = token.valid_until is not None and token.valid_until <= utcnow()
    operations = ",".join(token.operations)
    return [
        token.name,
        token.bucket,
        token.prefix,
        operations,
        f"{ends} (ended)" if ended else ends,
        str(file or "the environment"),
    ]


def _tokens(config: Path) -> Tokens:
    return _tokens_of(read(config))


def _tokens_of(config: BrokerConfig) -> Tokens:
    log.setup(config.log.model_copy(update={"level": "critical"}))  # the command says itself which files are wrong
    return Tokens(config.file, config.broker.token_files, config.tokens)


def revoke_command(
    name: Annotated[str, typer.Argument(help="The token's name.")],
    config: BrokerFile = SYSTEM_FILE,
    keep_links: KeepLinks = False,
) -> None:
    """Revoke a token: remove its block from its file. Every broker that reads the file refuses it at once.

    Its stable links are revoked with it; --keep-links lets them go on.

    Example: presignd broker token revoke scanner-1 -c broker.toml
    """
    found = read(config)
    if keep_links and not found.links.url:
        raise UsageError("--keep-links: this broker has no stable links: [links] url is not set")
    tokens = _tokens_of(found)
    files = {token.name: file for token, file in tokens.all()}
    file = files.get(name)
    if name in files and file is None:
        variables = f"PRESIGND_TOKEN__{name.upper()}__…"
        raise Refused(
            f"{name} is in the broker's environment", fix=f"remove {variables} from it, and restart the broker"
        )
    if keep_links and file:
        show.say(f"links that will outlive {name}: {with_state(found, lambda state: Links(state).keep(name))}")
    if file:
        token_writer.revoke(file, name)
        show.say(f"revoked {name}, in {file}")
    links = 0 if keep_links or not found.links.url else _revoke_links(found, name)
    if not file and not links:
        unknown = "; ".join(tokens.unreadable())
        more = f" in the files that can be read; these can't: {unknown}" if unknown else ""
        raise Refused(f"there is no token {name!r}{more}", fix="see presignd broker token list")
    if found.links.url and not keep_links:
        show.say(f"revoked its links: {links}")


def _revoke_links(config: BrokerConfig, name: str) -> int:
    """Revoke a token's links: they do not open without it, but would again for a new token of this name."""
    try:
        return with_state(config, lambda state: Links(state).revoke_token(name, utcnow()))
    except Unavailable as away:
        raise Unavailable(
            f"{away.message}; its links do not open while no token has this name",
            fix=f"before another token is called {name}, run this again when the state is back",
        ) from None


def _add(to: typer.Typer, name: str, command: Callable[..., Any]) -> None:
    to.command(name, help=help_of(command))(guarded(command))


_add(app, "run", run_command)
_add(app, "check", check_command)
_add(app, "health", health_command)
_add(app, "fleet", fleet_command)
_add(token_app, "create", create_command)
_add(token_app, "list", list_command)
_add(token_app, "revoke", revoke_command)
app.add_typer(token_app, name="token")
_add(invite_app, "create", invite.create_command)
_add(invite_app, "list", invite.list_command)
_add(invite_app, "show", invite.show_command)
_add(invite_app, "revoke", invite.revoke_command)
app.add_typer(invite_app, name="invite")
_add(broker_webhook.app, "list", broker_webhook.list_command)
_add(broker_webhook.app, "test", broker_webhook.send_test_command)
_add(broker_webhook.app, "enable", broker_webhook.enable_command)
app.add_typer(broker_webhook.app, name="webhook")
