"""Reads ``links.jsonl`` and its rotated files in order, oldest first: no line missed, repeated or torn."""

from __future__ import annotations

import asyncio
import os
import re
import stat
from contextlib import aclosing
from itertools import count, islice
from typing import TYPE_CHECKING, Any

from presignd.links.format import Cursor, decode

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    Item = tuple[dict[str, Any], Cursor]

BLOCK = 64 << 10
"""Bytes per read; a line is about 1 KiB and at most some 40 KiB (a path of 4 KiB escaped, a URL)."""
USUAL_LINE = 2048
"""Bytes that a line rarely exceeds: ``last_links`` reads so many for each link."""
TURN = 64
"""Lines after which ``follow`` lets other tasks of the event loop run."""
_NUMBER = re.compile("[1-9][0-9]{0,3}")
"""The number of a rotated file. A longer one is another program's, such as logrotate's date."""


# --- which files there are ----------------------------------------------------------------------


def name_of(file: Path, number: int) -> Path:
    """Return the path of the file that was rotated ``number`` times; ``file`` itself for 0."""
    return file.with_name(f"{file.name}.{number}") if number else file


def highest_number(file: Path) -> int:
    """Return the highest number that a rotated file has, 0 when there is none."""
    prefix = file.name + "."
    try:
        names = [path.name for path in file.parent.iterdir()]
    except FileNotFoundError:
        return 0
    suffixes = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    return max((int(suffix) for suffix in suffixes if _NUMBER.fullmatch(suffix)), default=0)


def open_all(file: Path) -> list[int]:
    """Open ``links.jsonl`` and every rotated file for reading; return the descriptors, oldest file first.

    Files are opened from the newest to the oldest: a rotation at the same time moves files up, so one can be found
    twice (and is kept once) but not missed. Raises ``OSError`` where one can't be read.
    """
    found: dict[int, int] = {}
    last = highest_number(file)
    try:
        for number in count():
            fd = _open(name_of(file, number))
            if fd is not None and found.setdefault(_inode(fd), fd) != fd:
                os.close(fd)
            if fd is None and number > last:  # a crash during rotation may leave out a lower number
                break
    except OSError:
        close_all(found.values())
        raise
    return list(reversed(found.values()))


def _open(path: Path) -> int | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    return None


def close_all(fds: Iterable[int]) -> None:
    """Close every descriptor of ``fds``."""
    for fd in fds:
        os.close(fd)


def _inode(fd: int) -> int:
    return os.fstat(fd).st_ino


# --- reading on ---------------------------------------------------------------------------------


def _ignore_gap() -> None:
    """Do nothing, for a caller that ignores gaps."""


class Reader:
    """Reads from a position on. ``read`` yields the lines there are; call it again for those appended since.

    ``on_gap`` is called when ``after`` (or the file being read) no longer exists, so that lines may be missing:
    reading begins again at the oldest file. Close it at the end.
    """

    def __init__(self, file: Path, after: Cursor | None, on_gap: Callable[[], None] = _ignore_gap) -> None:
        self._file = file
        self._after = after
        self._on_gap = on_gap
        self._fd = -1  # kept open: the file stays readable when rotated out, and its inode number isn't reused
        self._inode = 0
        self._offset = 0
        self._older: frozenset[int] = frozenset()

    def read(self) -> Iterator[Item]:
        """Yield each whole line after the position, as parsed JSON with the cursor after it."""
        if self._fd < 0 and not self._open_first():
            return
        while True:
            # Checked before reading: nothing is appended to a rotated file, so the read that follows reaches its end.
            rotated = self._is_rotated()
            yield from self._lines()
            if not rotated or not self._open_next():
                return

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open_first(self) -> bool:
        """Open the file that ``after`` is in, else the oldest; False when there is none at all."""
        fds = open_all(self._file)
        index = 0
        if self._after is not None and fds:
            index = next((i for i, fd in enumerate(fds) if _holds(fd, self._after)), -1)
            if index < 0:
                self._on_gap()
        if not self._keep_one(fds, max(index, 0)):
            return False
        if self._after is not None and index >= 0:
            self._offset = self._after.offset
        return True

    def _open_next(self) -> bool:
        """Open the next newer file; False when there is none yet."""
        fds = open_all(self._file)
        inodes = list(map(_inode, fds))
        if self._inode in inodes:
            return self._keep_one(fds, inodes.index(self._inode) + 1)
        # It was rotated out or deleted: continue after the newest of the files that were older than it.
        index = max((i + 1 for i, inode in enumerate(inodes) if inode in self._older), default=0)
        kept = self._keep_one(fds, index)
        if kept and index == 0 and len(inodes) > 1:
            self._on_gap()
        return kept

    def _keep_one(self, fds: list[int], index: int) -> bool:
        """Keep descriptor ``index`` of ``fds``, to read from its start, and close the others; False without one."""
        if index >= len(fds):
            close_all(fds)
            return False
        self.close()
        self._older = frozenset(map(_inode, fds[:index]))
        self._fd = fds.pop(index)
        self._inode, self._offset = _inode(self._fd), 0
        close_all(fds)
        return True

    def _is_rotated(self) -> bool:
        try:
            return self._file.stat().st_ino != self._inode
        except FileNotFoundError:
            return True

    def _lines(self) -> Iterator[Item]:
        self._check_truncation()
        while block := _whole_lines(self._fd, self._offset):
            for line in block.splitlines(keepends=True):
                self._offset += len(line)
                document = decode(line)
                if document is not None:
                    yield document, Cursor(self._inode, self._offset, str(document.get("file_id", "")))

    def _check_truncation(self) -> None:
        """Move the position back where the file was truncated: to its end, or to 0 (a gap) where it grew again."""
        size = os.fstat(self._fd).st_size
        if size < self._offset:
            self._offset = size
        elif not _line_ends(self._fd, self._offset):
            self._offset = 0
            self._on_gap()


