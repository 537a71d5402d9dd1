"""Where the control socket is: the places it may be, making it with the right rights, reaching it.

A daemon listens at the first place it can use; a client tries the same places in the same order.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from presignd.config.home import STATE, base_folder
from presignd.control.peer import Peer
from presignd.errors import Unavailable, UsageError, reason_of
from presignd.system.trust import Place, give_at, group_number, walked

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from presignd.config import Config

NAME = "control.sock"
OTHER = "other.sock"
"""In the folder of the default ledger, the socket of a daemon whose ledger lies elsewhere."""
CONTROL = "control.socket"
SYSTEM = Path("/run/presignd") / NAME
LONGEST = 107
"""Bytes in sun_path without the final NUL (unix(7)); longer ones go over a descriptor of the folder."""
BACKLOG = 128
CONNECT_TIMEOUT = 5.0
"""Seconds a client waits for a full backlog."""


def ledger_socket(config: Config) -> Path:
    """Return the place that is left to a daemon where no other is: beside the ledger."""
    return config.ledger.path / NAME


def socket_path(config: Config, environ: Mapping[str, str]) -> Path:
    """Return where the daemon of ``config`` listens.

    ``control.socket``, else ``$PRESIGND_SOCKET``, else the first of ``$RUNTIME_DIRECTORY``,
    /run/presignd and ``$XDG_RUNTIME_DIR/presignd`` that this process may write in, else the user's state
    folder unless another daemon answers there, else beside the ledger.
    """
    if config.control.socket:
        return config.control.socket
    if named := environ.get("PRESIGND_SOCKET"):
        return Path(named)
    usable = (place for place in _default_places(environ) if _usable(place.parent))
    return next(usable, None) or _at_home(ledger_socket(config), environ)


def find_sockets(environ: Mapping[str, str]) -> list[Path]:
    """Return where a client looks for a daemon whose configuration it need not read, in order."""
    if named := environ.get("PRESIGND_SOCKET"):
        return [Path(named)]
    state = _state(environ)
    return [*_default_places(environ), *([state / NAME, state / OTHER] if state else [])]


def reach(path: Path, environ: Mapping[str, str]) -> socket.socket:
    """Connect as ``connect`` does, to a daemon that may be handed what this user can read.

    A place below $XDG_RUNTIME_DIR or the home folder is whose those are, and ``su`` leaves root both of another user:
    there, only root and this user are believed to be a daemon. Raise ``Unavailable`` for anybody else's.
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
    """Return the places where a client looks that belong to a user, not to the system or a service."""
    if environ.get("PRESIGND_SOCKET"):
        return []
    return [place for place in find_sockets({**environ, "RUNTIME_DIRECTORY": ""}) if place != SYSTEM]


def _at_home(beside_ledger: Path, environ: Mapping[str, str]) -> Path:
    """Return a place in the user's state folder, which commands know without a configuration, if one is free."""
    state = _state(environ)
    if state is None or state == beside_ledger.parent:
        return beside_ledger
    with contextlib.suppress(OSError):
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
    return state / OTHER if _usable(state) and not _answers(state / OTHER) else beside_ledger


def _answers(place: Path) -> bool:
    try:
        connect(place).close()
    except TimeoutError:  # a full backlog: alive, only busy
        return True
    except OSError:
        return False
    return True


def _state(environ: Mapping[str, str]) -> Path | None:
    """Return the folder where ledgers lie by default; None where this user has no home."""
    state = base_folder(environ, *STATE)
    return state / "presignd" if state else None


def _default_places(environ: Mapping[str, str]) -> list[Path]:
    runtime = environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    session = environ.get("XDG_RUNTIME_DIR", "")
    places = [Path(runtime) / NAME] if runtime else []
    places.append(SYSTEM)
    return [*places, Path(session) / "presignd" / NAME] if session else places


def _usable(folder: Path) -> bool:
    """Tell whether a socket can be made in ``folder``; one below a writable folder of ours is made."""
    if folder.name == "presignd" and folder != SYSTEM.parent:
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o700, exist_ok=True)
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


