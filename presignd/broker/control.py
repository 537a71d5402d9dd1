"""The broker's control socket: commands are answered there by the running broker, without its keys and its state.

Whoever may connect may use it: root, the broker's user, and the group of ``[control] group`` (0660).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from presignd.broker.config import SYSTEM_FILE, SYSTEM_RUNTIME, BrokerConfig
from presignd.broker.invitations.commands import InvitationCommands
from presignd.broker.state.database import Database
from presignd.control import server
from presignd.errors import PresigndError
from presignd.system.clock import utcnow
from presignd.telemetry.log import get_logger

SYSTEM_SOCKET = SYSTEM_RUNTIME / "control.sock"
"""Where the service's socket is: commands need not read its configuration to find it."""

log = get_logger()


def socket_path(config: BrokerConfig) -> Path:
    """Return where the broker of ``config`` listens: as configured, else the service's place, else beside its file."""
    if config.control.socket:
        return config.control.socket
    if config.file in (None, SYSTEM_FILE):
        return SYSTEM_SOCKET
    return config.file.with_name(f"{config.file.stem}-control.sock")


@asynccontextmanager
async def serving(config: BrokerConfig, database: Database) -> AsyncIterator[None]:
    """Answer commands while the context lasts, where there are invitations.

    Raises ``UsageError`` and ``Unavailable`` for a socket that is configured and can't be made. Without the usual one
    the broker works as well, as the commands then open the state themselves.
    """
    async with AsyncExitStack() as stack:
        if config.links.url:
            commands = InvitationCommands(config.links.url, database, utcnow)
            try:
                await stack.enter_async_context(
                    server.serve(socket_path(config), config.control.group, commands.answer)
                )
            except PresigndError as error:
                if config.control.socket or config.control.group:
                    raise
                problem = "; ".join(getattr(error, "problems", ())) or error.message
                log.warning("control.unavailable", error=problem, fix="set [control] socket in broker.toml")
        yield