def _whole_lines(fd: int, offset: int) -> bytes:
    """Return the bytes from ``offset`` up to a newline, about ``BLOCK``; b"" when there is no whole line."""
    length = BLOCK
    while True:
        block = os.pread(fd, length, offset)
        end = block.rfind(b"\n") + 1
        if end or len(block) < length:
            return block[:end]
        length *= 2


def _line_ends(fd: int, offset: int) -> bool:
    return offset == 0 or os.pread(fd, 1, offset - 1) == b"\n"


def _holds(fd: int, cursor: Cursor) -> bool:
    """Return whether this is the cursor's file: a line ends at its offset, and is the line it names."""
    if _inode(fd) != cursor.inode or not _line_ends(fd, cursor.offset):
        return False
    if not cursor.file_id:
        return True
    start = max(0, cursor.offset - BLOCK)
    line = os.pread(fd, cursor.offset - start, start).splitlines()[-1:]
    document = decode(line[0]) if line else None
    return document is not None and document.get("file_id") == cursor.file_id


def read(
    file: Path, after: Cursor | None, on_gap: Callable[[], None] = _ignore_gap
) -> Iterator[tuple[dict[str, Any], Cursor]]:
    """Yield every link after ``after`` (None: all), oldest first, each with the cursor after it.

    ``on_gap`` is called when the file of ``after`` is gone; then it begins with the oldest link. Blocking; raises
    ``OSError`` where a file can't be read, and yields nothing where there is none.
    """
    reader = Reader(file, after, on_gap)
    try:
        yield from reader.read()
    finally:
        reader.close()


async def follow(
    file: Path,
    after: Cursor | None,
    *,
    poll: float = 0.1,
    on_gap: Callable[[], None] = _ignore_gap,
    forever: bool = True,
) -> AsyncGenerator[tuple[dict[str, Any], Cursor], None]:
    """Yield as ``read`` does, then each link that is appended; look for more every ``poll`` seconds, without end.

    Reads on the event loop in small blocks and gives way between them. With ``forever`` false it ends after the links
    there are.
    """
    reader = Reader(file, after, on_gap)
    try:
        while True:
            for turn, item in enumerate(reader.read()):
                yield item
                if turn % TURN == TURN - 1:
                    await asyncio.sleep(0)
            if not forever:
                return
            await asyncio.sleep(poll)
    finally:
        reader.close()


async def answer_links(file: Path, request: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """Answer the control socket's request ``{"op": "links", "follow": bool, "after": cursor | None}``.

    Yields ``{"link": {…}, "cursor": {…}}`` for each link, oldest first, and before it ``{"gap": true}`` where
    ``after`` was rotated out: lines may be missing or repeated. ``{"end": true}`` follows the last one, so that a
    connection closed half way isn't taken for the end; with ``follow`` there is none.
    The caller checks that the peer may read links. Raises ``UsageError`` for a bad cursor.
    """
    after = None if request.get("after") is None else Cursor.from_json(request["after"])
    gaps: list[dict[str, Any]] = []
    items = follow(file, after, forever=bool(request.get("follow")), on_gap=lambda: gaps.append({"gap": True}))
    async with aclosing(items):
        async for link, cursor in items:
            while gaps:
                yield gaps.pop()
            yield {"link": link, "cursor": cursor.to_json()}
    yield {"end": True}


# --- the newest ---------------------------------------------------------------------------------


def last_links(file: Path, count: int) -> list[dict[str, Any]]:
    """Return the ``count`` newest links, newest first, with their URLs; fewer where lines are very long.

    Blocking; raises ``OSError`` where a file can't be read, returns nothing where there is none.
    """
    fds = open_all(file)
    try:
        return list(islice(_newest_first(fds, count), count))
    finally:
        close_all(fds)


def _newest_first(fds: list[int], count: int) -> Iterator[dict[str, Any]]:
    for fd in reversed(fds):
        size = os.fstat(fd).st_size
        start = max(0, size - count * USUAL_LINE)
        *lines, _torn = os.pread(fd, size - start, start).split(b"\n")
        for line in reversed(lines if start == 0 else lines[1:]):
            if (document := decode(line)) is not None:
                yield document
