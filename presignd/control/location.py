"""Find the place of the control socket: a daemon listens at the first it can use, a client tries them in that order."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from presignd.config.paths import STATE, base_folder
from presignd.control.peer import Peer
from presignd.errors import Unavailable
from presignd.runtime.unix_socket import answers, connect

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping

    from presignd.config import Config

NAME = "control.sock"
OTHER = "other.sock"
"""In the folder of the default ledger, the socket of a daemon whose ledger lies elsewhere."""
SYSTEM = Path("/run/presignd") / NAME


def ledger_socket(config: Config) -> Path:
    """Return the last place, which every daemon has: beside its ledger."""
    return config.ledger.path / NAME


def socket_path(config: Config, environ: Mapping[str, str]) -> Path:
    """Return the path at which the daemon of ``config`` listens.

    ``control.socket``, else ``$PRESIGND_SOCKET``, else the first of ``$RUNTIME_DIRECTORY``, /run/presignd and
    ``$XDG_RUNTIME_DIR/presignd`` that this process may write in, else the user's state folder unless another daemon
    answers there, else beside the ledger.
    """
    if config.control.socket:
        return config.control.socket
    if named := environ.get("PRESIGND_SOCKET"):
        return Path(named)
    usable = (place for place in _default_places(environ) if _usable(place.parent))
    return next(usable, None) or _at_home(ledger_socket(config), environ)


def find_sockets(environ: Mapping[str, str]) -> list[Path]:
    """Return the paths at which a client looks for a daemon, in order, without its configuration."""
    if named := environ.get("PRESIGND_SOCKET"):
        return [Path(named)]
    state = _state(environ)
    return [*_default_places(environ), *([state / NAME, state / OTHER] if state else [])]


def reach(path: Path, environ: Mapping[str, str]) -> socket.socket:
    """Connect to a daemon that may get what this user can read; raise ``OSError`` if none answers.

    A place below $XDG_RUNTIME_DIR or the home folder belongs to their owner, and after ``su`` root still has another
    user's in its environment: a daemon there must be root's or this user's. Raises ``Unavailable`` for any other.
    """
    sock = connect(path)
    try:
        uid = Peer.of(sock).uid
    except BaseException:
        sock.close()
        raise
    if uid in {0, os.geteuid()} or path not in _users_places(environ):
        return sock
    sock.close()
    raise Unavailable(
        f"{path}: the daemon there is another user's (uid {uid}), and nothing else names it",
        fix=f"run this as that user, or with PRESIGND_SOCKET={path} if you trust them",
    )


def _users_places(environ: Mapping[str, str]) -> list[Path]:
    """Return those places of a client that belong to a user, not to the system or a service."""
    if environ.get("PRESIGND_SOCKET"):
        return []
    return [place for place in find_sockets({**environ, "RUNTIME_DIRECTORY": ""}) if place != SYSTEM]


def _at_home(beside_ledger: Path, environ: Mapping[str, str]) -> Path:
    """Return a free place in the state folder, which commands find without a configuration, else the last place."""
    state = _state(environ)
    if state is None or state == beside_ledger.parent:
        return beside_ledger
    with contextlib.suppress(OSError):
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
    return state / OTHER if _usable(state) and not answers(state / OTHER) else beside_ledger


def _state(environ: Mapping[str, str]) -> Path | None:
    """Return the folder of the default ledger; None where this user has no home."""
    state = base_folder(environ, *STATE)
    return state / "presignd" if state else None


def _default_places(environ: Mapping[str, str]) -> list[Path]:
    runtime = environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    session = environ.get("XDG_RUNTIME_DIR", "")
    places = [Path(runtime) / NAME] if runtime else []
    places.append(SYSTEM)
    return [*places, Path(session) / "presignd" / NAME] if session else places


def _usable(folder: Path) -> bool:
    """Return whether a socket can be made in ``folder``, which is made where it is a user's ``presignd``."""
    if folder.name == "presignd" and folder != SYSTEM.parent:
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o700, exist_ok=True)
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)
