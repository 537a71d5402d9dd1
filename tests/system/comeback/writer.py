"""A writer that comes back at the worst moment, and keeps books of every byte that it may expect to find again.

Each way to write is a generator that yields between its system calls, so that whoever drives it chooses the
moments. Every write is a token that occurs once. A token counts once its file is closed, until the writer
itself destroys it: by truncating, overwriting or replacing what holds it.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

TOKEN = re.compile(rb"\[\d+-\d+\]")

Session = Iterator[None]


@dataclass
class Writer:
    """One program that writes ``file`` (and nothing else does, but for what presignd moves)."""

    file: Path
    number: int
    elsewhere: Path
    """A folder of its own on the same filesystem: staging, and where what it takes away goes."""
    waits: bool = False
    """Whether its opens wait while presignd holds a lease, as most do; else they are tried again."""
    closed: set[bytes] = field(default_factory=set)
    destroyed: set[bytes] = field(default_factory=set)
    _made: int = 0
    _files: dict[int, int] = field(default_factory=dict)
    _doomed: set[int] = field(default_factory=set)

    # --- books ----------------------------------------------------------------------------------
    @property
    def owed(self) -> set[bytes]:
        """What must be found again: written, closed, and not destroyed by the writer itself."""
        return self.closed - self.destroyed

    def token(self) -> bytes:
        """Return bytes that stand nowhere else."""
        self._made += 1
        return b"[%d-%d]" % (self.number, self._made)

    @property
    def untouched(self) -> bool:
        """Whether it wrote nothing yet: all there is to destroy is what was uploaded."""
        return not (self.closed or self._files)

    def own(self, name: str) -> Path:
        """Return a path of its own that is free."""
        self._made += 1
        return self.elsewhere / f"{name}-{self.number}-{self._made}"

    # --- system calls ---------------------------------------------------------------------------
    def open(self, flags: int, path: Path | None = None) -> Iterator[int]:
        """Open, once a lease of presignd's allows it; yields 0 for each refusal, then the descriptor."""
        while True:
            # What stood in a file that is truncated as it is opened could not be told any more.
            safe = flags if self.untouched else flags & ~os.O_TRUNC
            try:
                fd = os.open(path or self.file, safe if self.waits else safe | os.O_NONBLOCK, 0o644)
            except BlockingIOError:
                yield 0
                continue
            self._files[fd] = os.fstat(fd).st_ino
            yield fd
            return

    def close(self, fd: int, token: bytes) -> None:
        """Close: from now on the token is owed, unless the writer has destroyed the file since."""
        os.close(fd)
        del self._files[fd]
        self.closed.add(token)
        if fd in self._doomed:
            self._doomed.remove(fd)
            self.destroyed.add(token)

    def changing(self, fd: int, change: Callable[[], object]) -> None:
        """Make a change through ``fd``, and owe no longer what it destroys."""
        before = _tokens(fd)
        change()
        self.destroyed |= before - _tokens(fd)

    def discard(self, path: Path) -> None:
        """Destroy what was taken away from its name."""
        self.destroyed |= set(TOKEN.findall(path.read_bytes()))
        ino = path.stat().st_ino
        self._doomed |= {fd for fd, file in self._files.items() if file == ino}
        path.unlink()


def _tokens(fd: int) -> set[bytes]:
    return set(TOKEN.findall(os.pread(fd, 1 << 20, 0)))


def _opened(writer: Writer, flags: int, path: Path | None = None) -> Iterator[int]:
    """Yield 0 while it must wait, at last the descriptor; nothing where there is no such file."""
    with suppress(FileNotFoundError, FileExistsError, NotADirectoryError):
        yield from writer.open(flags, path)


def _written(writer: Writer, flags: int, path: Path | None = None) -> Session:
    for fd in _opened(writer, flags, path):
        yield
        if not fd:
            continue
        token = writer.token()
        writer.changing(fd, partial(os.write, fd, token))
        yield
        writer.close(fd, token)


def append(writer: Writer) -> Session:
    """``>>`` on a file that must be there."""
    yield from _written(writer, os.O_RDWR | os.O_APPEND)


def append_or_make(writer: Writer) -> Session:
    """``>>``."""
    yield from _written(writer, os.O_RDWR | os.O_APPEND | os.O_CREAT)


def make(writer: Writer) -> Session:
    """Make the file anew where its name is free."""
    yield from _written(writer, os.O_RDWR | os.O_CREAT | os.O_EXCL)


