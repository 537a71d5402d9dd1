"""What the harness does to the watched folders, seeded, and what it remembers of it.

Contents are unique, so each is told apart wherever it turns up. A content counts as written once it is
closed (or moved in): nothing else may ever become an object. Where power may be lost, each content and each name
is synced before it counts.
"""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import count
from pathlib import Path

from presignd.s3.checksums import checksum_of, native

_serial = count(1)

PART = 5 << 20
"""Bytes in a part, and from which on a file goes in parts: the smallest size that S3 takes."""
IN_PARTS = (6 << 20, 11 << 20)


_names: dict[str, str] = {}
"""For the CRC of each content that was named, the name."""


def digest(content: bytes) -> str:
    """Return the name that the harness knows a content by: its MD5, as a link's line may have it."""
    name = _md5(content)
    if native("crc64nvme"):
        _names[checksum_of(content, "crc64nvme")] = name
    return name


def named(checksum: str) -> str:
    """Return the name of the content with this checksum, as a link's line has it."""
    return _names.get(checksum, checksum)


def _md5(content: bytes) -> str:
    if len(content) <= PART:
        return f"md5:{hashlib.md5(content).hexdigest()}"
    parts = [hashlib.md5(content[start : start + PART]).digest() for start in range(0, len(content), PART)]
    return f"md5:{hashlib.md5(b''.join(parts)).hexdigest()}-{len(parts)}"


class Folder:
    """One watched folder and the ways to write into it. ``last`` has each path's last whole content."""

    def __init__(self, root: Path, staging: Path, rng: random.Random, *, durable: bool = False) -> None:
        self.root, self._staging, self.rng = root, staging, rng
        self._durable = durable
        self.last: dict[str, str] = {}
        self.written: dict[str, set[str]] = defaultdict(set)
        for folder in (root, staging):
            folder.mkdir(parents=True)
            self._sync_directories({folder, *folder.parents})

    def content(self, *, size: int | None = None) -> bytes:
        """Make bytes that no other file has: most are small, some are streamed, a few go in parts."""
        rng = self.rng
        sizes = (0, rng.randint(1, 200), rng.randint(1, 60_000), rng.randint(1 << 20, 3 << 20), rng.randint(*IN_PARTS))
        wanted = rng.choices(sizes, (1, 30, 60, 7, 4))[0] if size is None else size
        head = b"%d " % next(_serial)
        return (head + rng.randbytes(wanted))[: max(wanted, len(head))] if wanted else b""

    def note(self, path: str, content: bytes) -> None:
        """Remember a whole content at its path."""
        self._sync_names(path)
        self.last[path] = digest(content)
        self.written[path].add(self.last[path])

    def place(self, path: str) -> Path:
        """Return where a path is, its folder made."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    # --- ways to write --------------------------------------------------------------------------
    def write(self, path: str) -> None:
        """Write in place, in pieces with pauses, as a slow writer does."""
        content = self.content()
        step = max(1, len(content) // self.rng.randint(1, 3))
        with self.place(path).open("wb", buffering=0) as file:
            for start in range(0, len(content), step):
                file.write(content[start : start + step])
                time.sleep(self.rng.choice((0, 0, 0.02)))
            self._sync(file.fileno())
        self.note(path, content)

    def move_in(self, path: str) -> None:
        """Rename a whole file over the path."""
        content = self.content()
        self._stage(content).replace(self.place(path))
        self.note(path, content)

    def sneak_in(self, path: str) -> None:
        """Rename another content of the same size and mtime over the path, as ``cp -p`` and ``touch -r`` can."""
        target = self.root / path
        if not target.is_file():
            return self.write(path)
        before = target.stat()
        content = self.content(size=before.st_size)
        source = self._stage(content)
        os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
        source.replace(target)
        return self.note(path, content)

    def append(self, path: str) -> None:
        """Add to the file, whole or new; what is there then is read from the same descriptor."""
        with self.place(path).open("ab+", buffering=0) as file:
            file.write(self.content(size=self.rng.randint(20, 5000)))
            file.seek(0)
            content = file.read()
            self._sync(file.fileno())
        self.note(path, content)

    def rewrite_hotly(self, path: str) -> None:
        """Write several contents one after the other, to meet every moment of an upload."""
        for _ in range(self.rng.randint(2, 5)):
            self.rng.choice((self.write, self.write, self.append, self.move_in))(path)
            time.sleep(self.rng.uniform(0.02, 0.4))

    def _stage(self, content: bytes) -> Path:
        source = self._staging / "source"
        with source.open("wb") as file:
            file.write(content)
            file.flush()
            self._sync(file.fileno())
        return source

    # --- as a careful writer does, where power may be lost ------------------------------------------
    def _sync(self, fd: int) -> None:
        if self._durable:
            os.fsync(fd)

    def _sync_names(self, *paths: str) -> None:
        """Make durable what became of these names; the daemon may have taken a directory's name meanwhile."""
        above = {folder for path in paths for folder in (self.root / path).parents if folder.is_relative_to(self.root)}
        self._sync_directories(above)

    def _sync_directories(self, folders: Iterable[Path]) -> None:
        for folder in sorted(folders) if self._durable else ():
            with suppress(FileNotFoundError):
                fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
                self._sync(fd)
                os.close(fd)

    def _step(self, weighted: dict[Callable[[], object], int]) -> None:
        self.rng.choices(list(weighted), list(weighted.values()))[0]()


