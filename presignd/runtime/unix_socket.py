"""Unix sockets: listen at a path so that no other user can change its rights or take it, and connect to one.

The control socket, the status page and the broker listen here. Others may be able to write in the socket's folder, and
replace the socket at any moment, so the file is only changed by way of a descriptor.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from typing import TYPE_CHECKING

from presignd.errors import Unavailable, UsageError, reason_of
from presignd.system.trust import WalkedFolder, give_at, group_number, walked

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LONGEST = 107
"""Bytes in sun_path without the final NUL (unix(7)); longer ones go over a descriptor of the folder."""
BACKLOG = 512
CONNECT_TIMEOUT = 5.0
"""Seconds a client waits for a full backlog."""


@contextlib.contextmanager
def listening(path: Path, option: str, *, group: str = "") -> Iterator[socket.socket]:
    """Listen at ``path``, 0660 and of ``group`` ("" leaves it), non-blocking; at the end the file is removed.

    A socket file on which no process listens is replaced. One that answers raises ``Unavailable``; an unknown group or
    an impossible path raises ``UsageError``. ``option`` is the path's name in the configuration.
    """
    with _folder_of(path, option) as place:
        _clear_stale(path, place, option)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            inode = _bind(sock, path, place, option)
            try:
                _give(path, place, group, option)
                sock.listen(BACKLOG)
                sock.setblocking(False)
                yield sock
            finally:
                _remove(path, place, inode)


def connect(path: Path) -> socket.socket:
    """Connect to the socket at ``path``; raise ``OSError`` if no process answers."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(CONNECT_TIMEOUT)
    try:
        with _address(path) as address:
            sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock


def answers(path: Path) -> bool:
    """Return whether a process listens at ``path``."""
    try:
        connect(path).close()
    except TimeoutError:  # a full backlog: alive, only busy
        return True
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _folder_of(path: Path, option: str) -> Iterator[WalkedFolder]:
    """Yield a descriptor of the socket's folder."""
    with contextlib.ExitStack() as stack:
        try:
            place = stack.enter_context(walked(path.parent))
        except OSError as error:
            raise _cannot(path, reason_of(error), option) from None
        yield place


def _clear_stale(path: Path, place: WalkedFolder, option: str) -> None:
    """Remove a socket file on which no process listens; anything else at the path is left alone."""
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
    raise Unavailable(
        f"{option}: another process answers at {path}", fix=f"stop that one, or give this one another {option}"
    )


def _bind(sock: socket.socket, path: Path, place: WalkedFolder, option: str) -> int:
    """Bind without rights for others from the first instant, and return the socket's inode.

    Only the umask does that portably. The path starts from the folder's descriptor if others could swap that folder.
    """
    before = os.umask(0o177)
    try:
        with _address(path) as address:
            sock.bind(f"/proc/self/fd/{place.fd}/{path.name}" if place.exposed_by else address)
        return os.stat(path.name, dir_fd=place.fd, follow_symlinks=False).st_ino
    except OSError as error:
        raise _cannot(path, os.strerror(error.errno or 0), option) from None
    finally:
        os.umask(before)


def _give(path: Path, place: WalkedFolder, group: str, option: str) -> None:
    """Give the socket to ``group``, and only then set the group's permissions."""
    number = group_number(group)
    group_option = f"{option.partition('.')[0]}.group"
    if group and number is None:
        raise UsageError(option, problems=(f"{group_option}: there is no group {group!r}",))
    try:
        give_at(place.fd, path.name, 0o660, kind=stat.S_IFSOCK, group=-1 if number is None else number)
    except FileExistsError as error:
        raise _cannot(path, reason_of(error), option) from None
    except PermissionError:
        why = f"{group_option}: this user is not in the group {group!r}, so it can't give the socket to it"
        raise UsageError(option, problems=(why,)) from None


def _remove(path: Path, place: WalkedFolder, inode: int) -> None:
    """Remove the file, unless another process has put its own there since."""
    with contextlib.suppress(OSError):
        if os.stat(path.name, dir_fd=place.fd, follow_symlinks=False).st_ino == inode:
            os.unlink(path.name, dir_fd=place.fd)


@contextlib.contextmanager
def _address(path: Path) -> Iterator[str]:
    """Yield the address of ``path``: below a descriptor of its folder if it is too long for the kernel."""
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
    return UsageError(option, problems=(f"{option}: can't listen at {path}: {why}",))
