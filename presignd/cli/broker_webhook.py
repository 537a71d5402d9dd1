"""``presignd broker webhook``: list a broker's webhooks, send one a test message, switch one on again after a 410.

A running broker answers over its control socket. Without one, the command opens the state itself.
"""

from pathlib import Path
from typing import Any

import typer

from presignd.broker.config import SYSTEM_FILE, BrokerConfig
from presignd.broker.state.database import Database
from presignd.broker.state.outbox import StateOutbox
from presignd.broker.webhook_commands import WebhookCommands
from presignd.broker.webhook_messages import webhooks_of
from presignd.cli import show
from presignd.cli.broker_state import ask_broker, only
from presignd.cli.options import AsJson, BrokerFile
from presignd.cli.webhook import Named, end_with_test, print_on
from presignd.control.peer import Peer
from presignd.telemetry import log

SHOWN = ("name", "host", "waiting", "given_up", "oldest", "next_try", "failing_since", "off_since", "problem")


def list_command(config: BrokerFile = SYSTEM_FILE, as_json: AsJson = False) -> None:
    """List a broker's webhooks, with what waits for each.

    Example: presignd broker webhook list -c broker.toml
    """
    found = ask({"op": "webhook_list"}, config)["webhooks"]
    if as_json:
        show.document(found)
        return
    rows = [["" if each[name] is None else str(each[name]) for name in SHOWN] for each in found]
    show.table("", [name.replace("_", " ") for name in SHOWN], rows)


def send_test_command(name: Named = "", config: BrokerFile = SYSTEM_FILE, as_json: AsJson = False) -> None:
    """Send a signed test message to a broker's webhook.

    Prints how its receiver answered. The message has the type webhook.test. Ends with 3 if the receiver did not take
    it.

    Example: presignd broker webhook test desk -c broker.toml
    """
    end_with_test(ask({"op": "webhook_test", "webhook": name}, config), as_json=as_json)


def enable_command(name: Named = "", config: BrokerFile = SYSTEM_FILE, as_json: AsJson = False) -> None:
    """Switch a broker's webhook on again.

    It is off because its receiver answered 410 (gone). Then it is on for every broker that shares the state. What
    happened meanwhile is not sent.

    Example: presignd broker webhook enable desk -c broker.toml
    """
    print_on(ask({"op": "webhook_enable", "webhook": name}, config), as_json=as_json)


def ask(request: dict[str, Any], file: Path) -> dict[str, Any]:
    """Return the running broker's answer, else this process's own; raise ``PresigndError``."""

    async def here(config: BrokerConfig, database: Database) -> dict[str, Any]:
        log.setup(config.log.model_copy(update={"level": "critical"}))  # the command itself reports what happens
        webhooks = webhooks_of(StateOutbox(database))
        try:
            await webhooks.switch(webhooks.prepare(config.webhooks))
            return await only(WebhookCommands(webhooks).answer(request, Peer.me(), ()))
        finally:
            await webhooks.close()

    return ask_broker(request, file, here)


app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="List, try and switch on webhooks.")
