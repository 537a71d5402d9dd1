# ruff: noqa: ARG002 - the methods are as libfuse calls them
"""``python -m tests.power.server TARGET KEPT``: the disk of ``tests.power.disk`` as a mounted filesystem, over FUSE.

What is on it comes from the file KEPT, where there is one. Commands come on stdin, a line each, and are answered
by ``ok``:

- ``off``: from now on nothing reaches the disk;
- ``keep HOW SEED``: cut the power, write what survived to KEPT, and end; HOW ``all``: all of it;
- ``fail NAME``: reading a file of that name fails with EIO; ``heal``: no more.
"""

from __future__ import annotations

import errno
import os
import pickle
import random
import stat
import sys
import threading
import time
from pathlib import Path
from typing import Any

import mfusepy

from tests.power.disk import Cut, Disk, Inode

RENAME_NOREPLACE = 1  # linux/fs.h


class Served(mfusepy.Operations):  # type: ignore[misc] # mfusepy ships no types
    """Turns FUSE's calls into the disk's; a file handle is the inode's number."""

    use_ns = True

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.off = False
        self.failing = ""

    def _now(self) -> Disk:
        self.disk.now_ns = time.time_ns()
        return self.disk

    def _inode(self, path: str | None, fh: int | None = None) -> Inode:
        return self.disk.by_number(fh) if fh else self.disk.at(path or "/")

    def _create(self, path: str, mode: int) -> Inode:
        uid, gid, _ = mfusepy.fuse_get_context()
        return self._now().create(path, mode, uid, gid)

    # --- names ----------------------------------------------------------------------------------
    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        inode = self._inode(path, fh)
        meta, size = inode.meta, len(inode.data)
        return {
            "st_ino": inode.number,
            "st_mode": meta.mode,
            "st_uid": meta.uid,
            "st_gid": meta.gid,
            "st_size": size,
            "st_blocks": -(-size // 512),
            "st_nlink": 2 if inode.is_dir else self.disk.links(inode),
            "st_atime": meta.mtime_ns,
            "st_mtime": meta.mtime_ns,
            "st_ctime": meta.ctime_ns,
        }

    def readdir(self, path: str, fh: int) -> list[Any]:
        entries = self.disk.at(path).entries
        return [".", "..", *((name, self.getattr("", number), 0) for name, number in entries.items())]

    def mkdir(self, path: str, mode: int) -> int:
        self._create(path, stat.S_IFDIR | mode)
        return 0

    def symlink(self, target: str, source: str) -> int:
        inode = self._create(target, stat.S_IFLNK | 0o777)
        self.disk.write(inode, os.fsencode(source), 0)
        return 0

    def readlink(self, path: str) -> str:
        return os.fsdecode(bytes(self.disk.at(path).data))

    def link(self, target: str, source: str) -> int:
        self._now().link(source, target)
        return 0

    def unlink(self, path: str) -> int:
        self._now().remove(path)
        return 0

    def rmdir(self, path: str) -> int:
        self._now().remove(path)
        return 0

    def rename(self, old: str, new: str, flags: int = 0) -> int:
        if flags & ~RENAME_NOREPLACE:
            raise OSError(errno.EINVAL, new)
        self._now().rename(old, new, replace_it=not flags)
        return 0

    # --- content --------------------------------------------------------------------------------
    def create(self, path: str, mode: int, flags: int) -> int:
        inode = self._create(path, stat.S_IFREG | mode)
        self.disk.opened(inode)
        return inode.number

    def open(self, path: str, flags: int) -> int:
        inode = self.disk.at(path)
        if flags & os.O_TRUNC:
            self._now().truncate(inode, 0)
        self.disk.opened(inode)
        return inode.number

    def release(self, path: str, fh: int) -> int:
        self.disk.closed(fh)
        return 0

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        if self.failing and Path(path).name == self.failing:
            raise OSError(errno.EIO, path)
        return bytes(memoryview(self._inode(path, fh).data)[offset : offset + size])

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        if not self.off:
            self._now().write(self._inode(path, fh), data, offset)
        return len(data)

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        if not self.off:
            self._now().truncate(self._inode(path, fh), length)
        return 0

    # --- metadata -------------------------------------------------------------------------------
    def chmod(self, path: str, mode: int) -> int:
        inode = self._now().at(path)
        self.disk.set_meta(inode, mode=stat.S_IFMT(inode.meta.mode) | stat.S_IMODE(mode))
        return 0

    def chown(self, path: str, uid: int, gid: int) -> int:
        given = {name: number for name, number in (("uid", uid), ("gid", gid)) if number != -1}
        self.disk.set_meta(self._now().at(path), **given)
        return 0

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        if not self.off:
            self.disk.set_meta(self._now().at(path), mtime_ns=int(times[1]) if times else self.disk.now_ns)
        return 0

    def statfs(self, path: str) -> dict[str, int]:
        return {"f_bsize": 4096, "f_frsize": 4096, "f_blocks": 1 << 20, "f_bfree": 1 << 20, "f_bavail": 1 << 20}

    # --- durability -----------------------------------------------------------------------------
    def flush(self, path: str, fh: int) -> int:
        return 0

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        if not self.off:
            self.disk.sync(self._inode(path, fh))
        return 0

    def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
        if not self.off:
            self.disk.sync(self.disk.at(path))
        return 0


class Mounting(mfusepy.FUSE):  # type: ignore[misc] # as above
    """mfusepy leaves out rename's flags, and would replace what must not be."""

    def rename_fuse_3(self, old: bytes, new: bytes, flags: int) -> int:
        """Hand the flags on."""
        done: int = self.operations.rename(os.fsdecode(old), os.fsdecode(new), flags)
        return done


class Server:
    """Serves until unmounted or told to end: with the process the mount goes, whoever else has a copy of it."""

    def __init__(self, target: str, kept: Path) -> None:
        self._target, self._kept = target, kept
        made = pickle.loads(kept.read_bytes()) if kept.exists() else Disk(time.time_ns(), os.geteuid(), os.getegid())
        self._served = Served(made)

    def run(self) -> None:
        """Serve."""
        threading.Thread(target=self._listen).start()
        options = {"use_ino": True, "hard_remove": True, "foreground": True, "nothreads": True}
        Mounting(self._served, self._target, fsname="presignd-power", **options)

    def _listen(self) -> None:
        disk = self._served.disk
        for line in sys.stdin:
            match line.split():
                case ["off"]:
                    self._served.off = True
                case ["keep", how, seed]:
                    if how != "all":
                        disk.cut(Cut(how), random.Random(int(seed)))
                    self._kept.write_bytes(pickle.dumps(disk))
                    os._exit(0)
                case ["fail", name]:
                    self._served.failing = name
                case ["heal"]:
                    self._served.failing = ""
            print("ok", flush=True)  # noqa: T201 - the answer
        os._exit(0)


if __name__ == "__main__":
    Server(sys.argv[1], Path(sys.argv[2])).run()
