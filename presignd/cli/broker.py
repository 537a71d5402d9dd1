"""``presignd broker``: the presign broker; its tokens are in ``broker_tokens``."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import typer

from presignd.broker import service
from presignd.broker.check import Line, run_checks
from presignd.broker.config import SYSTEM_FILE, BrokerConfig, load
from presignd.cli import help_of, loop, show
from presignd.cli.broker_tokens import BrokerFile, create_command, list_command, read, revoke_command
from presignd.cli.check import LABELS
from presignd.cli.guard import guarded
from presignd.cli.options import AsJson
from presignd.errors import ExitCode, PresigndError
from presignd.telemetry import log

THREADS = 8

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Serve grants to uploaders without keys, and make their tokens.\n\n\b\n"
    "Example: presignd broker run -c /etc/presignd-broker/broker.toml",
)
token_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Make, list and revoke tokens.")


def run_command(config: BrokerFile = SYSTEM_FILE) -> None:
    """Serve, in the foreground.

    SIGTERM or Ctrl-C drains and ends with 0; SIGHUP reads the configuration again.

    Example: presignd broker run -c broker.toml
    """
    found = read(config)
    log.setup(found.log)
    try:
        loop.run_daemon(service.run(found, load=lambda: read(config)), threads=THREADS)
    except* PresigndError as group:
        raise _first(group) from None
    except* Exception as bugs:  # noqa: BLE001 - what ended a loop ends the process, and its log says why
        log.get_logger().critical("broker.crashed", exc_info=bugs)
        raise SystemExit(ExitCode.BUG) from None


def _first(group: BaseExceptionGroup[Any]) -> PresigndError:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


def check_command(config: BrokerFile = SYSTEM_FILE, as_json: AsJson = False) -> None:
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
        raise SystemExit(ExitCode.UNAVAILABLE)


async def _checked_lines(config: BrokerConfig, *, as_json: bool) -> list[Line]:
    lines = []
    async for line in run_checks(config):
        lines.append(line)
        if not as_json:
            fix = f" (fix: {line.fix})" if line.fix else ""
            show.result(f"{LABELS[line.outcome]} {line.name}: {line.detail}{fix}")
    return lines


def _add(to: typer.Typer, name: str, command: Callable[..., Any]) -> None:
    to.command(name, help=help_of(command))(guarded(command))


_add(app, "run", run_command)
_add(app, "check", check_command)
_add(token_app, "create", create_command)
_add(token_app, "list", list_command)
_add(token_app, "revoke", revoke_command)
app.add_typer(token_app, name="token")
