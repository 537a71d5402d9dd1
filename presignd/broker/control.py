"""The broker's control socket: the running broker answers commands there, so these need neither its keys nor its state.

Everyone who may connect may use it: root, the broker's user, and the group of ``[control] group`` (0660).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from presignd.broker.config import SYSTEM_FILE, SYSTEM_RUNTIME, SYSTEM_STATE, BrokerConfig
from presignd.broker.invitations.commands import InvitationCommands
from presignd.broker.state.database import Database
from presignd.broker.webhook_commands import WebhookCommands
from presignd.control import server
from presignd.errors import PresigndError
from presignd.system.clock import utcnow
from presignd.telemetry.log import get_logger

SYSTEM_SOCKET = SYSTEM_RUNTIME / "control.sock"
"""Where the service's socket is: commands need not read its configuration to find it."""

if TYPE_CHECKING:
    from presignd.control.peer import Peer

log = get_logger()


def socket_path(config: BrokerConfig, runtime: Path = SYSTEM_RUNTIME) -> Path:
    """Return where the broker of ``config`` listens: as configured, else the service's place, else beside its file.

    In a container the service's ``runtime`` folder is missing, so the socket is in the state folder.
    """
    if config.control.socket:
        return config.control.socket
    if config.file in (None, SYSTEM_FILE):
        return (runtime if runtime.is_dir() else SYSTEM_STATE) / SYSTEM_SOCKET.name
    return config.file.with_name(f"{config.file.stem}-control.sock")


@asynccontextmanager
async def serving(
    config: BrokerConfig, database: Database, webhooks: WebhookCommands | None = None
) -> AsyncIterator[None]:
    """Answer commands while the context lasts, if there are invitations; also those about ``webhooks``.

    Raises ``UsageError`` and ``Unavailable`` for a socket that is configured and can't be made. If the default one
    can't be made, as in a container or beside a file in /etc, the commands open the state themselves.
    """
    async with AsyncExitStack() as stack:
        if config.links.url:
            answer = _answering(InvitationCommands(config.links.url, database, utcnow), webhooks)
            try:
                await stack.enter_async_context(server.serve(socket_path(config), config.control.group, answer))
            except PresigndError as error:
                if config.control.socket or config.control.group:
                    raise
                problem = "; ".join(getattr(error, "problems", ())) or error.message
                log.info("control.unavailable", error=problem, fix="set [control] socket in broker.toml")
        yield


def _answering(invitations: InvitationCommands, webhooks: WebhookCommands | None) -> server.Answering:
    async def answer(request: server.Request, peer: Peer, fds: Sequence[int]) -> server.Documents:
        asked = webhooks if webhooks and webhooks.knows(request) else invitations
        async with aclosing(asked.answer(request, peer, fds)) as answers:
            async for found in answers:
                yield found

    return answer
