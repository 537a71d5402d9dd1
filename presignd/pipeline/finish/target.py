"""Open the folder below ``move_to``, through no symlink that another user could have made. Blocking."""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from presignd.pipeline.files.folder import Gone, NotRegular
from presignd.system.durable import sync
from presignd.system.trust import walked

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from presignd.config import WatchConfig
    from presignd.pipeline.files.folder import Folder


@contextmanager
def target_of(folder: Folder, watch: WatchConfig, parent: bytes, *, make: bool = True) -> Iterator[int]:
    """Yield the folder ``parent`` below move_to; with ``make``, make missing folders from move_to down.

    No symlink is followed below the watch, at move_to or below it; one above move_to is followed only if no other user
    could have made it. Raises ``OSError``.
    """
    assert watch.move_to is not None, "after = move requires move_to"
    with ExitStack() as opened:
        directory = _root(opened, folder, watch.move_to, os.fsencode(watch.moved_inside), make=make)
        for component in parent.split(b"/") if parent else []:
            directory = _below(opened, directory, component, make=make)
        yield directory


def _root(opened: ExitStack, folder: Folder, move_to: Path, inside: bytes, *, make: bool) -> int:
    """Open move_to itself; inside the watch it is opened as the watch's files are, from the root's descriptor."""
    if inside:
        try:
            parent = opened.enter_context(folder.dir_fd(inside))
        except (Gone, NotRegular) as error:
            raise OSError(errno.ENOENT, f"the way to move_to: {error.message}") from None
        return _below(opened, parent, posixpath.basename(inside), make=make)
    if make:
        _make(opened.enter_context(walked(move_to.parent)).fd, os.fsencode(move_to.name))
    return opened.enter_context(walked(move_to)).fd


def _below(opened: ExitStack, directory: int, component: bytes, *, make: bool) -> int:
    """Open a folder in ``directory``; with ``make``, make a missing one. A symlink of that name is refused."""
    if make:
        _make(directory, component)
    try:
        fd = os.open(component, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except NotADirectoryError as error:
        st = os.stat(component, dir_fd=directory, follow_symlinks=False)
        if not stat.S_ISLNK(st.st_mode):
            raise
        raise OSError(error.errno, f"{os.fsdecode(component)} is a symlink, which is not followed there") from None
    opened.callback(os.close, fd)
    return fd


def _make(directory: int, name: bytes) -> None:
    with suppress(FileExistsError):
        os.mkdir(name, dir_fd=directory)
        sync(directory)
