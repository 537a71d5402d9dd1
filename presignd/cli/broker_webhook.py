"""``presignd broker webhook``: list a broker's webhooks, send one a test message, switch one on again after a 410."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import typer

from presignd.broker.config import SYSTEM_FILE, BrokerConfig
from presignd.broker.state.database import Database
from presignd.broker.state.outbox import StateOutbox
from presignd.broker.telling import webhooks_of
from presignd.cli import show
from presignd.cli.broker_state import read_public, with_state
from presignd.cli.options import AsJson, BrokerFile
from presignd.cli.webhook import Named, end_with_test, print_on
from presignd.control.documents import of_tested, time_text
from presignd.telemetry import log
from presignd.webhooks.webhooks import Webhooks, WebhookView

R = TypeVar("R")


def list_command(config: BrokerFile = SYSTEM_FILE, as_json: AsJson = False) -> None:
    """List a broker's webhooks: what waits for each, and whether it is off.

    Example: presignd broker webhook list -c broker.toml
    """
    found = [_document(each) for each in _with_webhooks(read_public(config), lambda webhooks: webhooks.overview())]
    if as_json:
        show.document(found)
        return
    rows = [["" if value is None else str(value) for value in each.values()] for each in found]
    show.table("", ("name", "host", "waiting", "oldest", "next try", "off since"), rows)


def _document(view: WebhookView) -> dict[str, Any]:
    """Return what is shown of a webhook; of its address only the host."""
    return {
        "name": view.name,
        "host": view.host,
        "waiting": view.waiting.messages,
        "oldest": time_text(view.waiting.oldest),
        "next_try": time_text(view.waiting.next_try),
        "off_since": time_text(view.standing.off_since),
    }


def send_test_command(name: Named = "", config: BrokerFile = SYSTEM_FILE, as_json: AsJson = False) -> None:
    """Send a signed test message to a broker's webhook, and print how its receiver answered.

    The message has the type webhook.test, and this command sends it, not the broker. Ends with 3 if the receiver did
    not take it.

    Example: presignd broker webhook test desk -c broker.toml
    """
    tested = _with_webhooks(read_public(config), lambda webhooks: webhooks.test(name))
    end_with_test(of_tested(*tested), as_json=as_json)


def enable_command(name: Named = "", config: BrokerFile = SYSTEM_FILE, as_json: AsJson = False) -> None:
    """Switch a broker's webhook on again that is off because its receiver answered 410 (gone).

    It is on for every broker that shares the state. What happened meanwhile is not sent.

    Example: presignd broker webhook enable desk -c broker.toml
    """
    print_on({"webhook": _with_webhooks(read_public(config), lambda webhooks: webhooks.enable(name))}, as_json=as_json)


def _with_webhooks(config: BrokerConfig, do: Callable[[Webhooks], Awaitable[R]]) -> R:
    """Return what ``do`` returns of the configured webhooks and the state's outbox; nothing of it is logged."""
    log.setup(config.log.model_copy(update={"level": "critical"}))

    async def done(database: Database) -> R:
        webhooks = webhooks_of(StateOutbox(database))
        try:
            await webhooks.switch(webhooks.prepare(config.webhooks))
            return await do(webhooks)
        finally:
            await webhooks.close()

    return with_state(config, done)


app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="List, try and switch on webhooks.")
