"""Writes ``links.jsonl``: a batch of lines is appended durably as a whole, or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING

from presignd.errors import NO_SPACE, UsageError, fault
from presignd.links.format import Cursor, decode, encode, to_link
from presignd.links.permissions import group_id, make_links_folder, set_permissions
from presignd.links.reader import BLOCK, close_all, highest_number, name_of, open_all, read
from presignd.model import LinksMark
from presignd.runtime.crash_points import passed
from presignd.system.durable import sync_folder, write_all
from presignd.system.syscalls import reserve
from presignd.system.trust import require_owner, walked

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from presignd.config import LinksConfig
    from presignd.model import Link


class LinksFile:
    """Writes ``links.jsonl``. There is one writer at a time (the ledger's lock ensures it), not re-entrant."""

    def __init__(self, config: LinksConfig) -> None:
        self._file = config.file
        self._rotate_size = config.rotate_size
        self._keep = max(1, config.keep)
        self._group = group_id(config.group)
        self._mode = 0o600 if self._group is None else 0o640
        self._fd = -1
        self._inode = 0
        self._end = 0
        self._has_failed_lines = False

    @classmethod
    def open(cls, config: LinksConfig, mark: LinksMark | None) -> tuple[LinksFile, Iterator[Link]]:
        """Open the file (made if missing, and its folder); return it with the links after the ledger's ``mark``.

        A crash between the append and the ledger's commit leaves such links: their lines must not be written again, so
        the caller records their versions as linked, with ``links_file.mark``. Without a mark, or when its file is gone,
        these are all links in the files, so they are yielded one by one: consume them before the first append. A torn
        last line is cut off. Raises ``UsageError`` for a file, folder or group that can't be used.
        """
        links = cls(config)
        try:
            make_links_folder(config.file.parent, config.file.name, links._group)
            links._open(mark)
            links._set_permissions_of_rotated()
        except OSError as error:
            raise UsageError(
                f"links.file: {config.file}: {error.strerror}", fix="name a file in a folder the daemon can write to"
            ) from None
        return links, links._links_between(mark, links.mark)

    @property
    def mark(self) -> LinksMark:
        """The file's inode and its end: the ledger commits it with the links up to there."""
        return LinksMark(self._inode, self._end)

    def append(self, links: Sequence[Link]) -> LinksMark:
        """Append ``links`` durably and return the mark after them. Blocking (fsync): call it in a thread.

        Raises ``fault("disk_full")`` or ``fault("links_failed")``; then none of them is in the file. A file that
        another program deleted or moved away is made again; one that it truncated is appended to.
        """
        data = b"".join(map(encode, links))
        if data:
            with _as_fault():
                self._reopen_if_changed()
                self._rotate_if_large()
                self._write(data)
        return self.mark

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    # --- appending ------------------------------------------------------------------------------
    def _reopen_if_changed(self) -> None:
        """Open the file again if another program replaced it or changed its size; first cut off failed lines."""
        try:
            st = self._file.lstat()
        except FileNotFoundError:
            self._open(None)
            return
        if self._has_failed_lines and self._fd >= 0 and st.st_ino == self._inode:
            self._cut_failed_lines()
            st = self._file.lstat()
        if self._fd < 0 or (st.st_ino, st.st_size) != (self._inode, self._end):
            self._open(None)

    def _cut_failed_lines(self) -> None:
        """Cut off what a failed append wrote after the end; each append tries it first until it succeeds."""
        os.ftruncate(self._fd, self._end)
        self._has_failed_lines = False

    def _write(self, data: bytes) -> None:
        self._has_failed_lines = True
        try:
            _reserve(self._fd, self._end, len(data))
            passed("links.append.before")
            write_all(self._fd, data, self._end)
            passed("links.append.written")
            os.fsync(self._fd)
            passed("links.append.synced")
        except OSError:
            with contextlib.suppress(OSError):
                self._cut_failed_lines()
            raise
        self._end += len(data)
        self._has_failed_lines = False

    def _rotate_if_large(self) -> None:
        if self._end and self._end >= self._rotate_size:
            self._rotate()
            self._open(None)

    def _rotate(self) -> None:
        """Move each file one number up, the oldest first.

        A crash in between leaves a number unused, and the next rotation moves files only up to that number, so no
        file is removed early. A crash at the end leaves no ``links.jsonl``; the next start makes it.
        """
        names = [name_of(self._file, number) for number in range(self._keep + 1)]
        last = next((n for n, name in enumerate(names) if n and not name.exists()), self._keep)
        with walked(self._file.parent) as place:
            for number in range(last, 0, -1):
                os.rename(names[number - 1].name, names[number].name, src_dir_fd=place.fd, dst_dir_fd=place.fd)
                passed("links.rotate.step")
            for number in range(self._keep + 1, highest_number(self._file) + 1):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name_of(self._file, number).name, dir_fd=place.fd)

    # --- opening --------------------------------------------------------------------------------
    def _open(self, mark: LinksMark | None) -> None:
        """Open or make ``links.jsonl``, set its permissions, cut off a torn line, and sync its folder."""
        self.close()
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with walked(self._file.parent) as place:
            self._fd, self._has_failed_lines = os.open(self._file.name, flags, 0o600, dir_fd=place.fd), False
        st = os.fstat(self._fd)
        if not stat.S_ISREG(st.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        require_owner(st, self._file)
        set_permissions(self._fd, self._group, self._mode)
        self._inode = st.st_ino
        self._end = _end_of_lines(self._fd, mark.offset if mark and mark.inode == st.st_ino else None)
        if self._end != st.st_size:
            os.ftruncate(self._fd, self._end)
            os.fsync(self._fd)
        sync_folder(self._file.parent)

    def _set_permissions_of_rotated(self) -> None:
        """Set the permissions of the rotated files: ``links.group`` may have changed since they were written."""
        fds = open_all(self._file)
        try:
            for fd in fds:
                require_owner(os.fstat(fd), name_of(self._file, 1))
                set_permissions(fd, self._group, self._mode)
        finally:
            close_all(fds)

    def _links_between(self, mark: LinksMark | None, until: LinksMark) -> Iterator[Link]:
        for document, cursor in read(self._file, Cursor(mark.inode, mark.offset) if mark else None):
            if cursor.inode == until.inode and cursor.offset > until.offset:
                return
            if (link := to_link(document)) is not None:
                yield link


def _end_of_lines(fd: int, known: int | None) -> int:
    """Return where the whole lines end.

    After a power loss, some blocks of an append may be on disk and others not (zeros). No line after ``known``, the
    ledger's mark, was committed, so the file ends before the first of them that is no JSON.
    """
    end = _last_newline(fd)
    if known is None or known > end or (known and os.pread(fd, 1, known - 1) != b"\n"):
        return end
    while known < end:
        block = os.pread(fd, end - known, known)
        for line in block.splitlines(keepends=True):
            if not line.endswith(b"\n") or decode(line) is None:
                return known
            known += len(line)
    return end


def _last_newline(fd: int) -> int:
    """Return the offset after the last newline, 0 when there is none."""
    end = os.fstat(fd).st_size
    while end:
        start = max(0, end - BLOCK)
        found = os.pread(fd, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _reserve(fd: int, offset: int, length: int) -> None:
    """Reserve disk space for an append, without changing the file's size; raise ``OSError`` where the disk is full.

    So a full disk shows before a reader can have seen a line that is then removed. On a filesystem that can't reserve,
    nothing is reserved.
    """
    try:
        reserve(fd, offset, length)
    except OSError as error:
        if error.errno in NO_SPACE:
            raise


@contextlib.contextmanager
def _as_fault() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        code = "disk_full" if error.errno in NO_SPACE else "links_failed"
        raise fault(code, f"links file: {error.strerror}") from None
    except UsageError as error:
        raise fault("links_failed", error.message) from None
