"""Watched folders. All access to their files goes through ``Folder``: by descriptor, below its root.

A path is walked component by component from the root's descriptor, and no symlink is followed at any of them. So
nothing outside the folder can be reached, whatever is swapped during the walk (guarantee 11, docs/guarantees.md). A
file is first opened with ``O_PATH``, checked to be regular, and only then opened for reading: opening a FIFO would
block, and opening a device would act on it.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from itertools import chain, count, groupby
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from presignd.errors import NO_DESCRIPTORS, Fault, PresigndError, UsageError, reason_of, system_fault
from presignd.system.durable import rename_noreplace
from presignd.system.file_lock import flock, lock_folder
from presignd.system.filesystem import close_quietly, may_hang, mounted_below
from presignd.system.trust import open_folder, parent_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from presignd.config import WatchConfig

T = TypeVar("T")

_O_PATH = getattr(os, "O_PATH", 0)
_PATH_ONLY = _O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Non-blocking: for a file under another program's lease (Samba's oplocks), open fails with EAGAIN at once and breaks
# the lease, so the next try succeeds; a blocking open would hold its thread for up to 45 s.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

INLINE_LIMIT = 64
"""Files of a local folder that are looked at (10 to 50 µs each) on the event loop: to start a thread, and to share the
interpreter with it, takes as long. With 8 a burst of small files took a twentieth more CPU."""

NAME_MAX = 255
"""Bytes in one name, on every filesystem in common use (limits.h)."""

_CONTINUATION = range(0x80, 0xC0)
"""UTF-8 bytes that continue a character: a name isn't cut before one."""

_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG})
_NOT_REGULAR = frozenset({errno.ELOOP, errno.ENXIO, errno.ENODEV})
_UNREADABLE = frozenset({errno.EACCES, errno.EPERM})


class Gone(PresigndError):
    """No file of this folder is at the path now. A path below a symlink counts as gone, too."""

    code = "gone"


class NotRegular(PresigndError):
    """The path leads to a symlink, a directory or a special file, which are ignored."""

    code = "not_regular"


class Folder:
    """A watch's folder, open at its root; ``identity`` is the root's device and inode.

    ``inline_limit``: how many files can be looked at in the time a thread takes to start; 0 where a look may block.

    Methods raise ``Gone``, ``NotRegular``, or the faults ``unreadable`` (no permission), ``too_many_files`` and
    ``read_error`` (any other error). All of them block and may run in any thread; paths are bytes below the root.
    """

    def __init__(self, watch: WatchConfig) -> None:
        """Open the root; raise ``UsageError`` if it is missing, not a directory, or unreadable."""
        self.root = root_of(watch)
        self._locked = False
        try:
            self.fd = _open_root(self.root)
        except OSError as error:
            raise _no_root(watch, error) from None
        self.identity = _identity(os.fstat(self.fd))
        self.inline_limit = _inline_limit(self.fd)
        self._mounted = mounted_below(self.fd)

    def refresh_mounts(self) -> bool:
        """Read again what is mounted below; return whether that has changed."""
        before, self._mounted = self._mounted, mounted_below(self.fd)
        self.inline_limit = _inline_limit(self.fd)
        return self._mounted != before

    def close(self) -> None:
        """Close the root, and with it the lock."""
        os.close(self.fd)

    # --- the root -------------------------------------------------------------------------------
    def still_there(self) -> bool:
        """Return whether the root's path still leads to the directory that is open."""
        try:
            return _identity(os.stat(self.root)) == self.identity  # noqa: PTH116 - a bytes path
        except OSError:
            return False

    def reopen(self) -> bool:
        """Open the root again, with the same descriptor number and lock; return False while it is away.

        ``dup2`` replaces the descriptor atomically: no thread can meet a closed or reused number.
        """
        if self.still_there():
            return True  # still open: a second lock on it would conflict with ours
        try:
            fresh = _open_root(self.root)
        except OSError:
            return False
        try:
            if self._locked and not flock(fresh):
                return False
            os.dup2(fresh, self.fd, inheritable=False)
            self.identity = _identity(os.fstat(fresh))
            self.inline_limit = _inline_limit(fresh)
        except OSError:
            return False
        finally:
            os.close(fresh)
        return True

    def lock(self) -> None:
        """Lock this folder against other daemons; raise ``Unavailable`` with the pid of the one that holds it.

        On a filesystem without flock nothing is locked.
        """
        self._locked = lock_folder(self.fd)

    # --- paths ----------------------------------------------------------------------------------
    def absolute(self, path: bytes) -> bytes:
        """Return the full path of ``path`` (for messages; never to open it)."""
        return os.path.join(self.root, path) if path else self.root  # noqa: PTH118 - a bytes path

    # --- what is in it --------------------------------------------------------------------------
    def stat(self, path: bytes) -> os.stat_result:
        """Return the stat of what is at ``path``; no symlink is followed at any component."""
        return self._at(path, _stat)

    def missing(self, paths: Iterable[bytes]) -> list[bytes]:
        """Return those of ``paths`` at which there is nothing; one that can't be checked counts as existing.

        Adjacent paths of one directory cost one ``stat`` each, and together one walk to the directory. A slash at the
        end means the directory itself.
        """
        groups = groupby(paths, lambda path: posixpath.dirname(path.rstrip(b"/")))
        return [path for _, some in groups for path in self._missing(list(some))]

    def _missing(self, neighbours: list[bytes]) -> list[bytes]:
        try:
            with self.dir_fd(neighbours[0].rstrip(b"/")) as parent:
                return [path for path in neighbours if _is_missing(parent, posixpath.basename(path.rstrip(b"/")))]
        except Gone:
            return neighbours
        except (NotRegular, Fault):
            return []

    def open(self, path: bytes) -> int:
        """Open the regular file at ``path`` for reading; the caller closes the descriptor.

        Raises ``NotRegular`` for anything else, which is never opened for reading.
        """
        return self.open_with_stat(path)[0]

    def open_with_stat(self, path: bytes) -> tuple[int, os.stat_result]:
        """As ``open``; return also the file's stat, from before it was opened."""
        return self._at(path, _open_regular)

    def open_directory(self, path: bytes) -> int:
        """Open the directory at ``path`` (b"" for the root) for listing; the caller closes it."""
        return self._at(path, lambda parent, name: os.open(name, os.O_RDONLY | _DIRECTORY, dir_fd=parent))

    @contextmanager
    def dir_fd(self, path: bytes) -> Iterator[int]:
        """Yield a descriptor of the directory that holds ``path``, for ``*at`` calls on its last component.

        It is an ``O_PATH`` descriptor where the system has it: good for rename, unlink, link and openat, not for fsync
        (``durable.sync`` takes it).
        """
        with ExitStack() as opened:
            with os_errors_as_faults():  # the walk only: the caller's errors stay as they are
                fd, _ = opened.enter_context(parent_of(self.fd, _components(path)))
            yield fd

    def _at(self, path: bytes, call: Callable[[int, bytes], T]) -> T:
        """Return what ``call`` returns for the directory that holds ``path``, open, and for its last component."""
        components = _components(path)
        *above, name = components
        try:
            if not above:
                return call(self.fd, name)
            with parent_of(self.fd, components) as (parent, _):
                return call(parent, name)
        except OSError as error:
            raise _meaning_of(error) from None


