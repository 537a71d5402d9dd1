"""Read inotify directly: an event source for local Linux folders that reports what watchfiles can't.

That is a file's close after writing, names that are not UTF-8, the overflow of the kernel's queue, and the removal of
the root. It costs nothing while nothing happens. Each directory needs a watch (inotify(7)). A directory that appears is
watched first, with all below, and hinted at after that, so its scan finds what was made in it before it was watched.
"""

from __future__ import annotations

import asyncio
import errno
import os
import struct
from contextlib import suppress
from typing import TYPE_CHECKING

from presignd.errors import NO_DESCRIPTORS, Fault, fault, lacks_descriptors, reason_of
from presignd.pipeline.files.folder import Folder, Gone, NotRegular
from presignd.pipeline.watch.source import INSTANCES, TICK_SECONDS, WATCHES, Hints, SourceEnded
from presignd.runtime.tasks import within
from presignd.system.syscalls import inotify_add_watch, inotify_init, inotify_rm_watch

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    from presignd.config import WatchConfig
    from presignd.pipeline.files.ignore import Ignore

# linux/inotify.h
_ATTRIB, _CLOSE_WRITE, _MOVED_FROM, _MOVED_TO = 0x4, 0x8, 0x40, 0x80
_CREATE, _DELETE, _DELETE_SELF, _MOVE_SELF = 0x100, 0x200, 0x400, 0x800
_UNMOUNT, _OVERFLOW, _IGNORED = 0x2000, 0x4000, 0x8000
_ONLYDIR, _ISDIR = 0x01000000, 0x40000000
_OF_WATCHES = _DELETE_SELF | _MOVE_SELF | _UNMOUNT | _OVERFLOW | _IGNORED
"""Events about the watches themselves."""

_WANTED = _ATTRIB | _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _DELETE_SELF | _MOVE_SELF | _ONLYDIR
"""Without IN_MODIFY: a writer closes its file, and a scan finds one that is never closed."""

_EVENT_HEAD = struct.Struct("iIII")
_READ_BYTES = 256 << 10
_LEAF_LINKS = 2
"""The link count of a directory without subdirectories: its name and its own "." (not so on every filesystem)."""


async def inotify_source(watch: WatchConfig, folder: Folder, ignore: Ignore) -> AsyncGenerator[Hints, None]:
    """Yield what inotify reports about ``folder``; end when its root is gone, moved or unmounted."""
    tree = _Tree(folder, ignore, recursive=watch.recursive)
    try:
        await asyncio.to_thread(tree.add, b"")
        yield Hints()
        while not tree.ended:
            await _until_readable(tree.fd)
            yield await tree.read()
    finally:
        os.close(tree.fd)


async def _until_readable(fd: int) -> None:
    """Wait for events, for ``TICK_SECONDS`` at most.

    The descriptor is registered only here: between two reads, each turn of the event loop would report it again.
    """
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        await within(TICK_SECONDS, ready)
    finally:
        loop.remove_reader(fd)