def overwrite(writer: Writer) -> Session:
    """``>``: what is there is truncated as it is opened."""
    for fd in _opened(writer, os.O_RDWR | os.O_CREAT | os.O_TRUNC):
        yield
        if not fd:
            continue
        writer.changing(fd, partial(os.ftruncate, fd, 0))
        yield
        token = writer.token()
        writer.changing(fd, partial(os.write, fd, token))
        yield
        writer.close(fd, token)


def cut(writer: Writer) -> Session:
    """Truncate in the middle, and write on there."""
    for fd in _opened(writer, os.O_RDWR):
        yield
        if not fd:
            continue
        middle = os.fstat(fd).st_size // 2
        writer.changing(fd, partial(os.ftruncate, fd, middle))
        yield
        token = writer.token()
        writer.changing(fd, partial(os.pwrite, fd, token, middle))
        yield
        writer.close(fd, token)


def hide(writer: Writer) -> Session:
    """Overwrite bytes without changing size or mtime, as ``touch -r`` and ``rsync -t`` can."""
    for fd in _opened(writer, os.O_RDWR):
        yield
        if not fd:
            continue
        st, token = os.fstat(fd), writer.token()
        writer.changing(fd, partial(os.pwrite, fd, token, 0))
        yield
        os.utime(fd, ns=(st.st_atime_ns, st.st_mtime_ns))
        yield
        writer.close(fd, token)


def replace(writer: Writer) -> Session:
    """Write beside, and rename over, as editors and rsync do."""
    fresh, token = writer.own("fresh"), writer.token()
    fresh.write_bytes(token)
    yield
    with suppress(FileNotFoundError, NotADirectoryError):  # its directory is elsewhere now
        if writer.untouched:
            fresh.rename(writer.file)
        else:
            _exchange(writer, fresh)
        writer.closed.add(token)
    if fresh.exists():
        fresh.unlink()
    yield


def _exchange(writer: Writer, fresh: Path) -> None:
    """Rename over, keeping hold of what is replaced, so that it is known what the writer destroyed."""
    while not _renameat2(fresh, writer.file, _NOREPLACE):
        if not writer.file.parent.is_dir():
            raise FileNotFoundError
        if _renameat2(fresh, writer.file, _EXCHANGE):
            writer.discard(fresh)
            return


def remove_and_make(writer: Writer) -> Session:
    """Take the name away, and make the file anew."""
    with suppress(FileNotFoundError, NotADirectoryError):
        taken = writer.own("taken")
        writer.file.rename(taken)
        yield
        writer.discard(taken)
    yield
    yield from make(writer)


def twice(writer: Writer) -> Session:
    """Append, close, append again: a look in between sees nobody."""
    yield from append(writer)
    yield
    yield from append_or_make(writer)


def by_another_name(writer: Writer) -> Session:
    """Write through another hard link, which stays."""
    link = writer.own("link")
    try:
        os.link(writer.file, link)
    except (FileNotFoundError, NotADirectoryError):
        return
    yield
    yield from _written(writer, os.O_RDWR | os.O_APPEND, link)


def in_a_folder_that_moves(writer: Writer) -> Session:
    """Rename the directory, write there, and rename it back."""
    home, away = writer.file.parent, writer.own("away")
    try:
        home.rename(away)
    except FileNotFoundError:
        return
    yield
    yield from _written(writer, os.O_RDWR | os.O_APPEND, away / writer.file.name)
    yield
    if not home.exists():
        away.rename(home)


WAYS: tuple[Callable[[Writer], Session], ...] = (
    append,
    append_or_make,
    make,
    overwrite,
    cut,
    hide,
    replace,
    remove_and_make,
    twice,
    by_another_name,
    in_a_folder_that_moves,
)

_NOREPLACE, _EXCHANGE = 1, 2
_AT_FDCWD = -100


def _renameat2(old: Path, new: Path, flags: int) -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.renameat2(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), flags) == 0)


def found_again(*folders: Path) -> set[bytes]:
    """Return every token that stands in a file below ``folders``."""
    found: set[bytes] = set()
    for folder in folders:
        for path in folder.rglob("*"):
            with suppress(FileNotFoundError):  # it moves on while a daemon is at work: whoever looks, looks again
                found |= set(TOKEN.findall(path.read_bytes() if path.is_file() else b""))
    return found


def clear(*folders: Path) -> None:
    """Empty the folders."""
    for folder in folders:
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