class Folders:
    """The open folders of all watches, each opened once: a second descriptor's lock would conflict with the first's."""

    def __init__(self) -> None:
        self._open: dict[bytes, Folder] = {}

    def open(self, watches: Sequence[WatchConfig], *, lock: bool = False) -> dict[str, Folder]:
        """Return the folder of each watch, by name; with ``lock``, locked against other daemons.

        Raises ``UsageError`` for one that can't be opened and ``Unavailable`` for one that another daemon holds; then
        no more folders are open than before.
        """
        before = set(self._open.values())
        try:
            return {watch.name: self._open_one(watch, lock=lock) for watch in watches}
        except BaseException:
            self.close_unused(before)
            raise

    def _open_one(self, watch: WatchConfig, *, lock: bool) -> Folder:
        root = root_of(watch)
        if root not in self._open:
            self._open[root] = Folder(watch)
        folder = self._open[root]
        if lock:
            folder.lock()
        return folder

    def close_unused(self, used: Collection[Folder]) -> None:
        """Close all folders but ``used``."""
        for root, folder in list(self._open.items()):
            if folder not in used:
                del self._open[root]
                folder.close()


def root_of(watch: WatchConfig) -> bytes:
    """Return a watch's root as the configuration names it."""
    return os.path.abspath(os.fsencode(watch.path))  # noqa: PTH100 - resolve() would follow symlinks


def _components(path: bytes) -> list[bytes]:
    """Return the components of a path below the root (b""); raise ``Gone`` for one that could lead elsewhere."""
    if not path:
        return [b"."]
    components = path.split(b"/")
    if b"" in components or b"." in components or b".." in components or b"\0" in path:
        raise Gone("not a path below the folder")
    return components


def _is_missing(parent: int, name: bytes) -> bool:
    try:
        _stat(parent, name)
    except OSError as error:
        return error.errno in _GONE
    return False


def _stat(parent: int, name: bytes) -> os.stat_result:
    return os.stat(name, dir_fd=parent, follow_symlinks=False)