class Kept(Folder):
    """A folder whose files stay (``after = "keep"``): they are created, changed, renamed, moved and deleted."""

    MOST = 80
    FEW = 30

    def __init__(self, root: Path, staging: Path, rng: random.Random, *, durable: bool = False) -> None:
        super().__init__(root, staging, rng, durable=durable)
        self._overtaken: list[str] = []
        self._numbers = count(1)

    def act(self) -> None:
        """Do one thing."""
        full = len(self.last) >= self.MOST
        self._step(
            {
                self._overtake: 10,
                lambda: self.write(self._path()): 2 if full else 8,
                lambda: self.move_in(self._path()): 2 if full else 6,
                lambda: self.append(self._any() or self._path()): 5,
                lambda: self.rewrite_hotly(self._any() or self._path()): 8,
                lambda: self.sneak_in(self._any() or self._path()): 2,
                self._touch: 1,
                self._rename: 4,
                self._delete: 9 if full else 2,
                self._move_directory: 3,
                self._move_out_and_in: 1,
            }
        )

    def _path(self) -> str:
        where = self.rng.choice(
            ("", f"d{self.rng.randrange(6)}/", f"d{self.rng.randrange(6)}/e{self.rng.randrange(2)}/")
        )
        return f"{where}f{self.rng.randrange(16)}.bin"

    def _any(self) -> str | None:
        free = sorted(self.last.keys() - self._overtaken)
        return self.rng.choice(free) if free else None

    def _overtake(self) -> None:
        """Write a file, write it once more while the first content is on its way, and leave it alone after that."""
        path = f"o{next(self._numbers)}.bin"
        self.write(path)
        time.sleep(self.rng.uniform(0.05, 0.4))
        self.rng.choice((self.write, self.append))(path)
        self._overtaken.append(path)
        if len(self._overtaken) > self.FEW:
            self._forget(self._overtaken.pop(0))

    def _touch(self) -> None:
        if (path := self._any()) is not None:
            (self.root / path).touch()

    def _rename(self) -> None:
        old, new = self._any(), self._path()
        if old is not None and old != new:
            (self.root / old).rename(self.place(new))
            self._moved(old, new)

    def _delete(self) -> None:
        if (path := self._any()) is not None:
            self._forget(path)

    def _forget(self, path: str) -> None:
        (self.root / path).unlink()
        del self.last[path]
        self._sync_names(path)

    def _move_directory(self) -> None:
        old, new = (f"d{number}" for number in self.rng.sample(range(8), 2))
        if (self.root / old).is_dir() and not (self.root / new).exists():
            (self.root / old).rename(self.root / new)
            self._moved_below(old, new)

    def _move_out_and_in(self) -> None:
        """Move a directory out of the watch and back in, under another name where that is free."""
        old, new = (f"d{number}" for number in self.rng.sample(range(8), 2))
        if not (self.root / old).is_dir():
            return
        outside = self._staging / "outside"
        (self.root / old).rename(outside)
        time.sleep(self.rng.uniform(0, 0.3))
        back = old if (self.root / new).exists() else new
        outside.rename(self.root / back)
        self._moved_below(old, back)

    def _moved_below(self, old: str, new: str) -> None:
        for path in [path for path in self.last if path.startswith(f"{old}/")]:
            self._moved(path, new + path[len(old) :])

    def was_whole(self, path: str, content: str) -> bool:
        """Return whether this content was ever complete at ``path``."""
        return content in self.written[path]

    def _moved(self, old: str, new: str) -> None:
        self.last[new] = self.last.pop(old)
        self.written[new].add(self.last[new])
        self._sync_names(old, new)


class Taken(Folder):
    """A folder whose files the daemon takes away (move, delete): dropped, dropped anew, changed meanwhile.

    A directory gets another name now and then, and is not written to any more: nobody outside can tell
    which of its files were taken under the old name.
    """

    _generation = 0

    def act(self) -> None:
        """Do one thing."""
        self._step(
            {
                lambda: self.write(self._path()): 8,
                lambda: self.move_in(self._path()): 8,
                lambda: self.append(self._path()): 6,
                lambda: self.rewrite_hotly(self._path()): 4,
                self._move_directory: 1,
            }
        )

    def was_whole(self, _: str, content: str) -> bool:
        """Return whether this content was ever complete in this folder."""
        return any(content in contents for contents in self.written.values())

    def _path(self) -> str:
        where = self.rng.choice(("", f"d{self._generation}/"))
        return f"{where}f{self.rng.randrange(12)}.bin"

    def _move_directory(self) -> None:
        old = self.root / f"d{self._generation}"
        if old.is_dir():
            old.rename(self.root / f"moved{self._generation}")
            self._sync_names(old.name)
            self._generation += 1