@contextlib.contextmanager
def listening(path: Path, group: str, *, option: str = CONTROL) -> Iterator[socket.socket]:
    """Listen at ``path``, 0660 and of ``group`` ("" leaves it), non-blocking; at the end the file goes.

    A file left by a daemon that is gone is replaced; a live daemon's raises ``Unavailable``; an unknown
    group or an impossible path ``UsageError``. ``option`` is what the configuration calls this socket.
    """
    with _folder_of(path, option) as place:
        _clear_stale(path, place, option)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            made = _bind(sock, path, place, option)
            try:
                _hand_to(path, place, group, option)
                sock.listen(BACKLOG)
                sock.setblocking(False)
                yield sock
            finally:
                _remove(path, place, made)


@contextlib.contextmanager
def _folder_of(path: Path, option: str) -> Iterator[Place]:
    """Lend the socket's folder: others may be able to write in it, and swap what is there."""
    with contextlib.ExitStack() as stack:
        try:
            place = stack.enter_context(walked(path.parent))
        except OSError as error:
            raise _cannot(path, reason_of(error), option) from None
        yield place


def _remove(path: Path, place: Place, inode: int) -> None:
    """Remove the file, unless another daemon has put its own there since."""
    with contextlib.suppress(OSError):
        if os.stat(path.name, dir_fd=place.fd, follow_symlinks=False).st_ino == inode:
            os.unlink(path.name, dir_fd=place.fd)


def connect(path: Path) -> socket.socket:
    """Connect to the socket at ``path``; raise OSError where nobody answers."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(CONNECT_TIMEOUT)
    try:
        with _address(path) as address:
            sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock


def _clear_stale(path: Path, place: Place, option: str) -> None:
    """Remove a socket file nobody listens on; what else is in the way is not ours to remove."""
    try:
        connect(path).close()
    except FileNotFoundError:
        return
    except ConnectionRefusedError:
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.stat(path.name, dir_fd=place.fd, follow_symlinks=False).st_mode):
                raise _cannot(path, "something that is no socket is in the way", option) from None
            os.unlink(path.name, dir_fd=place.fd)
        return
    except TimeoutError:
        pass  # a full backlog: alive, only busy
    except OSError as error:
        raise _cannot(path, os.strerror(error.errno or 0), option) from None
    own = f"{option} (or $PRESIGND_SOCKET)" if option == CONTROL else option
    raise Unavailable(
        f"{_words(option)}: another presignd answers at {path}",
        fix=f"stop that one, or give this one a {own} of its own",
    )


def _bind(sock: socket.socket, path: Path, place: Place, option: str) -> int:
    """Bind with no rights for others from the first instant on, and return the socket's inode.

    Umask is the only way to that which is portable. By its folder's descriptor where others could swap that folder.
    """
    before = os.umask(0o177)
    try:
        with _address(path) as address:
            sock.bind(f"/proc/self/fd/{place.fd}/{path.name}" if place.loose else address)
        return os.stat(path.name, dir_fd=place.fd, follow_symlinks=False).st_ino
    except OSError as error:
        raise _cannot(path, os.strerror(error.errno or 0), option) from None
    finally:
        os.umask(before)


def _hand_to(path: Path, place: Place, group: str, option: str) -> None:
    """Give the socket to ``group`` before the group's bits are set."""
    number = group_number(group)
    if group and number is None:
        raise UsageError("control socket", problems=(f"control.group: there is no group {group!r}",))
    try:
        give_at(place.fd, path.name, 0o660, kind=stat.S_IFSOCK, group=-1 if number is None else number)
    except FileExistsError as error:
        raise _cannot(path, reason_of(error), option) from None
    except PermissionError:
        why = f"control.group: this user is not in the group {group!r}, so it can't give the socket to it"
        raise UsageError("control socket", problems=(why,)) from None


@contextlib.contextmanager
def _address(path: Path) -> Iterator[str]:
    """Give the address of ``path``, over a descriptor of its folder where it is too long for the kernel."""
    if len(os.fsencode(path)) <= LONGEST:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        address = f"/proc/self/fd/{folder}/{path.name}"
        if len(os.fsencode(address)) > LONGEST or not os.path.isdir(f"/proc/self/fd/{folder}"):  # noqa: PTH112 - a descriptor
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        yield address
    finally:
        os.close(folder)


def _cannot(path: Path, why: str, option: str) -> UsageError:
    return UsageError(_words(option), problems=(f"{option}: can't listen at {path}: {why}",))


def _words(option: str) -> str:
    return "control socket" if option == CONTROL else option
