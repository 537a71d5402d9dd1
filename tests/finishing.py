"""A watched folder with a verified file, for tests of finish; and what may happen to it meanwhile."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest

from presignd.config import WatchConfig
from presignd.model import FileVersion, Fingerprint, State
from presignd.pipeline.files.folder import Folder
from presignd.pipeline.files.lease import has_writer, ignore_sigio
from presignd.pipeline.finish import remove as finish_module
from presignd.pipeline.finish.remove import Finished, keep_move_or_delete
from presignd.system import syscalls
from tests.needs import need
from tests.versions import in_state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CONTENT = b"the verified content"
ASIDE = ".presignd-id-1"
NOBODY = 65534


@pytest.fixture(autouse=True)
def leases() -> None:
    ignore_sigio()


@dataclass
class Place:
    """A watched folder with one verified file in it, and where it would go."""

    folder: Folder
    watch: WatchConfig
    version: FileVersion
    file: Path
    done: Path

    def finish(self, writer: Callable[[int], bool | None] = has_writer) -> Finished:
        with patch.object(finish_module, "has_writer", writer):
            return keep_move_or_delete(self.folder, self.watch, self.version)

    @property
    def tree(self) -> dict[str, bytes]:
        """Return every file by its path, including presignd's hidden ones."""
        base = Path(self.watch.path).parent
        files = [path for path in (*base.rglob("*"), *self.done.rglob("*")) if path.is_file()]
        return {str(path.relative_to(base) if path.is_relative_to(base) else path): path.read_bytes() for path in files}


def verified(folder: Path, path: str, content: bytes = CONTENT) -> FileVersion:
    """Create the file and its version in the state in which the link is made."""
    file = folder / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    os.utime(file, ns=(10**18, 10**18 + 123_456_700))
    return in_state(
        State.LINKED,
        os.fsencode(path),
        file_id="id-1",
        fingerprint=Fingerprint.of(file.stat()),
        checksum="md5:" + hashlib.md5(content, usedforsecurity=False).hexdigest(),
    )


@contextmanager
def place(base: Path, after: str, done: Path | None = None, path: str = "sub/a.txt", **more: Any) -> Iterator[Place]:
    drop, done = base / "drop", done or base / "done"
    version = verified(drop, path)
    watch = WatchConfig(
        name="drop", path=drop, bucket="bucket", after=after, move_to=done if after == "move" else None, **more
    )
    folder = Folder(watch)
    yield Place(folder, watch, version, drop / path, done)
    folder.close()


@pytest.fixture(params=["delete", "move"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with place(tmp_path, request.param) as here:
        yield here


@pytest.fixture
def moving(tmp_path: Path) -> Iterator[Place]:
    with place(tmp_path, "move") as here:
        yield here


@pytest.fixture
def deleting(tmp_path: Path) -> Iterator[Place]:
    with place(tmp_path, "delete") as here:
        yield here


@pytest.fixture
def far(tmp_path: Path) -> Iterator[Path]:
    """Give a folder on another filesystem."""
    folder = Path("/dev/shm") / f"presignd-test-{os.getpid()}"
    need("second filesystem")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def rewrite(file: Path, content: bytes, *, hide: bool = False) -> None:
    """Write in place; ``hide`` sets the old times again."""
    st_before = file.stat()
    file.write_bytes(content)
    if hide:
        os.utime(file, ns=(st_before.st_atime_ns, st_before.st_mtime_ns))


def during(monkeypatch: pytest.MonkeyPatch, step: str, act: Callable[[], Any], *, then: bool) -> None:
    """Let ``act`` happen once at a step of finish, before or (``then``) after it."""
    real = getattr(finish_module, step)
    acts = [act]

    def stepping(*args: Any, **kwargs: Any) -> Any:
        if acts and not then:
            acts.pop()()
        result = real(*args, **kwargs)
        if acts and then:
            acts.pop()()
        return result

    monkeypatch.setattr(finish_module, step, stepping)


def failing(number: int) -> Callable[..., Any]:
    def fail(*_args: Any, **_kwargs: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


WAYS = ["renameat2", "links", "names"]


def only(way: str, patched: pytest.MonkeyPatch) -> None:
    """Simulate a filesystem without RENAME_NOREPLACE ("links"), or without hard links too ("names")."""
    if way != "renameat2":
        patched.setattr(syscalls, "renameat2_noreplace", failing(errno.ENOSYS))
    if way == "names":
        patched.setattr(os, "link", failing(errno.EPERM))