def _open_regular(parent: int, name: bytes) -> tuple[int, os.stat_result]:
    if not _O_PATH:
        seen = _stat(parent, name)
        return _open_compared(parent, name, seen), seen
    place = os.open(name, _PATH_ONLY, dir_fd=parent)
    try:
        st = os.fstat(place)
        if not stat.S_ISREG(st.st_mode):
            raise NotRegular("not a regular file")
        try:
            return os.open(f"{place}", _READ & ~os.O_NOFOLLOW, dir_fd=_own_descriptors()), st
        except FileNotFoundError:  # without /proc, as without O_PATH: open by name and compare
            return _open_compared(parent, name, st), st
    finally:
        os.close(place)


@cache
def _own_descriptors() -> int:
    """Return a descriptor of /proc/self/fd: to walk there for each file takes a third longer."""
    return os.open("/proc/self/fd", _O_PATH | _DIRECTORY)


os.register_at_fork(after_in_child=_own_descriptors.cache_clear)


def _open_compared(parent: int, name: bytes, seen: os.stat_result) -> int:
    """Open by name the regular file whose stat is ``seen``; raise ``Gone`` if it is another file now."""
    if not stat.S_ISREG(seen.st_mode):
        raise NotRegular("not a regular file")
    fd = os.open(name, _READ, dir_fd=parent)
    try:
        now = os.fstat(fd)
    except OSError:
        close_quietly(fd)
        raise
    if _identity(now) == _identity(seen):
        return fd
    close_quietly(fd)
    raise Gone("replaced while it was opened")


@contextmanager
def os_errors_as_faults() -> Iterator[None]:
    """Turn an ``OSError`` of the body into what the stages handle: ``Gone``, ``NotRegular`` or a ``Fault``."""
    try:
        yield
    except OSError as error:
        raise _meaning_of(error) from None


def _meaning_of(error: OSError) -> PresigndError:
    if error.errno in _GONE:
        return Gone(reason_of(error))
    if error.errno in _NOT_REGULAR:
        return NotRegular(reason_of(error))
    if error.errno in NO_DESCRIPTORS:
        return system_fault("too_many_files", error)
    return system_fault("unreadable" if error.errno in _UNREADABLE else "read_error", error)


def _open_root(root: bytes) -> int:
    with open_folder(Path(os.fsdecode(root))) as fd:
        return os.dup(fd)


def _inline_limit(root: int) -> int:
    return 0 if may_hang(root) else INLINE_LIMIT


def _identity(st: os.stat_result) -> tuple[int, int]:
    return st.st_dev, st.st_ino


def _no_root(watch: WatchConfig, error: OSError) -> UsageError:
    fix = {
        errno.ENOENT: "make the folder, or correct the watch's path",
        errno.ENOTDIR: "give a folder, not a file",
        errno.ELOOP: "a symlink that others could have made is not followed",
        errno.EACCES: "give the daemon's user read and search permission on it and its parents",
    }.get(error.errno or 0, "see the system's message")
    return UsageError(f"watch {watch.name}: {watch.path}: {error.strerror}", fix=fix)


# --- free names ---------------------------------------------------------------------------------


def rename_to_free(from_dir: int, name: bytes, to_dir: int, wanted: bytes) -> bytes:
    """Rename to the first free name of ``numbered_names(wanted)``; return that name.

    A name that is this same file already (a crash between link and unlink) counts as free.
    """
    candidates = numbered_names(wanted)
    while True:
        candidate = next(candidates)
        try:
            rename_noreplace(from_dir, name, to_dir, candidate)
        except FileExistsError:
            if not _is_same(from_dir, name, to_dir, candidate):
                continue
            os.unlink(name, dir_fd=from_dir)
        return candidate


def _is_same(from_dir: int, name: bytes, to_dir: int, other: bytes) -> bool:
    with suppress(FileNotFoundError):
        one = os.stat(name, dir_fd=from_dir, follow_symlinks=False)
        return os.path.samestat(one, os.stat(other, dir_fd=to_dir, follow_symlinks=False))
    return False


def numbered_names(name: bytes) -> Iterator[bytes]:
    """Yield ``name.ext``, ``name~2.ext``, ``name~3.ext`` …, each within 255 bytes."""
    stem, suffix = posixpath.splitext(name)
    return chain([name], (_with_number(stem, suffix, number) for number in count(2)))


def _with_number(stem: bytes, suffix: bytes, number: int) -> bytes:
    mark = b"~%d" % number
    suffix = suffix[: NAME_MAX - len(mark) - 1]
    room = NAME_MAX - len(mark) - len(suffix)
    if len(stem) > room:
        while room > 1 and stem[room] in _CONTINUATION:
            room -= 1
        stem = stem[:room]
    return stem + mark + suffix
