"""Where ``move_to`` leads: by descriptor, and through no symlink that others could have put there. Blocking."""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Protocol

from presignd.pipeline.files.folder import Gone, NotRegular
from presignd.system.durable import sync
from presignd.system.trust import walked

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from presignd.config import WatchConfig


class Folder(Protocol):
    """What is needed of ``presignd.pipeline.files.folder.Folder``."""

    def dir_fd(self, path: bytes) -> AbstractContextManager[int]:
        """Lend the directory that holds ``path``."""
        ...


@contextmanager
def target_of(folder: Folder, watch: WatchConfig, parent: bytes, *, make: bool = True) -> Iterator[int]:
    """Lend the directory ``parent`` below move_to; move_to and what is below it is made where it is missing.

    A symlink below the watch, below move_to or in move_to's own place is never followed; one above it only where
    nobody else could have put it there. Raises ``OSError``.
    """
    assert watch.move_to is not None, "the configuration asks for move_to with after = move"
    with ExitStack() as opened:
        directory = opened.enter_context(_root(folder, watch.move_to, os.fsencode(watch.moved_inside), make=make))
        for component in parent.split(b"/") if parent else []:
            directory = opened.enter_context(_below(directory, component, make=make))
        yield directory


@contextmanager
def _root(folder: Folder, move_to: Path, inside: bytes, *, make: bool) -> Iterator[int]:
    """Lend move_to itself: inside the watch it is walked to as the watch's files are."""
    with ExitStack() as opened:
        if inside:
            try:
                parent = opened.enter_context(folder.dir_fd(inside))
            except (Gone, NotRegular) as error:
                raise OSError(errno.ENOENT, f"the way to move_to: {error.message}") from None
            yield opened.enter_context(_below(parent, posixpath.basename(inside), make=make))
            return
        if make:
            _make(opened.enter_context(walked(move_to.parent)).fd, os.fsencode(move_to.name))
        yield opened.enter_context(walked(move_to)).fd


@contextmanager
def _below(directory: int, component: bytes, *, make: bool) -> Iterator[int]:
    """Lend a folder in ``directory``, made where it is missing; a symlink in its place is refused."""
    if make:
        _make(directory, component)
    try:
        fd = os.open(component, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except NotADirectoryError as error:
        st = os.stat(component, dir_fd=directory, follow_symlinks=False)
        if not stat.S_ISLNK(st.st_mode):
            raise
        raise OSError(error.errno, f"{os.fsdecode(component)} is a symlink, which is not followed there") from None
    try:
        yield fd
    finally:
        os.close(fd)


def _make(directory: int, name: bytes) -> None:
    with suppress(FileExistsError):
        os.mkdir(name, dir_fd=directory)
        sync(directory)
