"""Send requests to the daemon over its control socket; without a daemon, open the ledger and answer them here.

``asking(config_path)`` finds out which, and yields an ``Asker`` for any number of requests, concurrent ones, too;
``ask_once`` is for a single one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import TYPE_CHECKING, Any, Protocol

from presignd.control.location import find_sockets, ledger_socket, reach
from presignd.control.peer import Peer
from presignd.control.server import Answered, exchange
from presignd.errors import NotConfigured, Unavailable, UsageError
from presignd.system.threads import opened

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
    from pathlib import Path

    from presignd.config import Config
    from presignd.control.requests import Responder

    Request = Mapping[str, Any]
    Documents = AsyncGenerator[dict[str, Any], None]


class Asker(Protocol):
    """Answers requests: ``Remote``, the daemon, or ``Local``, this process."""

    def ask(self, request: Request, fds: Sequence[int] = ()) -> Documents:
        """Yield the answers to one request; raises ``PresigndError``. ``fds`` stay the caller's."""
        ...


class Remote:
    """The daemon at one socket; ``ledger`` names the ledger that it must have, "" means any."""

    def __init__(self, path: Path, ledger: str = "") -> None:
        self.path = path
        self._ledger = {"ledger": ledger} if ledger else {}

    async def ask(self, request: Request, fds: Sequence[int] = ()) -> Documents:
        """Send the request over a connection of its own."""
        try:
            sock = await opened(lambda: reach(self.path, os.environ), socket.socket.close)
        except OSError as error:
            raise Unavailable(f"{self.path}: {os.strerror(error.errno or 0)}", fix="is the daemon running?") from None
        async with contextlib.aclosing(exchange(sock, {**request, **self._ledger}, fds)) as answers:
            async for answer in answers:
                yield answer


class Local:
    """This process, which holds the ledger's lock."""

    def __init__(self, responder: Responder) -> None:
        self._responder = responder

    async def ask(self, request: Request, fds: Sequence[int] = ()) -> Documents:
        """Answer by the code that the daemon uses."""
        async with contextlib.aclosing(self._responder.answer(request, Peer.me(), fds)) as answers:
            async for answer in answers:
                yield answer


async def ask_once(request: Request, config_path: Path | None = None) -> dict[str, Any]:
    """Return the answer to one request; raises ``PresigndError``.

    ``Unavailable`` means that no daemon can be reached and the ledger can't be opened here either.
    """
    async with asking(config_path) as asker:
        return await last_answer(asker, request)


async def last_answer(asker: Asker, request: Request) -> dict[str, Any]:
    """Return the last answer to ``request``, for most requests the only one; raises ``PresigndError``."""
    last: dict[str, Any] | None = None
    async for answer in asker.ask(request):
        last = answer
    if last is None:
        raise Unavailable("the daemon ended without an answer", fix="look at its log")
    return last


@contextlib.asynccontextmanager
async def asking(config_path: Path | None = None, *, work: bool = False) -> AsyncIterator[Asker]:
    """Find a daemon at one of its places, else open the configured ledger in this process.

    Only with ``work`` does this process upload anything itself.
    With ``config_path`` only the daemon of that configuration's ledger counts. Raises ``UsageError`` for a
    bad configuration, ``Unavailable`` where the ledger is another's.
    """
    daemon, config, closed = await _find(config_path)
    if daemon is not None:
        yield daemon
        return
    assert config is not None
    async with _local(config, closed, work=work) as local:
        yield local


async def ask_daemon(request: Request, config_path: Path | None = None) -> dict[str, Any]:
    """Return the daemon's answer to one request; raise ``Unavailable`` where none runs. Opens no ledger."""
    daemon, _, closed = await _find(config_path)
    if daemon is None:
        raise closed or Unavailable("no daemon answers", fix="start it: presignd run")
    return await last_answer(daemon, request)


