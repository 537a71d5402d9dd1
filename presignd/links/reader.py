"""Reading the links files in order, oldest first, over rotation: no line missed, repeated or torn."""

from __future__ import annotations

import asyncio
import os
import re
import stat
from itertools import count
from typing import TYPE_CHECKING, Any

from presignd.links.cursor import Cursor
from presignd.links.format import decode

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
    from pathlib import Path

    Item = tuple[dict[str, Any], Cursor]

BLOCK = 64 << 10
"""Bytes a read; a line is about 1 KiB and at most some 40 KiB (a path of 4 KiB escaped, a URL)."""
_ROTATED = re.compile("[1-9][0-9]{0,3}")
"""Longer numbers are somebody's dates, and no business of ours."""
TURN = 64
"""Lines after which a reader in an event loop lets others have a turn."""


def name_of(file: Path, number: int) -> Path:
    """Return the name of the file that was rotated ``number`` times."""
    return file.with_name(f"{file.name}.{number}") if number else file


def highest(file: Path) -> int:
    """Return the highest number that a rotated file has, 0 when there is none."""
    prefix = file.name + "."
    try:
        names = [path.name for path in file.parent.iterdir()]
    except FileNotFoundError:
        return 0
    suffixes = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    return max((int(suffix) for suffix in suffixes if _ROTATED.fullmatch(suffix)), default=0)


def open_all(file: Path) -> list[int]:
    """Open each links file there is for reading and return the descriptors, oldest file first.

    Looked at from the newest, on and on until no more is there: a rotation at the same time moves files
    up, so that one can be met twice (and counts once) but not missed. Raises ``OSError`` where one can't
    be read.
    """
    found: dict[int, int] = {}
    last = highest(file)
    try:
        for number in count():
            fd = _open(name_of(file, number))
            if fd is not None and found.setdefault(_inode(fd), fd) != fd:
                os.close(fd)
            if fd is None and number > last:  # up to there a crashed rotation may have left one out
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


def _no_gap_told() -> None:
    """Stand in for a caller that doesn't ask about gaps."""


class Tail:
    """A reader that knows its place. ``read`` gives what is there; call it again for what came since.

    ``on_gap`` is called when ``after`` (or the file under way) is not to be found any more, so that lines
    may be missing: reading begins again with the oldest there is. Close it at the end.
    """

    def __init__(self, file: Path, after: Cursor | None, on_gap: Callable[[], None] = _no_gap_told) -> None:
        self._file = file
        self._after = after
        self._on_gap = on_gap
        self._fd = -1  # held open: it stays readable when rotated out, and its inode can't be given away
        self._inode = 0
        self._offset = 0
        self._older: frozenset[int] = frozenset()

    def read(self) -> Iterator[Item]:
        """Yield each whole line after the place, as parsed JSON with the place behind it."""
        if self._fd < 0 and not self._begin():
            return
        while True:
            # Before reading: nothing is appended to a file once it is rotated, so then its end is its end.
            rotated = self._is_rotated()
            yield from self._lines()
            if not rotated or not self._go_on():
                return

    def close(self) -> None:
        """Let go of the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _begin(self) -> bool:
        """Take the file that ``after`` stands in, else the oldest; False when there is none at all."""
        there = open_all(self._file)
        index = 0
        if self._after is not None and there:
            index = next((i for i, fd in enumerate(there) if _stands(fd, self._after)), -1)
            if index < 0:
                self._on_gap()
        if not self._take(there, max(index, 0)):
            return False
        if self._after is not None and index >= 0:
            self._offset = self._after.offset
        return True

    def _take(self, there: list[int], index: int) -> bool:
        """Read descriptor ``index`` of ``there`` from now on, close the others; False when there is none."""
        if index >= len(there):
            close_all(there)
            return False
        self.close()
        self._older = frozenset(map(_inode, there[:index]))
        self._fd = there.pop(index)
        self._inode, self._offset = _inode(self._fd), 0
        close_all(there)
        return True

    def _is_rotated(self) -> bool:
        try:
            return self._file.stat().st_ino != self._inode
        except FileNotFoundError:
            return True

    def _go_on(self) -> bool:
        """Take the next newer file; False when there is none yet."""
        there = open_all(self._file)
        inodes = list(map(_inode, there))
        if self._inode in inodes:
            return self._take(there, inodes.index(self._inode) + 1)
        # It was rotated out or deleted while we read: go on behind the last of those older than it.
        index = max((i + 1 for i, inode in enumerate(inodes) if inode in self._older), default=0)
        taken = self._take(there, index)
        if taken and index == 0 and len(inodes) > 1:
            self._on_gap()
        return taken

    def _lines(self) -> Iterator[Item]:
        self._mind_truncation()
        while block := _whole_lines(self._fd, self._offset):
            for line in block.splitlines(keepends=True):
                self._offset += len(line)
                document = decode(line)
                if document is not None:
                    yield document, Cursor(self._inode, self._offset, str(document.get("file_id", "")))

    def _mind_truncation(self) -> None:
        """Go back where somebody cut the file: all that is left of it was read, unless it grew again."""
        size = os.fstat(self._fd).st_size
        if size < self._offset:
            self._offset = size
        elif not _line_ends(self._fd, self._offset):
            self._offset = 0
            self._on_gap()


def _whole_lines(fd: int, offset: int) -> bytes:
    """Read from ``offset`` up to a newline, about ``BLOCK`` bytes; b"" when no whole line is there."""
    length = BLOCK
    while True:
        block = os.pread(fd, length, offset)
        end = block.rfind(b"\n") + 1
        if end or len(block) < length:
            return block[:end]
        length *= 2


def _line_ends(fd: int, offset: int) -> bool:
    return offset == 0 or os.pread(fd, 1, offset - 1) == b"\n"


def _stands(fd: int, cursor: Cursor) -> bool:
    """Tell whether this is the cursor's file: a line ends where it says, and is the one it says."""
    if _inode(fd) != cursor.inode or not _line_ends(fd, cursor.offset):
        return False
    if not cursor.file_id:
        return True
    start = max(0, cursor.offset - BLOCK)
    line = os.pread(fd, cursor.offset - start, start).splitlines()[-1:]
    document = decode(line[0]) if line else None
    return document is not None and document.get("file_id") == cursor.file_id


def read(
    file: Path, after: Cursor | None, on_gap: Callable[[], None] = _no_gap_told
) -> Iterator[tuple[dict[str, Any], Cursor]]:
    """Yield every link there is after ``after`` (None: all), oldest first, each with the cursor behind it.

    ``on_gap`` is called when ``after`` was rotated out; then it begins with the oldest. Blocking; raises
    ``OSError`` where a file can't be read, nothing where there is none.
    """
    tail = Tail(file, after, on_gap)
    try:
        yield from tail.read()
    finally:
        tail.close()


async def follow(
    file: Path,
    after: Cursor | None,
    *,
    poll: float = 0.1,
    on_gap: Callable[[], None] = _no_gap_told,
    forever: bool = True,
) -> AsyncGenerator[tuple[dict[str, Any], Cursor], None]:
    """Yield as ``read`` does and go on as links come, looking every ``poll`` seconds; never ends by itself.

    Reads on the event loop in small blocks and gives way between them. With ``forever`` false it ends
    when all that was there has been read.
    """
    tail = Tail(file, after, on_gap)
    try:
        while True:
            for turn, item in enumerate(tail.read()):
                yield item
                if turn % TURN == TURN - 1:
                    await asyncio.sleep(0)
            if not forever:
                return
            await asyncio.sleep(poll)
    finally:
        tail.close()
