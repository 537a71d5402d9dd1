"""Helpers of commands that use a broker's state: send requests to the running broker, or open the state here.

Several processes can use the state, in SQLite or PostgreSQL. A running broker sees a change when it next reads the
state.
"""

import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, TypeVar

from presignd.broker.config import SYSTEM_FILE, BrokerConfig
from presignd.broker.control import SYSTEM_SOCKET, socket_path
from presignd.broker.load import load
from presignd.broker.state.database import Database, needed
from presignd.broker.state.place import database_at
from presignd.cli import guard, loop
from presignd.control.server import exchange
from presignd.errors import Unavailable, UsageError
from presignd.runtime.unix_socket import connect

R = TypeVar("R")

Document = dict[str, Any]


def ask_broker(
    request: Document,
    file: Path,
    here: Callable[[BrokerConfig, Database], Awaitable[Document]],
    *,
    system_file: Path = SYSTEM_FILE,
    system_socket: Path = SYSTEM_SOCKET,
) -> Document:
    """Return the running broker's answer, else this process's own by ``here``; raise ``PresigndError``.

    The service is found without its configuration, which only root and its user may read.
    """
    if file == system_file and (asked := _connected(system_socket)):
        return loop.run(only(exchange(asked, request)))
    found = read_public(file)
    if asked := _connected(socket_path(found)):
        return loop.run(only(exchange(asked, request)))
    return with_state(found, lambda state: here(found, state))


def _connected(path: Path) -> socket.socket | None:
    """Return a connection to the broker at ``path``, None if none answers; raise ``Unavailable`` if we may not."""
    with suppress(FileNotFoundError, ConnectionRefusedError):
        try:
            return connect(path)
        except PermissionError:
            fix = "run this as root or the broker's user, or join the group of [control] group"
            raise Unavailable(f"the broker's control socket {path} is not open to you", fix=fix) from None
    return None


async def only(answers: AsyncGenerator[Document, None]) -> Document:
    """Return the one answer to a request."""
    async with aclosing(answers):
        return await anext(answers)


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
        with needed():
            return await do(database)
    finally:
        await database.close()
