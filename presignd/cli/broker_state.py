"""What commands share that change a broker's state.

They open it themselves: SQLite lets several processes use one file, and PostgreSQL does anyway. A running broker sees
the change at its next look.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from presignd.broker.config import BrokerConfig
from presignd.broker.load import load
from presignd.broker.state.database import Database, StateAway
from presignd.broker.state.place import database_at
from presignd.cli import guard, loop
from presignd.errors import Unavailable, UsageError

R = TypeVar("R")


def read_public(file: Path) -> BrokerConfig:
    """Return the configuration of a broker with a public address, and so with a state; raise ``UsageError``."""
    found = load(file)
    guard.warn(found.warnings)
    if not found.links.url:
        raise UsageError(
            "this broker has no public address", fix='set [links] url, e.g. "https://files.example.org", and restart it'
        )
    return found


def with_state(config: BrokerConfig, do: Callable[[Database], Awaitable[R]]) -> R:
    """Return what ``do`` returns of the state; raise ``Unavailable`` where it can't be used."""
    return loop.run(_in_state(config, do))


async def _in_state(config: BrokerConfig, do: Callable[[Database], Awaitable[R]]) -> R:
    database = database_at(config.state)
    try:
        return await do(database)
    except StateAway as away:
        raise Unavailable(f"the state can't be used: {away}", fix=away.fix) from None
    finally:
        await database.close()
