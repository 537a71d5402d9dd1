"""``presignd webhook``: send a test message to a webhook, or switch it on again after a 410."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from presignd.cli import help_of, loop, show
from presignd.cli.ask import ask_once
from presignd.cli.guard import guarded
from presignd.cli.options import AsJson, ConfigFile
from presignd.errors import CODES, ExitCode

Named = Annotated[str, typer.Argument(metavar="NAME", help="Its name or address; not needed where there is only one.")]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Try a webhook, or switch it on again.\n\n\b\nExample: presignd webhook test chat",
)


def send_test_command(name: Named = "", as_json: AsJson = False, config: ConfigFile = None) -> None:
    """Send a signed test message to a webhook.

    Prints how its receiver answered. The message has the type webhook.test. Ends with 3 if the receiver did not take
    it.

    Example: presignd webhook test chat
    """
    end_with_test(loop.run(ask_once({"op": "webhook_test", "webhook": name}, config)), as_json=as_json)


def end_with_test(found: Mapping[str, Any], *, as_json: bool) -> None:
    """Print how a receiver answered a test message; end with 3 if it did not take it."""
    if as_json:
        show.document(found)
    else:
        why = (found["error"] or "").removeprefix(f"{CODES['webhook_failed'].cause}: ")
        how = f"delivered ({found['status']})" if found["delivered"] else f"not delivered: {why}"
        show.result(f"{found['webhook']}: {how}, {found['ms']} ms")
    if not found["delivered"]:
        raise SystemExit(ExitCode.UNAVAILABLE)


def enable_command(name: Named = "", as_json: AsJson = False, config: ConfigFile = None) -> None:
    """Switch a webhook on again.

    It is off because its receiver answered 410 (gone). What happened meanwhile is not sent.

    Example: presignd webhook enable chat
    """
    print_on(loop.run(ask_once({"op": "webhook_enable", "webhook": name}, config)), as_json=as_json)


def print_on(found: Mapping[str, Any], *, as_json: bool) -> None:
    """Print which webhook was switched on."""
    if as_json:
        show.document(found)
    else:
        show.result(f"{found['webhook']}: on")


for _name, _command in (("test", send_test_command), ("enable", enable_command)):
    app.command(_name, help=help_of(_command))(guarded(_command))
