"""A filesystem in memory that knows what would survive a power cut, and can have one. Pure: no FUSE, no clock.

The model is stricter than ext4, XFS or Btrfs are, and what POSIX allows (fsync(2): "calling fsync() does not
necessarily ensure that the entry in the directory containing the file has also reached disk"):

- a file's content, size, mode, owner and times are durable as of its last fsync or fdatasync;
- a name (create, mkdir, link, rename, unlink, rmdir) is durable once its directory was fsynced, and not by an
  fsync of the file, which is all that the named filesystems need;
- a rename is one change, in both directories or in none, and changes of a directory are durable in their order:
  that much all filesystems with a journal give.

What is not durable is lost in a cut, or comes through in part: ``cut`` says how.
"""

from __future__ import annotations

import errno
import os
import random
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import count

ROOT = 1
PAGE = 4096


class Cut(StrEnum):
    """What becomes of everything that was not synced."""

    NOTHING = "nothing"
    """None of it is there."""
    SOME = "some"
    """The names up to some moment; of what was written to files some pages, in any order, else zeros."""


@dataclass(frozen=True, slots=True)
class Meta:
    """What ``stat`` tells beside size and links; times are nanoseconds since the epoch."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    ctime_ns: int


@dataclass(slots=True)
class Inode:
    """A file, directory or symlink, as it is and as it would be after a cut."""

    number: int
    meta: Meta
    data: bytearray = field(default_factory=bytearray)
    entries: dict[str, int] = field(default_factory=dict)
    synced: bytes = b""
    synced_meta: Meta | None = None
    synced_entries: dict[str, int] = field(default_factory=dict)
    writes: list[tuple[int, bytes]] = field(default_factory=list)
    """Since the last sync: offset and data; empty data at an offset is a truncation to it."""

    @property
    def is_dir(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.meta.mode)


@dataclass(frozen=True, slots=True)
class Change:
    """One change of names: each a directory, the name in it, and what it leads to (None: to nothing)."""

    names: tuple[tuple[int, str, int | None], ...]

    @property
    def directories(self) -> set[int]:
        """Return the directories it changes."""
        return {directory for directory, _, _ in self.names}


class Disk:
    """The filesystem. Paths begin at the root, with a slash; ``OSError`` comes as the system raises it."""

    def __init__(self, now_ns: int, uid: int = 0, gid: int = 0) -> None:
        self.now_ns = now_ns
        self._numbers = count(ROOT)
        self._inodes: dict[int, Inode] = {}
        self._log: list[Change] = []
        self._opens: Counter[int] = Counter()
        self._make(stat.S_IFDIR | 0o755, uid, gid)

    def _make(self, mode: int, uid: int, gid: int) -> Inode:
        meta = Meta(mode, uid, gid, self.now_ns, self.now_ns)
        inode = Inode(next(self._numbers), meta, synced_meta=meta)
        self._inodes[inode.number] = inode
        return inode

    # --- finding --------------------------------------------------------------------------------
    def at(self, path: str) -> Inode:
        """Return what a path leads to."""
        inode = self._inodes[ROOT]
        for name in filter(None, path.split("/")):
            if not inode.is_dir:
                raise OSError(errno.ENOTDIR, path)
            if name not in inode.entries:
                raise OSError(errno.ENOENT, path)
            inode = self._inodes[inode.entries[name]]
        return inode

    def by_number(self, number: int) -> Inode:
        """Return an open inode."""
        return self._inodes[number]

    def links(self, inode: Inode) -> int:
        """Return how many names lead there."""
        return sum(number == inode.number for each in self._inodes.values() for number in each.entries.values())

    def _parent(self, path: str) -> tuple[Inode, str]:
        above, name = os.path.split(path)
        return self.at(above), name

    # --- names ----------------------------------------------------------------------------------
    def create(self, path: str, mode: int, uid: int, gid: int) -> Inode:
        """Make a file, directory or symlink."""
        directory, name = self._parent(path)
        if name in directory.entries:
            raise OSError(errno.EEXIST, path)
        inode = self._make(mode, uid, gid)
        self._change(Change(((directory.number, name, inode.number),)))
        return inode

    def link(self, path: str, new: str) -> None:
        """Give a file another name."""
        inode, (directory, name) = self.at(path), self._parent(new)
        if name in directory.entries:
            raise OSError(errno.EEXIST, new)
        self._change(Change(((directory.number, name, inode.number),)))

    def remove(self, path: str) -> None:
        """Take a name away, of a file or an empty directory."""
        directory, name = self._parent(path)
        inode = self.at(path)
        if inode.entries:
            raise OSError(errno.ENOTEMPTY, path)
        self._change(Change(((directory.number, name, None),)))
        self._forget(inode)

    def rename(self, path: str, new: str, *, replace_it: bool = True) -> None:
        """Rename; what had the new name loses it, unless that must not be."""
        inode, (source, name), (target, new_name) = self.at(path), self._parent(path), self._parent(new)
        before = target.entries.get(new_name)
        if before is not None and not replace_it:
            raise OSError(errno.EEXIST, new)
        if before == inode.number:
            return
        if before is not None and self._inodes[before].entries:
            raise OSError(errno.ENOTEMPTY, new)
        self._change(Change(((source.number, name, None), (target.number, new_name, inode.number))))
        if before is not None:
            self._forget(self._inodes[before])

    def _change(self, change: Change) -> None:
        self._log.append(change)
        for directory, name, number in change.names:
            _set(self._inodes[directory].entries, name, number)
            self._stamp(self._inodes[directory])
            if number is not None:
                inode = self._inodes[number]
                inode.meta = replace(inode.meta, ctime_ns=self.now_ns)

    # --- content --------------------------------------------------------------------------------
    def opened(self, inode: Inode) -> None:
        """Keep what is open, whatever becomes of its names."""
        self._opens[inode.number] += 1

    def closed(self, number: int) -> None:
        """Let go of it."""
        self._opens[number] -= 1
        if number in self._inodes:
            self._forget(self._inodes[number])

    def _forget(self, inode: Inode) -> None:
        """Free the room of what nobody can reach; its durable half stays until its name's end is durable."""
        if not self._opens[inode.number] and not self.links(inode):
            inode.data, inode.writes = bytearray(), []

    def write(self, inode: Inode, data: bytes, offset: int) -> None:
        """Write, with zeros in a gap before it."""
        inode.data.extend(bytes(max(0, offset - len(inode.data))))
        inode.data[offset : offset + len(data)] = data
        inode.writes.append((offset, data))
        self._stamp(inode)

    def truncate(self, inode: Inode, size: int) -> None:
        """Cut, or lengthen by zeros."""
        del inode.data[size:]
        inode.data.extend(bytes(size - len(inode.data)))
        inode.writes.append((size, b""))
        self._stamp(inode)

    def set_meta(self, inode: Inode, **changed: int) -> None:
        """Change mode, owner or mtime."""
        inode.meta = replace(inode.meta, **{"ctime_ns": self.now_ns, **changed})

    def _stamp(self, inode: Inode) -> None:
        inode.meta = replace(inode.meta, mtime_ns=self.now_ns, ctime_ns=self.now_ns)

    # --- durability -----------------------------------------------------------------------------
    def sync(self, inode: Inode) -> None:
        """Make a file's content, or a directory's names, durable."""
        inode.synced_meta = inode.meta
        if inode.is_dir:
            self._sync_names(inode.number)
        else:
            inode.synced, inode.writes = bytes(inode.data), []

    def _sync_names(self, directory: int) -> None:
        """Apply what changed the directory, and whatever came before that in the other one of a rename."""
        wanted, rest, due = {directory}, list[Change](), list[Change]()
        for change in reversed(self._log):
            if change.directories & wanted:
                wanted |= change.directories
                due.append(change)
            else:
                rest.append(change)
        self._log = rest[::-1]
        self._apply(reversed(due))

    def _apply(self, changes: Iterator[Change]) -> None:
        for change in changes:
            for directory, name, number in change.names:
                _set(self._inodes[directory].synced_entries, name, number)

    def sync_all(self) -> None:
        """Make everything durable, as a clean unmount does."""
        for inode in self._inodes.values():
            self.sync(inode)

    def cut(self, how: Cut, rng: random.Random) -> None:
        """Lose what was not synced; nothing is open any more."""
        kept = rng.randint(0, len(self._log)) if how is Cut.SOME else 0
        self._apply(iter(self._log[:kept]))
        self._log = []
        self._opens.clear()
        for inode in self._inodes.values():
            content = _torn(inode, rng) if how is Cut.SOME else inode.synced
            inode.data, inode.synced, inode.writes = bytearray(content), content, []
            inode.entries = dict(inode.synced_entries)
            assert inode.synced_meta is not None
            inode.meta = inode.synced_meta
        reachable = set(self._reachable(ROOT))
        self._inodes = {number: inode for number, inode in self._inodes.items() if number in reachable}

    def _reachable(self, number: int) -> Iterator[int]:
        yield number
        for below in self._inodes[number].entries.values():
            yield from self._reachable(below)


def _set(entries: dict[str, int], name: str, number: int | None) -> None:
    if number is None:
        entries.pop(name, None)
    else:
        entries[name] = number


def _torn(inode: Inode, rng: random.Random) -> bytes:
    """Return the durable content with some of the pages written since, whichever the disk came to first."""
    content = bytearray(inode.synced)
    for offset, data in inode.writes:
        if not data:
            if rng.random() < 0.5:
                del content[offset:]
            continue
        for start in range(0, len(data), PAGE):
            if rng.random() < 0.5:
                page = data[start : start + PAGE]
                content.extend(bytes(max(0, offset + start - len(content))))
                content[offset + start : offset + start + len(page)] = page
    return bytes(content)
