"""The folder of an inbox: downloads under hidden names, and the rename of each to its place. Blocking.

Every step walks by descriptor from the folder's root, and follows no symlink below it. ``OSError`` comes as the system
raises it.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from presignd.inbox.names import numbered
from presignd.pipeline.files.ignore import INBOX_PREFIX
from presignd.runtime.crash_points import passed
from presignd.s3 import checksums
from presignd.s3.multipart import etag_of_parts
from presignd.system.durable import rename_noreplace, sync
from presignd.system.trust import open_folder, parent_of

PIECE = 1 << 20
"""Bytes that are hashed at a time."""

_NO_FOLDER = frozenset({errno.ENOTDIR, errno.ELOOP})
"""Errors of open(2) with ``O_DIRECTORY`` and ``O_NOFOLLOW`` for a file, and for a symlink."""
_DOWNLOAD = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Identity(NamedTuple):
    """What identifies a file that was placed: its inode, and its mtime."""

    ino: int
    mtime_ns: int


class InboxFolder:
    """One inbox's folder. Its files below other names are never opened."""

    def __init__(self, inbox: str, path: Path) -> None:
        self.path = path
        self._prefix = INBOX_PREFIX + inbox.encode() + b"-"
        self._own = re.compile(re.escape(self._prefix) + rb"([A-Za-z0-9_-]{16})")

    @contextmanager
    def open(self) -> Iterator[int]:
        """Yield the folder; follow no symlink that others could have made."""
        with open_folder(self.path) as root:
            yield root

    # --- downloads --------------------------------------------------------------------------------
    def open_download(self, ref: str) -> int:
        """Open the file that is being downloaded, made where it is missing; the caller closes it.

        A file that belongs to another user or also has another name is not ours: it is removed first.
        """
        with self.open() as root:
            fd = os.open(self._name(ref), _DOWNLOAD | os.O_CREAT, 0o666, dir_fd=root)
            st = os.fstat(fd)
            if stat.S_ISREG(st.st_mode) and st.st_nlink == 1 and st.st_uid == os.geteuid():
                return fd
            os.close(fd)
            os.unlink(self._name(ref), dir_fd=root)
            return os.open(self._name(ref), _DOWNLOAD | os.O_CREAT | os.O_EXCL, 0o666, dir_fd=root)

    def forget_others(self, refs: Sequence[str]) -> int:
        """Remove downloads of files that are no longer wanted; return how many."""
        with self.open() as root:
            with os.scandir(root) as entries:
                names = [os.fsencode(entry.name) for entry in entries]
            found = {name: own[1].decode() for name in names if (own := self._own.fullmatch(name))}
            left = [name for name, ref in found.items() if ref not in refs]
            for name in left:
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=root)
        return len(left)

    def _name(self, ref: str) -> bytes:
        return self._prefix + ref.encode()

    # --- places -----------------------------------------------------------------------------------
    def choose(self, names: Sequence[str]) -> bytes:
        """Return an unused path below the folder: the first free name, in its folders, which are made durably.

        If something else has a folder's name, the folder gets the next name.
        """
        *folders, name = names
        with self.open() as root:
            at, chosen = os.dup(root), list[bytes]()
            try:
                for folder in folders:
                    made, below = _enter(at, folder)
                    os.close(at)
                    at = below
                    chosen.append(made)
                chosen.append(next(each for each in map(_encoded, numbered(name)) if not _exists(at, each)))
            finally:
                os.close(at)
        return b"/".join(chosen)

    def put_in_place(self, ref: str, place: bytes) -> None:
        """Rename a download to its place, durably; raise ``FileExistsError`` where something is there.

        ``FileNotFoundError`` means that a folder of the place, or the download, is gone.
        """
        with self.open() as root, parent_of(root, place.split(b"/")) as (parent, name):
            passed("inbox.place.before")
            rename_noreplace(root, self._name(ref), parent, name)
            passed("inbox.place.after")
            sync(parent)
            sync(root)

    def is_in_place(self, ref: str, place: bytes, size: int, identity: Identity) -> bool:
        """Return whether a download was renamed to its place before a crash.

        If a hard link replaced the rename, the download's name may be left: it is removed.
        """
        try:
            with self.open() as root, parent_of(root, place.split(b"/")) as (parent, name):
                found = os.stat(name, dir_fd=parent, follow_symlinks=False)
                if not _is_it(found, size, identity):
                    return False
                with suppress(FileNotFoundError):
                    if os.path.samestat(found, os.stat(self._name(ref), dir_fd=root, follow_symlinks=False)):
                        os.unlink(self._name(ref), dir_fd=root)
                sync(parent)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True


def _is_it(found: os.stat_result, size: int, identity: Identity) -> bool:
    """Return whether this is the file, even if it was written to since: some filesystems give new inode numbers."""
    same_bytes = (found.st_size, found.st_mtime_ns) == (size, identity.mtime_ns)
    return stat.S_ISREG(found.st_mode) and (found.st_ino == identity.ino or same_bytes)


def _encoded(name: str) -> bytes:
    return name.encode()


def _exists(folder: int, name: bytes) -> bool:
    with suppress(FileNotFoundError):
        os.stat(name, dir_fd=folder, follow_symlinks=False)
        return True
    return False


def _enter(at: int, folder: str) -> tuple[bytes, int]:
    """Open a folder below ``at``, made durably where it is missing; return its name and its descriptor."""
    for name in map(_encoded, numbered(folder)):
        with suppress(FileExistsError):
            os.mkdir(name, dir_fd=at)
            sync(at)
        try:
            return name, os.open(name, _DIRECTORY, dir_fd=at)
        except OSError as error:
            if error.errno not in _NO_FOLDER:
                raise
    raise AssertionError("numbers don't end")  # pragma: no cover


# --- content --------------------------------------------------------------------------------------
def checksum_like(fd: int, size: int, checksum: str, part_size: int) -> str:
    """Return the checksum of a file in the form of ``checksum``: of the whole, or the MD5 of its parts' MD5s."""
    algorithm = checksums.algorithm_of(checksum)
    if "-" not in checksum:
        return f"{algorithm}:{_digest(fd, 0, size, algorithm)}"
    starts = range(0, size, part_size)
    return f"md5:{etag_of_parts([_digest(fd, start, min(part_size, size - start), 'md5') for start in starts])}"


def is_comparable(checksum: str, part_size: int) -> bool:
    """Return whether ``checksum_like`` can compute this form here at a useful speed."""
    algorithm = checksums.algorithm_of(checksum)
    if "-" in checksum:
        return algorithm == "md5" and part_size > 0
    return checksums.is_of_whole(checksum) and (algorithm in checksums.STRONG or bool(checksums.native(algorithm)))


def _digest(fd: int, start: int, size: int, algorithm: str) -> str:
    made = checksums.new(algorithm)
    for offset in range(start, start + size, PIECE):
        made.update(os.pread(fd, min(PIECE, start + size - offset), offset))
    return made.hexdigest()