async def _find(config_path: Path | None) -> tuple[Remote | None, Config | None, Unavailable | None]:
    """Return the daemon; without one, the configuration to use here, and why an existing daemon is not accessible."""
    config = None
    places = find_sockets(os.environ)
    if config_path is not None:
        config = _load(config_path)
        places = [*_configured(config), *places]
    daemon, closed = await _reach(places, str(config.ledger.path) if config else "")
    if daemon is None and config is None:
        config = _configuration(closed)
        daemon, also_closed = await _reach(_configured(config), str(config.ledger.path))
        closed = closed or also_closed
    return daemon, config, closed


def _configured(config: Config) -> list[Path]:
    named = [config.control.socket] if config.control.socket else []
    return [*named, ledger_socket(config)]


async def _reach(places: Sequence[Path], ledger: str) -> tuple[Remote | None, Unavailable | None]:
    """Return the first daemon that answers, or why one that is there does not serve this user."""
    closed = None
    for place in places:
        try:
            await asyncio.to_thread(_probe, place)
        except PermissionError:
            closed = closed or _not_allowed(place)
        except Unavailable as foreign:
            closed = closed or foreign
        except OSError:
            continue
        else:
            remote = Remote(place, ledger)
            if not ledger or await _is_meant(remote):
                return remote, None
    return None, closed


def _probe(place: Path) -> None:
    reach(place, os.environ).close()


async def _is_meant(remote: Remote) -> bool:
    """Return whether this daemon has the ledger that was named."""
    try:
        async for _ in remote.ask({"op": "ping"}):
            return True
    except Answered as error:
        return error.code != "other_daemon"
    except Unavailable:
        return False
    return False


def _configuration(closed: Unavailable | None) -> Config:
    """Load the configuration; if that fails, rather report a socket that is closed to us, or named and silent."""
    try:
        return _load(None)
    except UsageError as error:
        if closed is not None:
            raise closed from None
        named = os.environ.get("PRESIGND_SOCKET")
        if named and isinstance(error, NotConfigured):
            raise _silent(named) from None
        raise


def _load(path: Path | None) -> Config:
    from presignd.config.load import load  # noqa: PLC0415 - not needed while a daemon answers

    return load(path).config


@contextlib.asynccontextmanager
async def _local(config: Config, closed: Unavailable | None, *, work: bool) -> AsyncIterator[Local]:
    from presignd.app.local import local_view  # noqa: PLC0415 - not needed while a daemon answers
    from presignd.control.requests import Responder  # noqa: PLC0415 - as above
    from presignd.ledger.lock import DaemonLock  # noqa: PLC0415 - as above
    from presignd.telemetry import log  # noqa: PLC0415 - not needed while a daemon answers

    folder = config.ledger.path
    if folder.exists() and not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise closed or _no_daemon(folder)
    # The command reports failures itself; the events of this short run belong in no log.
    log.setup(config.log.model_copy(update={"level": "critical"}))
    with DaemonLock(folder):
        async with local_view(config, uploads=work) as view:
            yield Local(Responder(view))


def _silent(socket: str) -> Unavailable:
    return Unavailable(
        f"no daemon answers at PRESIGND_SOCKET={socket}, and there is no configuration to do without",
        fix="start that daemon, correct PRESIGND_SOCKET, or give -c FILE",
    )


def _not_allowed(socket: Path) -> Unavailable:
    return Unavailable(
        f"the daemon's control socket {socket} is not open to you",
        fix="run this as the daemon's user, or join the group of its control.group",
    )


def _no_daemon(folder: Path) -> Unavailable:
    if os.statvfs(folder).f_flag & os.ST_RDONLY:
        why = f"no daemon answers, and the ledger in {folder} is on a read-only filesystem"
        return Unavailable(why, fix="start the daemon, or mount the filesystem so that it can be written")
    return Unavailable(
        f"no daemon answers, and the ledger in {folder} is another user's",
        fix="start the daemon, or run this as its user",
    )