class _Tree:
    """The inotify watches of one folder: by their numbers, the directories (bytes below the root)."""

    def __init__(self, folder: Folder, ignore: Ignore, *, recursive: bool) -> None:
        self._folder, self._ignore, self._recursive = folder, ignore, recursive
        self._paths: dict[int, bytes] = {}
        self._out_of_watches = False
        self.ended = False
        try:
            self.fd = inotify_init()
        except OSError as error:
            raise _no_instance(error, folder.fd) from None

    # --- watches --------------------------------------------------------------------------------
    def add(self, directory: bytes) -> None:
        """Watch ``directory`` and all below it, as far as there are watches. Blocking.

        Where these run out, the next scan finds that (``Coverage.check_watches``), logs it, and polling takes over.
        Raises ``SourceEnded`` when not even the root got one, or too many files are open to watch them all.
        """
        waiting = [directory]
        while waiting:
            below = waiting.pop()
            try:
                waiting += self._add(below)
            except (Gone, NotRegular, Fault, OSError) as error:  # the scan reports what can't be read
                if lacks_descriptors(error):
                    raise SourceEnded(fault("too_many_files").message) from None
        if not self._paths and self._out_of_watches:
            raise SourceEnded("no inotify watches are left", limit=WATCHES)
        if not self._paths:
            raise SourceEnded("the folder can't be watched")

    def _add(self, directory: bytes) -> list[bytes]:
        """Watch one directory, then return the directories in it: an event reports one that is made in between."""
        fd = self._folder.open_directory(directory)
        try:
            # By descriptor: nothing outside the folder is watched, whatever is replaced during the call.
            try:
                self._paths[inotify_add_watch(self.fd, b"/proc/self/fd/%d" % fd, _WANTED)] = directory
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    self._out_of_watches = True
                    return []
                if not directory:  # it is tried again soon: don't walk through all that is below
                    raise SourceEnded(f"the folder can't be watched: {error.strerror}") from None
            if not self._recursive or os.fstat(fd).st_nlink == _LEAF_LINKS:
                return []
            return [path for path in _directories(fd, directory) if not self._ignore.ignores_directory(path)]
        finally:
            os.close(fd)

    def _unwatch(self, directory: bytes) -> None:
        """Remove the watches of a directory that was moved away, and of all below: these have other paths now."""
        below = directory + b"/"
        for number in [number for number, path in self._paths.items() if (path + b"/").startswith(below)]:
            with suppress(OSError):  # the directory may be gone, and its watch with it
                inotify_rm_watch(self.fd, number)
            del self._paths[number]

    # --- events ---------------------------------------------------------------------------------
    async def read(self) -> Hints:
        """Return what was reported; watch each directory that appeared before it is hinted at."""
        paths, closed, fresh = set[bytes](), set[bytes](), dict[bytes, None]()
        for number, mask, name in self._read_events():
            directory = self._paths.get(number)
            if mask & _OF_WATCHES:
                self._note_end(number, mask, directory)
            elif directory is not None and name:
                path = directory + b"/" + name if directory else name
                if not mask & _ISDIR and mask & (_CLOSE_WRITE | _MOVED_TO):
                    closed.add(path)
                    continue
                paths.add(path)
                if mask & (_DELETE | _MOVED_FROM):
                    closed.discard(path)
                if mask & _ISDIR and mask & _MOVED_FROM:
                    self._unwatch(path)
                elif mask & _ISDIR and mask & (_CREATE | _MOVED_TO | _ATTRIB):
                    fresh[path] = None
        for path in fresh if self._recursive else ():
            if not self._ignore.ignores_directory(path):
                await asyncio.to_thread(self.add, path)
        return Hints(paths - closed, closed)

    def _note_end(self, number: int, mask: int, directory: bytes | None) -> None:
        """Note the end of a watch; raise ``SourceEnded`` if events are lost."""
        if mask & _OVERFLOW:
            raise SourceEnded("the kernel's queue overflowed")
        if directory is not None:
            # Another directory shows where one was unmounted: end, so that all is watched again.
            self.ended = self.ended or directory == b"" or bool(mask & _UNMOUNT)
        if mask & _IGNORED:
            self._paths.pop(number, None)

    def _read_events(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield each event's watch number, mask and name."""
        with suppress(BlockingIOError):
            data = os.read(self.fd, _READ_BYTES)
            at, end = 0, len(data)
            while at < end:
                number, mask, _, length = _EVENT_HEAD.unpack_from(data, at)
                at += _EVENT_HEAD.size + length
                yield number, mask, data[at - length : at].rstrip(b"\0")


def _directories(fd: int, directory: bytes) -> list[bytes]:
    with os.scandir(fd) as entries:
        names = [os.fsencode(entry.name) for entry in entries if entry.is_dir(follow_symlinks=False)]
    return [directory + b"/" + name if directory else name for name in names]


def _no_instance(error: OSError, folder: int) -> SourceEnded:
    if error.errno in NO_DESCRIPTORS and _can_open_more(folder):
        return SourceEnded("no inotify instances are left", limit=INSTANCES)
    return SourceEnded(reason_of(error))


def _can_open_more(folder: int) -> bool:
    """Return whether a descriptor is left: EMFILE means that none is, or no inotify instance (inotify_init(2))."""
    try:
        os.close(os.dup(folder))
    except OSError:
        return False
    return True
