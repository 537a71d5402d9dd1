"""Check that only root or the daemon's user can have put a file or folder where it is.

A path from the configuration may contain symlinks that the administrator made. A symlink is followed only where no
other user could have made it, so a user who may write in a shared folder can't lead the daemon out of it (systemd calls
such a walk safe; sshd checks the same under StrictModes). A token, a key or a ledger is used only if root or the
daemon's user owns it and not everybody may write it.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

SERVICES = ("presignd", "presignd-broker")
"""The users and groups that systemd/*.sysusers.conf make: each group has only the user of its name."""

_O_PATH = getattr(os, "O_PATH", 0)
FOLDER = _O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NO_FOLDER = frozenset({errno.ENOTDIR, errno.ELOOP})
_DESCRIPTORS = frozenset({Path("/dev/fd"), Path("/proc/self/fd")})
_MOST_LINKS = 40
"""Most symlinks in one path, as in the kernel (path_resolution(7))."""


# --- owners and modes ---------------------------------------------------------------------------


def is_ours(st: os.stat_result) -> bool:
    """Return whether the owner is root or this user; for root, who runs the commands, also a service's user."""
    return st.st_uid in {0, os.geteuid()} or (os.geteuid() == 0 and st.st_uid in _service_users())


def others_can_write(st: os.stat_result) -> bool:
    """Return whether another user than root and the daemon's may write the file, or make names in the folder."""
    by_group = st.st_mode & stat.S_IWGRP and not is_private(st.st_gid)
    return bool(by_group or st.st_mode & stat.S_IWOTH or not is_ours(st))


def is_private(group: int) -> bool:
    """Return whether a group, by its name, has no other member: root's, a service's, or the user's own."""
    try:
        return grp.getgrgid(group).gr_name in (*SERVICES, "root", pwd.getpwuid(os.geteuid()).pw_name)
    except KeyError:
        return False


@cache
def _service_users() -> frozenset[int]:
    users = set()
    for name in SERVICES:
        with suppress(KeyError):
            users.add(pwd.getpwnam(name).pw_uid)
    return frozenset(users)


def require_owner(st: os.stat_result, path: str | os.PathLike[str]) -> None:
    """Raise ``PermissionError`` for a file that another user owns: they could have made it."""
    if not is_ours(st):
        owner, me = user_name(st.st_uid), user_name(os.geteuid())
        believed = "root's" if os.geteuid() == 0 else f"root's or {me}'s"
        fix = f"chown {me.removeprefix('uid ')} {path}"
        why = f"it belongs to {owner}, and only what is {believed} is believed; if it is right: {fix}"
        raise PermissionError(errno.EPERM, why)


def require_ours(st: os.stat_result, path: str | os.PathLike[str]) -> None:
    """Raise ``PermissionError`` for a file or folder that another user owns or everybody may write."""
    require_owner(st, path)
    if st.st_mode & stat.S_IWOTH:
        raise PermissionError(errno.EPERM, f"anybody may write it; see that it is right, then: chmod o-w {path}")


def user_name(uid: int) -> str:
    """Return a user's name, or "uid N" where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def group_number(name: str) -> int | None:
    """Return the number of a group given by name or number; None for "" and for an unknown one."""
    try:
        return int(name) if name.isdecimal() else grp.getgrnam(name).gr_gid
    except (KeyError, ValueError):
        return None


# --- paths --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WalkedFolder:
    """A folder that was walked to; its ``path`` contains no symlink.

    ``exposed_by`` is the first folder on the way in which other users can replace entries, "" where there is none.
    """

    fd: int
    path: str
    st: os.stat_result
    exposed_by: str = ""

    def exposes(self, st: os.stat_result) -> str:
        """Return the folder in which other users can replace the entry whose stat is ``st``, "" if there is none."""
        sticky = self.st.st_mode & stat.S_ISVTX and is_ours(self.st) and is_ours(st)
        return self.exposed_by or ("" if sticky or not others_can_write(self.st) else self.path)


@contextmanager
def walked(folder: Path) -> Iterator[WalkedFolder]:
    """Yield the folder at an absolute path, for ``*at`` calls below it; follow no symlink that others could have made.

    The descriptor is ``O_PATH`` where there is such a thing. Raises ``OSError``.
    """
    fd = os.open("/", FOLDER)
    trail = [WalkedFolder(fd, "/", os.fstat(fd))]
    left, links = deque(folder.absolute().parts[1:]), 0
    try:
        while left:
            name = left.popleft()
            try:
                below = os.open(name, FOLDER, dir_fd=fd)
            except OSError as error:
                target = _target_of_symlink(trail[-1], fd, name, error)
                links += 1
                if links > _MOST_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from None
                left.extendleft(reversed([part for part in Path(target).parts if part != "/"]))
                if not target.startswith("/"):
                    continue
                below, name = os.open("/", FOLDER), "/"
            os.close(fd)
            fd = below
            _record_step(trail, name, os.fstat(fd))
        here = trail[-1]
        yield WalkedFolder(fd, here.path, here.st, here.exposed_by)
    finally:
        os.close(fd)


def _record_step(trail: list[WalkedFolder], name: str, st: os.stat_result) -> None:
    """Record one step's result. ".." is refused below a folder in which others can rename: it may lead elsewhere."""
    here = trail[-1]
    if name == "..":
        if here.exposed_by:
            raise OSError(errno.ELOOP, f'"..": others can move {here.path}; name the folder that is meant')
        del trail[max(1, len(trail) - 1) :]
    elif name == "/":
        del trail[1:]
    else:
        trail.append(WalkedFolder(-1, os.path.join(here.path, name), st, here.exposes(st)))  # noqa: PTH118 - a text


def _target_of_symlink(here: WalkedFolder, fd: int, name: str, error: OSError) -> str:
    """Return a symlink's target; raise ``error`` where there is none, ``ELOOP`` where others could have made it."""
    if error.errno not in _NO_FOLDER:
        raise error
    st = os.stat(name, dir_fd=fd, follow_symlinks=False)
    if not stat.S_ISLNK(st.st_mode):
        raise error
    if exposed_by := here.exposes(st):
        link = os.path.join(here.path, name)  # noqa: PTH118 - a text
        raise OSError(
            errno.ELOOP, f"{link} is a symlink, and others can write in {exposed_by}; name the folder that is meant"
        ) from None
    return os.readlink(name, dir_fd=fd)


@contextmanager
def open_folder(folder: Path) -> Iterator[int]:
    """Yield a folder, open for listing; follow no symlink that others could have made."""
    with walked(folder) as place:
        fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=place.fd)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def parent_of(start: int, components: Sequence[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield the directory that holds a path below the open ``start``, and the path's last component.

    No symlink is followed at any component. It is an ``O_PATH`` descriptor where there is such a thing.
    """
    *folders, name = components
    at = start
    try:
        for folder in folders:
            below = os.open(folder, FOLDER, dir_fd=at)
            if at != start:
                os.close(at)
            at = below
        yield at, name
    finally:
        if at != start:
            os.close(at)


def give_at(folder: int, name: str, mode: int, *, kind: int = stat.S_IFDIR, group: int = -1) -> None:
    """Set group and mode of an entry that was just made in a folder; refuse one that another user put in its place.

    ``kind`` is the file type it must have (stat(2)): this changes neither a symlink's target nor another hard link.
    """
    with _pinned(folder, name) as (where, at):
        if stat.S_IFMT(os.stat(where, **at).st_mode) != kind:  # noqa: PTH116 - below a descriptor
            raise FileExistsError(errno.EEXIST, f"something else is there as {name} now")
        if group >= 0:
            os.chown(where, -1, group, **at)
        os.chmod(where, mode, **at)  # noqa: PTH101 - below a descriptor


@contextmanager
def _pinned(folder: int, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a path that keeps naming the same file, through /proc; without O_PATH and /proc, the name itself."""
    if not _O_PATH or not os.path.isdir("/proc/self/fd"):  # noqa: PTH112 - a text
        yield name, {"dir_fd": folder, "follow_symlinks": os.chmod not in os.supports_follow_symlinks}
        return
    fd = os.open(name, _O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        yield f"/proc/self/fd/{fd}", {}
    finally:
        os.close(fd)


def make_private(path: Path, *, folder_owns: bool = False) -> None:
    """Make the file ``path`` (0600, whatever the umask) where it is missing; raises ``OSError``.

    With ``folder_owns``, what root makes belongs to the folder's owner and group. Another user's file is refused, and
    so is another user's ``-wal``, ``-shm`` or ``-journal`` beside it: SQLite would take these for parts of the database
    (sqlite.org/tempfiles.html).
    """
    with walked(path.parent) as place:
        for beside in ("-wal", "-shm", "-journal"):
            with suppress(FileNotFoundError):
                _require_ours(place, path.with_name(path.name + beside))
        try:
            fd = os.open(path.name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=place.fd)
        except FileExistsError:
            _require_ours(place, path)
            return
    try:
        os.fchmod(fd, 0o600)
        if folder_owns and os.geteuid() == 0:
            os.fchown(fd, place.st.st_uid, place.st.st_gid)
    finally:
        os.close(fd)


def _require_ours(place: WalkedFolder, path: Path) -> None:
    """Refuse another user's file, and a symlink to one."""
    for follow in (False, True):
        require_owner(os.stat(path.name, dir_fd=place.fd, follow_symlinks=follow), path)


def open_file(file: Path, *, links: int = 0) -> int:
    """Open a regular file of root's or this user's for reading; the caller closes it. Raises ``OSError``.

    Never blocks, not even on a FIFO. ``/dev/fd/N``, as a shell passes it, is opened without these checks. ``links``
    counts the symlinks followed so far.
    """
    if file.parent in _DESCRIPTORS:
        return os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    with walked(file.parent) as place:
        try:
            fd = os.open(file.name, _READ, dir_fd=place.fd)
        except OSError as error:
            target = Path(place.path, _target_of_symlink(place, place.fd, file.name, error))
        else:
            try:
                _require_file(os.fstat(fd), file)
            except OSError:
                os.close(fd)
                raise
            return fd
    if links == _MOST_LINKS:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    return open_file(target, links=links + 1)


def _require_file(st: os.stat_result, file: Path) -> None:
    if not stat.S_ISREG(st.st_mode):
        raise OSError(errno.EINVAL, "is no regular file")
    require_ours(st, file)


def read_file(file: Path, most: int = -1) -> bytes:
    """Return the content of a file that ``open_file`` opens, ``most`` bytes of it at most."""
    with open(open_file(file), "rb") as stream:
        return stream.read(most)
